"""CLIP's text encoder from transformers: the goldens of Stable Diffusion, every option, configs."""

import json

import jax
import numpy as np
import pytest

from ddpm_jax.archives import read_safetensors
from ddpm_jax.errors import UsageError
from ddpm_jax.interop.clip_text import (
    config_from_text_encoder,
    text_encoder_from_config,
    text_params_from_transformers,
    text_params_to_transformers,
)
from ddpm_jax.models.text_encoder import STABLE_DIFFUSION_2, TextEncoder

from ..conftest import GOLDENS
from .conftest import perturbed, state_dict

TOLERANCE = 1e-5  # float32 is 3e-6 from float64 there, on values up to 5
SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 10,
}
IDS = np.random.default_rng(0).integers(3, 59, (3, 10))
IDS[:, 6:] = 59


def golden(name):
    """Return the encoder, its tensors in transformers' names and what transformers computes."""
    place = GOLDENS / "sd" / name / "text_encoder"
    encoder = text_encoder_from_config(json.loads((place / "config.json").read_text()))
    tensors = read_safetensors((place / "model.safetensors").read_bytes())
    return encoder, tensors, np.load(GOLDENS / "sd" / f"{name}_text.npz")


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_the_features_are_those_of_the_goldens(name):
    encoder, tensors, there = golden(name)
    params = text_params_from_transformers(tensors, encoder)
    ids = there["input_ids"].astype(np.int32)

    @jax.jit
    def encode(params):
        features = encoder.apply({"params": params}, ids)
        return features, encoder.clone(skip=1).apply({"params": params}, ids).context

    features, penultimate = encode(params)
    assert len(features.hidden_states) == encoder.layers + 1
    for ours, theirs in (
        (features.hidden_states[0], there["embeddings"]),
        (features.hidden_states[1], there["layer_0"]),
        (features.context, there["last_hidden_state"]),
        (features.context, there["last_hidden_state_from_f64"]),
        (features.pooled, there["pooler_output"]),
        (penultimate, there["penultimate_then_final_norm"]),
    ):
        assert np.abs(theirs).max() > 1
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_parameters_come_back_as_they_were_under_names_with_the_prefix(name):
    encoder, tensors, _ = golden(name)
    back = text_params_to_transformers(text_params_from_transformers(tensors, encoder), encoder)
    plain = {
        key.removeprefix("text_model."): value
        for key, value in tensors.items()
        if "position_ids" not in key
    }
    assert all(key.startswith("text_model.") for key in back)
    assert {key.removeprefix("text_model.") for key in back} == set(plain)
    for key, value in back.items():
        np.testing.assert_array_equal(value, plain[key.removeprefix("text_model.")])


def test_the_released_encoders_are_read_from_their_configs():
    sd1 = {  # of Stable Diffusion 1.4, and of 2.1
        "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"], "attention_dropout": 0.0,
        "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768,
        "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 12,
        "num_hidden_layers": 12, "pad_token_id": 1, "torch_dtype": "float32", "transformers_version": "4.21.0.dev0",
        "vocab_size": 49408,
    }  # fmt: skip
    sd2 = sd1 | {
        "hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
        "num_hidden_layers": 23, "projection_dim": 512,
    }  # fmt: skip
    assert text_encoder_from_config(sd1) == TextEncoder()
    assert text_encoder_from_config(sd2) == STABLE_DIFFUSION_2
    for encoder in (TextEncoder(), STABLE_DIFFUSION_2, TextEncoder(end_id=49_407, projection=768)):
        assert text_encoder_from_config(config_from_text_encoder(encoder)) == encoder


