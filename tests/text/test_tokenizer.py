"""CLIP's tokenizer against transformers' ids, a plain one of this folder, and its own words."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.text.tokenizer import SpecialTokens, Tokenizer, clip_tokenizer
from ddpm_jax.text.vocabulary import byte_symbols, clip_merges, parse_merges, vocabulary_of

from ..conftest import GOLDENS
from .conftest import assigned, generated_prompts

GOLDEN = json.loads((GOLDENS / "sd" / "tokens.json").read_text())["prompts"]
DOG = [49406, 320, 1929, 3309, 3801, 49407]


@pytest.fixture(scope="module")
def clip():
    return clip_tokenizer()


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_ids_are_those_of_transformers(clip, case):
    (ids,) = clip([case["prompt"]])
    assert ids.tolist() == case["input_ids"]


def test_the_example_that_the_project_began_with(clip):
    ids = clip(["a dog wearing hat"])
    assert ids.shape == (1, 77)
    assert ids.dtype == np.int32
    assert ids[0].tolist() == DOG + [49407] * 71


def test_ids_are_those_of_a_plain_tokenizer_on_generated_prompts(clip, plain_tokenizer):
    prompts = assigned(generated_prompts(2000, seed=1))
    assert len(prompts) > 1000
    different = (clip(prompts) != plain_tokenizer(prompts)).any(axis=1)
    assert [prompt for prompt, differs in zip(prompts, different, strict=True) if differs] == []


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(5000, marks=pytest.mark.full),
        pytest.param(100_000, marks=pytest.mark.slow),
    ],
)
def test_ids_are_those_of_transformers_on_generated_prompts(clip, count):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizer(vocab=clip.vocabulary, merges=clip.merges)
    prompts = generated_prompts(count, seed=2)
    for start in range(0, count, 10_000):
        some = prompts[start : start + 10_000]
        ids = theirs(some, padding="max_length", max_length=77, truncation=True).input_ids
        assert (clip(some) == np.array(ids)).all()


def test_the_vocabulary_has_a_symbol_for_each_byte_and_follows_from_the_merges():
    assert sorted(byte_symbols()) == list(range(256))
    assert len(set(byte_symbols().values())) == 256
    assert not any(symbol.isspace() for symbol in byte_symbols().values())
    merges = clip_merges()
    assert len(merges) == 48_894
    vocabulary = vocabulary_of(merges)
    # Of CLIP's vocab.json: the first, the same at the end of a word, a merge, the special tokens.
    known = {"!": 0, "!</w>": 256, "a</w>": 320, "dog</w>": 1929, "<|startoftext|>": 49406}
    assert {token: vocabulary[token] for token in known} == known
    assert sorted(vocabulary.values()) == list(range(49_408))


def test_a_vocabulary_of_few_merges_encodes_the_same_text_in_more_tokens(clip):
    small = clip_tokenizer(100)
    assert small.vocab_size == 614
    (ids,), (all_ids,) = small(["a dog wearing hat"]), clip(["a dog wearing hat"])
    tokens = {i: token for token, i in small.vocabulary.items()}
    words = "".join(tokens[i] for i in ids if i < small.start_id)
    assert words == "a</w>dog</w>wearing</w>hat</w>"
    assert (ids != small.pad_id).sum() > (all_ids != clip.pad_id).sum()


def test_stable_diffusion_2_pads_with_an_exclamation_mark():
    (ids,) = clip_tokenizer(pad="!")(["a dog wearing hat"])
    assert ids.tolist() == DOG + [0] * 71


def test_special_tokens_in_capitals_are_words_unless_said(clip):
    lenient = dataclasses.replace(SpecialTokens(), any_case=frozenset({"<|endoftext|>"}))
    tokenizer = Tokenizer(clip.merges, special=lenient)
    for prompt, of_clip, of_lenient in (
        ("<|ENDOFTEXT|>", 27, 49407),
        ("<|STARTOFTEXT|>", 27, 27),
        ("<|endoftext|>", 49407, 49407),
    ):
        assert clip([prompt])[0, 1] == of_clip
        assert tokenizer([prompt])[0, 1] == of_lenient


@pytest.mark.parametrize("length", [3, 8, 200])
def test_rows_have_the_length_asked_for(length):
    ids = clip_tokenizer(length=length)(["a dog", "a dog " * 200, ""])
    assert ids.shape == (3, length)
    assert (ids[:, 0] == 49406).all()
    assert ids[1, -1] == 49407
    assert (ids[1, 1:-1] != 49407).all()
    assert ids[2].tolist() == [49406] + [49407] * (length - 1)


def test_a_cut_prompt_says_which_words_were_lost(clip):
    prompts = ["cat " * 75, "Cat " * 75 + "DOG and\n bird ", "🐉" * 40, "", "a dog"]
    lost = clip.lost_words(prompts)
    assert lost == ["", "DOG and\n bird", "🐉" * 3, "", ""]
    # what is left of a prompt without the lost words has the same ids
    kept = [
        prompt.removesuffix(" ")[: -len(words) or None]
        for prompt, words in zip(prompts, lost, strict=True)
    ]
    assert (clip(kept[:2]) == clip(prompts[:2])).all()
    # of a word that is several tokens, the beginning may have been kept
    assert clip.lost_words(["cat " * 74 + "antidisestablishmentarianism here"]) == [
        "antidisestablishmentarianism here"
    ]
    (first, second) = clip.cut_warnings(prompts)
    assert first == (
        "The prompt 'Cat Cat Cat Cat Cat Cat Cat Cat Cat Cat ...' was cut after 75 tokens, these "
        "words were lost: DOG and\n bird"
    )
    assert second.endswith("🐉🐉🐉")


@pytest.mark.parametrize(
    ("prompt", "clean"),
    [
        ("cats &amp; dogs &lt;3", "cats & dogs <3"),
        ("cafÃ© crÃ¨me", "café crème"),
        ("the artist’s “masterpiece”", 'the artist\'s "masterpiece"'),
        ("ﬁne", "fine"),
    ],
)
def test_ftfy_repairs_prompts_where_that_was_chosen(clip, prompt, clean):
    pytest.importorskip("ftfy")
    repairing = clip_tokenizer(clean="ftfy")
    assert (repairing([prompt]) == clip([clean])).all()
    assert (clip([prompt]) != clip([clean])).any()


def test_without_ftfy_the_option_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    tokenizer = clip_tokenizer(10, clean="ftfy")
    with pytest.raises(UsageError, match="needs the package ftfy: pip install ftfy"):
        tokenizer(["a dog"])


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        ("a dog", r"Give a list of prompts: \['a dog'\]"),
        (["a dog", 5], "The prompt 5 is not a text"),
        ([b"a dog"], "is not a text"),
        (["\ud83d dog"], "half of a character"),
    ],
)
def test_what_is_no_prompt_is_refused(clip, prompts, says):
    for method in (clip, clip.lost_words):
        with pytest.raises(UsageError, match=says):
            method(prompts)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: clip_tokenizer(50_000), r"in 0\.\.48894"),
        (lambda: clip_tokenizer(-1), "num_merges is -1"),
        (lambda: clip_tokenizer(10, length=2), "length is 2"),
        (lambda: clip_tokenizer(10, clean="html"), "Unknown cleaning of prompts 'html'"),
        (lambda: clip_tokenizer(10, pad="[PAD]"), r"lacks the special token '\[PAD\]'"),
        (
            lambda: Tokenizer([("x", "y")], {"<|startoftext|>": 0, "<|endoftext|>": 1}),
            "does not fit the merges",
        ),
        (lambda: parse_merges("#version: 0.2\na b\na b c\n", "merges.txt"), "Line 3 of merges.txt"),
        (lambda: parse_merges("a ", "merges.txt"), "Line 1 of merges.txt"),
    ],
)
def test_what_makes_no_tokenizer_is_refused(make, says):
    with pytest.raises(UsageError, match=says):
        make()


def test_nothing_is_imported_before_a_tokenizer_is_made():
    program = (
        "import sys, ddpm_jax.text.tokenizer_files; "
        "print({'tokenizers', 'ftfy', 'jax', 'huggingface_hub'} & {*sys.modules})"
    )
    environment = {"PYTHONPATH": str(GOLDENS.parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_the_licence_of_the_merges_lies_beside_them():
    folder = GOLDENS.parents[1] / "ddpm_jax" / "text"
    assert "Copyright (c) 2021 OpenAI" in (folder / "clip_merges.LICENSE").read_text()
    assert (folder / "clip_merges.txt.gz").stat().st_size < 210_000
