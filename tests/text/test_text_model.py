"""Texts to features: the goldens from every kind of checkpoint, and what is no checkpoint."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.errors import UsageError
from ddpm_jax.text import text_model
from ddpm_jax.text.text_model import encode, load_text_model

from ..conftest import GOLDENS

SD = GOLDENS / "sd"
TEXTS = {
    name: json.loads((SD / "outputs.json").read_text())[name]["text"]["prompts"]
    for name in ("sd1", "sd2")
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The text encoder and the tokenizer of Stable Diffusion 1, without its other parts."""
    path = tmp_path_factory.mktemp("pipeline")
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(SD / "sd1" / part, path / part, copy_function=shutil.copy)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return load_text_model(folder)


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_texts_have_the_ids_and_features_of_the_goldens(name):
    there = np.load(SD / f"{name}_text.npz")
    found = ddpm_jax.text.encode(TEXTS[name], SD / name)
    assert (found.tokens == there["input_ids"]).all()
    np.testing.assert_allclose(found.context, there["last_hidden_state"], atol=1e-5)
    np.testing.assert_allclose(found.pooled, there["pooler_output"], atol=1e-5)
    np.testing.assert_allclose(found.hidden_states[1], there["layer_0"], atol=1e-5)
    assert found.projected is None
    assert len(found.warnings) == 1
    assert "was cut after 75 tokens, these words were lost: cat" in found.warnings[0]


def test_the_layers_to_skip_and_the_precision_are_options(folder):
    there = np.load(SD / "sd1_text.npz")["penultimate_then_final_norm"]
    np.testing.assert_allclose(encode(TEXTS["sd1"], folder, skip=1).context, there, atol=1e-5)
    half = load_text_model(folder, skip=1, dtype="bfloat16")
    assert half.params["token_embedding"].dtype == jnp.bfloat16
    context = np.asarray(half(TEXTS["sd1"]).context, np.float32)
    assert 1e-4 < np.abs(context - there).mean() < 0.05
    with pytest.raises(UsageError, match="skip is 9"):
        load_text_model(folder, skip=9)


def test_an_encoder_s_own_directory_takes_the_tokenizer_within_it_or_beside_it(
    model, folder, tmp_path
):
    beside = load_text_model(folder / "text_encoder")
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(folder / part, tmp_path / "own", dirs_exist_ok=True)
    within = load_text_model(tmp_path / "own")
    for other in (beside, within):
        np.testing.assert_array_equal(other(["a dog"]).context, model(["a dog"]).context)


def test_a_name_on_the_hub_is_fetched_without_the_other_parts(model, folder, monkeypatch):
    asked = []

    def resolve(name, folders):
        asked.append((name, folders))
        return folder

    monkeypatch.setattr(text_model, "resolve", resolve)
    np.testing.assert_array_equal(encode(["a dog"]).context, model(["a dog"]).context)
    assert asked == [("openai/clip-vit-large-patch14", ("text_encoder",))]


def test_what_is_no_checkpoint_is_one_sentence(folder, tmp_path):
    with pytest.raises(UsageError, match="nowhere/at/all is no file and no directory"):
        encode(["a dog"], "nowhere/at/all")
    with pytest.raises(UsageError, match="has no text encoder"):
        encode(["a dog"], tmp_path)
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(UsageError, match="has no tokenizer"):
        encode(["a dog"], copy)
    (copy / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="text_encoder has no weights"):
        encode(["a dog"], copy)


def test_a_tokenizer_with_more_ids_than_the_encoder_has_rows_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    config = tmp_path / "copy" / "tokenizer" / "tokenizer_config.json"
    config.write_text(config.read_text().replace("77", "99"))
    with pytest.raises(UsageError, match="makes 99 ids up to 1513, and its text encoder reads 77"):
        load_text_model(tmp_path / "copy")


@pytest.mark.parametrize(
    ("texts", "says"),
    [([], "no texts to encode"), ("a dog", "a list of prompts"), ([None], "is not a text")],
)
def test_what_is_no_list_of_texts_is_refused(model, texts, says):
    with pytest.raises(UsageError, match=says):
        model(texts)
