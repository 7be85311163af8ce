"""Tokenizers in directories: every layout, what each file decides, what is refused."""

import json
import shutil

import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.text.tokenizer import clip_tokenizer
from ddpm_jax.text.tokenizer_files import read_tokenizer, write_tokenizer

from ..conftest import GOLDENS
from .conftest import generated_prompts

SD1, SD2 = (GOLDENS / "sd" / name / "tokenizer" for name in ("sd1", "sd2"))
PROMPTS = [
    "a dog wearing hat",
    "hi! there!!",
    "<|STARTOFTEXT|> x <|ENDOFTEXT|>",
    "",
    "cat " * 90,
    "🐱",
]
ENDS = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}


def golden_text(name):
    return np.load(GOLDENS / "sd" / f"{name}_text.npz")


@pytest.fixture
def folder(tmp_path):
    """A directory of a tokenizer, to be changed."""
    return shutil.copytree(SD1, tmp_path / "tokenizer", copy_function=shutil.copy)


def test_small_vocabularies_have_the_ids_of_the_goldens():
    runs = json.loads((GOLDENS / "sd" / "outputs.json").read_text())
    for name, place, pad in (("sd1", SD1, 1513), ("sd2", SD2, 0)):
        tokenizer = read_tokenizer(place)
        assert tokenizer.pad_id == pad
        assert (tokenizer(runs[name]["text"]["prompts"]) == golden_text(name)["input_ids"]).all()


def test_merges_alone_are_enough(folder):
    whole = read_tokenizer(folder)
    for name in ("vocab.json", "special_tokens_map.json", "tokenizer_config.json"):
        (folder / name).unlink()
    alone = read_tokenizer(folder)
    assert alone.vocabulary == whole.vocabulary
    assert alone.length == 77


def test_the_map_decides_about_the_padding(folder):
    """As in Stable Diffusion 2, whose two files disagree."""
    tokens = json.loads((folder / "special_tokens_map.json").read_text())
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens | {"pad_token": "!"}))
    tokenizer = read_tokenizer(folder)
    assert tokenizer.pad_id == 0
    # then it is a special token in a prompt too
    assert tokenizer(["hi!"])[0, 3] == 0
    assert read_tokenizer(SD1)(["hi!"])[0, 3] == 256


def test_the_length_is_that_of_the_files_unless_given(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for said, length in ((16, 16), (10**30, 77), (None, 77)):
        text = json.dumps(config | {"model_max_length": said}).replace(str(10**30), "1e30")
        (folder / "tokenizer_config.json").write_text(text)
        assert read_tokenizer(folder).length == length
    assert read_tokenizer(folder, length=20)(["a dog"]).shape == (1, 20)


@pytest.mark.parametrize("place", [SD1, SD2], ids=["sd1", "sd2"])
def test_what_is_written_is_read_again(place, tmp_path):
    tokenizer = read_tokenizer(place)
    write_tokenizer(tokenizer, tmp_path / "new" / "tokenizer")
    again = read_tokenizer(tmp_path / "new" / "tokenizer")
    assert (again.vocabulary, again.merges) == (tokenizer.vocabulary, tokenizer.merges)
    assert (again.special, again.length) == (tokenizer.special, tokenizer.length)


@pytest.mark.full
@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_transformers_reads_and_writes_the_same_tokenizers(tmp_path, pad):
    transformers = pytest.importorskip("transformers")
    prompts = PROMPTS + generated_prompts(500, seed=3)

    def theirs(place):
        tokenizer = transformers.CLIPTokenizer.from_pretrained(place)
        return np.array(
            tokenizer(prompts, padding="max_length", max_length=77, truncation=True).input_ids
        )

    ours = clip_tokenizer(2000, pad=pad)
    write_tokenizer(ours, tmp_path / "ours")
    assert (theirs(tmp_path / "ours") == ours(prompts)).all()
    # transformers 5 writes tokenizer.json alone
    transformers.CLIPTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(
        tmp_path / "theirs"
    )
    assert (read_tokenizer(tmp_path / "theirs")(prompts) == ours(prompts)).all()
    # both kinds of special tokens, and a map against a config
    objects = {
        name: {"content": token, "normalized": True}
        | dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
        for name, token in ENDS.items()
    }
    (tmp_path / "ours" / "special_tokens_map.json").write_text(
        json.dumps(objects | {"pad_token": pad})
    )
    assert (read_tokenizer(tmp_path / "ours")(prompts) == theirs(tmp_path / "ours")).all()


@pytest.mark.full
@pytest.mark.parametrize("place", [SD1, SD2], ids=["sd1", "sd2"])
def test_transformers_has_the_same_ids_for_the_goldens_tokenizers(place):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(place)
    prompts = PROMPTS + generated_prompts(500, seed=4)
    theirs = tokenizer(prompts, padding="max_length", max_length=77, truncation=True).input_ids
    assert (read_tokenizer(place)(prompts) == np.array(theirs)).all()


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"has no tokenizer: vocab.json and merges.txt"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("vocab.json", b"{", "vocab.json is damaged: it is no JSON"),
        ("vocab.json", b'{"a": -1}', r"vocab.json is damaged: its a is -1"),
        ("vocab.json", b'{"a": 0}', "lacks the special token"),
        ("merges.txt", b"\xff\xfe", "merges.txt is damaged: it is no text"),
        ("merges.txt", b"a b c\n", "Line 1 of .*merges.txt"),
        ("merges.txt", b"a zebra\n", "does not fit the merges"),
        ("special_tokens_map.json", b'{"pad_token": {"id": 5}}', "special tokens in .* are damaged"),
        ("special_tokens_map.json", b'{"pad_token": 5}', "special tokens in .* are damaged"),
        ("special_tokens_map.json", b'{"pad_token": "[PAD]"}', r"lacks the special token '\[PAD\]'"),
        ("tokenizer.json", b'{"model": {"type": "WordPiece", "vocab": {}, "merges": []}}', "type 'WordPiece'"),
        ("tokenizer.json", b'{"model": {"vocab": {}, "merges": [5]}}', "tokenizer.json is damaged"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 0}}}', "it has no model.merges"),
        (
            "tokenizer.json",
            b'{"model": {"vocab": {}, "merges": []}, "added_tokens": [{"content": "<cat-toy>", "id": 3}]}',
            "has the added token '<cat-toy>'",
        ),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_sentence(folder, name, content, says):
    (folder / name).write_bytes(content)
    with pytest.raises(UsageError, match=says):
        read_tokenizer(folder)


def test_a_file_that_cannot_be_read_is_one_sentence(folder):
    (folder / "vocab.json").unlink()
    (folder / "vocab.json").mkdir()
    with pytest.raises(UsageError, match=r"vocab.json cannot be read \(a folder\)"):
        read_tokenizer(folder)