def test_a_whole_clip_has_its_text_encoder_within_it():
    whole = {
        "model_type": "clip",
        "projection_dim": 24,
        "text_config": SMALL | {"projection_dim": 512},
        "logit_scale_init_value": 2.6592,
    }
    encoder = text_encoder_from_config(whole)
    assert (encoder.width, encoder.projection, encoder.end_id) == (32, 24, 49_407)
    assert text_encoder_from_config({"model_type": "clip"}) == TextEncoder(
        width=512, heads=8, hidden=2048, end_id=49_407, projection=512
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_act": "relu"}, "Unknown activation 'relu'"),
        ({"num_attention_heads": 5}, "heads 5 does not divide width 32"),
        ({"hidden_size": "32"}, "its hidden_size is '32'"),
        ({"layer_norm_eps": None}, "its layer_norm_eps is null"),
        ({"eos_token_id": [1, 2]}, r"its eos_token_id is \[1, 2\]"),
        ({"rotary_base": 10_000}, "has the option rotary_base = 10000, which is not known"),
        ({"pruned_heads": {"1": [0]}}, "has the option pruned_heads"),
        ({"model_type": "t5"}, "network of type 't5'"),
        ({"model_type": "clip_vision_model"}, "network of type 'clip_vision_model'"),
    ],
)
def test_a_config_of_another_network_is_refused(changes, says):
    with pytest.raises(UsageError, match=says):
        text_encoder_from_config(SMALL | changes)
    text_encoder_from_config(
        SMALL | {"pruned_heads": {}, "add_cross_attention": False, "prefix": None}
    )


def test_what_a_state_dict_lacks_or_has_too_much_is_named():
    encoder, tensors, _ = golden("sd1")
    for change, says in (
        (
            {"text_model.encoder.layers.3.mlp.fc1.bias": np.zeros(192, np.float32)},
            r"has, beyond the network's, encoder\.layers\.3\.mlp\.fc1\.bias",
        ),
        ({"text_model.final_layer_norm.bias": None}, r"lacks final_layer_norm\.bias"),
        ({"text_model.final_layer_norm.bias": np.zeros(5, np.float32)}, r"has shape \(5,\)"),
        ({"text_model.final_layer_norm.bias": np.full(48, np.nan, np.float32)}, "holds nan"),
    ):
        changed = {name: value for name, value in (tensors | change).items() if value is not None}
        with pytest.raises(UsageError, match=says):
            text_params_from_transformers(changed, encoder)


OPTIONS = [
    {},
    {"hidden_act": "gelu"},
    {"num_hidden_layers": 1, "num_attention_heads": 1},
    {"layer_norm_eps": 1e-2},
    {"eos_token_id": 2},
    {"eos_token_id": 7},
    {"intermediate_size": 8, "vocab_size": 1000},
]


@pytest.mark.full
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options) or "default")
@pytest.mark.parametrize("kind", ["CLIPTextModel", "CLIPTextModelWithProjection"])
def test_features_are_those_of_transformers_for_every_option(kind, options):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(
        **SMALL | {"eos_token_id": 59, "projection_dim": 24} | options
    )
    network = perturbed(getattr(transformers, kind)(config))
    network.config.architectures = [kind]
    encoder = text_encoder_from_config(json.loads(network.config.to_json_string(use_diff=False)))
    params = text_params_from_transformers(state_dict(network), encoder)
    ids = np.where(IDS == 20, 7, IDS)
    with torch.no_grad():
        theirs = network(torch.tensor(ids), output_hidden_states=True)
    ours = jax.jit(encoder.apply)({"params": params}, ids.astype(np.int32))
    np.testing.assert_allclose(ours.context, theirs.last_hidden_state, atol=TOLERANCE)
    for state, there in zip(ours.hidden_states[:-1], theirs.hidden_states[:-1], strict=True):
        np.testing.assert_allclose(state, there, atol=TOLERANCE)
    if kind == "CLIPTextModel":
        np.testing.assert_allclose(ours.pooled, theirs.pooler_output, atol=TOLERANCE)
    else:
        np.testing.assert_allclose(ours.projected, theirs.text_embeds, atol=TOLERANCE)


@pytest.mark.full
def test_transformers_reads_what_is_written(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    save_file = pytest.importorskip("safetensors.numpy").save_file
    encoder, tensors, there = golden("sd2")
    params = text_params_from_transformers(tensors, encoder)
    save_file(
        text_params_to_transformers(params, encoder),
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    (tmp_path / "config.json").write_text(json.dumps(config_from_text_encoder(encoder)))
    network = transformers.CLIPTextModel.from_pretrained(tmp_path)
    with torch.no_grad():
        features = network(torch.tensor(there["input_ids"])).last_hidden_state
    np.testing.assert_allclose(features, there["last_hidden_state"], atol=TOLERANCE)
