"""CLIP's image encoder from transformers: every option, sizes, the pictures it is given."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.clip_image import image_encoder_from_config, image_params_from_transformers
from ddpm_jax.interop.clip_text import text_encoder_from_config, text_params_from_transformers
from ddpm_jax.models.image_encoder import OPENCLIP_H, ImageEncoder, check_image_encoder, normalized

from .conftest import perturbed, state_dict

SMALL = {
    "image_size": 12,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
IMAGES = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
OPTIONS = [
    {},
    {"hidden_act": "gelu"},
    {"num_attention_heads": 1},
    {"patch_size": 6, "layer_norm_eps": 1e-2},
    {"num_channels": 1},
]


def count(encoder):
    shape = (1, encoder.image_size, encoder.image_size, encoder.channels)
    params = jax.eval_shape(
        encoder.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32)
    )
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_the_parameters_of_both_encoders_are_counted():
    # the safety checker of Stable Diffusion 1 without its 17 + 3 concepts and their thresholds
    assert count(ImageEncoder()) == 303_981_588 - 20 * 768 - 20
    assert count(OPENCLIP_H) == 632_076_800  # of OpenCLIP's model card


@pytest.mark.full
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options) or "default")
@pytest.mark.parametrize("kind", ["CLIPVisionModel", "CLIPVisionModelWithProjection"])
def test_features_are_those_of_transformers_for_every_option(kind, options):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(**SMALL | {"projection_dim": 24} | options)
    network = perturbed(getattr(transformers, kind)(config))
    network.config.architectures = [kind]
    encoder = image_encoder_from_config(json.loads(network.config.to_json_string(use_diff=False)))
    params = image_params_from_transformers(state_dict(network), encoder)
    images = IMAGES[..., : encoder.channels]
    with torch.no_grad():
        theirs = network(torch.tensor(images.transpose(0, 3, 1, 2)))
    ours = jax.jit(encoder.apply)({"params": params}, images)
    np.testing.assert_allclose(ours.last_state, theirs.last_hidden_state, atol=1e-5)
    if kind == "CLIPVisionModel":
        np.testing.assert_allclose(ours.pooled, theirs.pooler_output, atol=1e-5)
    else:
        np.testing.assert_allclose(ours.projected, theirs.image_embeds, atol=1e-5)


@pytest.mark.full
def test_a_whole_clip_compares_the_same_pictures_and_texts():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    text = {
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "eos_token_id": 59,
    }
    config = transformers.CLIPConfig(text_config=text, vision_config=SMALL, projection_dim=8)
    network = perturbed(transformers.CLIPModel(config))
    whole, tensors = json.loads(network.config.to_json_string(use_diff=False)), state_dict(network)
    ids = np.array([[58, 3, 4, 59], [58, 7, 59, 59]], np.int32)
    with torch.no_grad():
        theirs = network(torch.tensor(ids), torch.tensor(IMAGES.transpose(0, 3, 1, 2)))
    reader, writer = image_encoder_from_config(whole), text_encoder_from_config(whole)
    of_image = {"params": image_params_from_transformers(tensors, reader)}
    of_text = {"params": text_params_from_transformers(tensors, writer)}
    image = jax.jit(reader.apply)(of_image, IMAGES).projected
    words = jax.jit(writer.apply)(of_text, ids).projected
    image, words = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image, words))
    np.testing.assert_allclose(
        np.exp(tensors["logit_scale"]) * image @ words.T, theirs.logits_per_image, atol=1e-4
    )


@pytest.mark.full
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (17, 17), (300, 301)])
def test_pictures_are_given_as_by_transformers(shape):
    transformers = pytest.importorskip("transformers")
    pixels = np.random.default_rng(1).integers(
        0, 256, (2, shape[0] // 4 + 1, shape[1] // 4 + 1, 3), np.uint8
    )
    pixels = pixels.repeat(4, 1).repeat(4, 2)[:, : shape[0], : shape[1]]  # less of noise
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    theirs = np.stack(processor(list(pixels)).pixel_values).transpose(0, 2, 3, 1)
    difference = np.abs(normalized(pixels / 255.0, 32) - theirs)
    # both round to 8 bits, some numbers the other way
    assert difference.max() < 1.1 / 255 / 0.26
    assert (difference > 1e-5).mean() < 0.01


def test_a_picture_of_another_size_is_refused():
    encoder = ImageEncoder(image_size=12, patch_size=4, width=8, layers=1, heads=1, hidden=8)
    with pytest.raises(UsageError, match="The pictures are 8x12x3, and this encoder reads 12x12x3"):
        jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 8, 12, 3)))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"patch_size": 15}, "patch_size 15 does not divide image_size 224"),
        ({"heads": 7}, "heads 7 does not divide width 1024"),
        ({"layers": 0}, "layers is 0"),
        ({"projection": None}, "projection is None"),
        ({"activation": "relu"}, "Unknown activation 'relu'"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
    ],
)
def test_fields_that_make_no_encoder_are_refused(fields, says):
    with pytest.raises(UsageError, match=says):
        check_image_encoder(ImageEncoder().clone(**fields))
    check_image_encoder(OPENCLIP_H)


def test_a_config_of_a_text_encoder_is_refused():
    with pytest.raises(UsageError, match="of a network of type 'clip_text_model'"):
        image_encoder_from_config({"model_type": "clip_text_model"})
