"""First stages against diffusers' `AutoencoderKL` and `VQModel` with the same random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.autoencoder_kl import (
    autoencoder_params_from_diffusers,
    autoencoder_params_to_diffusers,
)
from ddpm_jax.models.autoencoder import Autoencoder
from ddpm_jax.variational.quantization import quantize, straight_through

from .conftest import perturbed, state_dict

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[parity]'")
diffusers = pytest.importorskip(
    "diffusers", reason="diffusers is not installed: pip install -e '.[parity]'"
)

SMALL = Autoencoder(resolution=16, ch=32, ch_mult=(1, 2), num_res_blocks=1, latent_channels=3)
VQ = SMALL.clone(moments=False, num_codes=16)


def peer(model):
    """Their network of our fields, with random weights none of which is zero."""
    attends = [
        model.resolution // 2**i in model.attn_resolutions for i in range(len(model.ch_mult))
    ]
    fields = {
        "in_channels": model.image_channels,
        "out_channels": model.out_channels,
        "down_block_types": tuple(
            "AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends
        ),
        "up_block_types": tuple(
            "AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)
        ),
        "block_out_channels": tuple(model.ch * mult for mult in model.ch_mult),
        "layers_per_block": model.num_res_blocks,
        "latent_channels": model.latent_channels,
        "norm_num_groups": model.norm_groups,
    }
    if model.num_codes:
        network = diffusers.VQModel(num_vq_embeddings=model.num_codes, **fields)
    else:
        network = diffusers.AutoencoderKL(**fields)
    return perturbed(network)


def theirs(call, x):
    """Apply one of their functions to images of our layout."""
    with torch.no_grad():
        return call(torch.tensor(np.asarray(x).transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def ours(model, method, params, x):
    return model.apply({"params": params}, x, method=method)


def assert_same(actual, expected):
    """Float32 sums in another order, some 20 layers deep: 1e-5 of the largest output."""
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def image(height, width, channels):
    return np.random.default_rng(0).normal(size=(2, height, width, channels)).astype(np.float32)


@pytest.fixture(scope="module")
def weights():
    return state_dict(peer(SMALL))


@pytest.mark.parametrize(
    ("fields", "height", "width"),
    [
        ({}, 16, 16),
        # Attention on the way too, three levels of which one keeps its channels, not square, grey,
        # a scale each pixel.
        (
            {
                "ch_mult": (1, 1, 2),
                "attn_resolutions": (8,),
                "num_res_blocks": 2,
                "image_channels": 1,
                "out_channels": 2,
                "latent_channels": 4,
                "norm_groups": 8,
            },
            8,
            24,
        ),
        # one level: latents as large as the image
        ({"ch_mult": (1,), "shared_log_scale": -1.5}, 8, 8),
    ],
)
def test_moments_and_decoded_images_are_those_of_autoencoder_kl(fields, height, width):
    model = SMALL.clone(**fields)
    network = peer(model)
    params = autoencoder_params_from_diffusers(state_dict(network), model)
    x = image(height, width, model.image_channels)
    moments = theirs(lambda x: network.encode(x).latent_dist.parameters, x)
    assert moments.shape == (
        2,
        height // model.factor,
        width // model.factor,
        2 * model.latent_channels,
    )
    assert_same(ours(model, "encode", params, x), moments)
    z = moments[..., : model.latent_channels]
    decoded = theirs(lambda z: network.decode(z).sample, z)
    assert decoded.shape == (2, height, width, model.out_channels)
    assert_same(ours(model, "decode", params, z), decoded)


@pytest.mark.parametrize(
    "fields", [{}, {"attn_resolutions": (16,), "num_codes": 40, "latent_channels": 5}]
)
def test_vectors_codes_and_reconstructions_are_those_of_vq_model(fields):
    model = VQ.clone(**fields)
    network = peer(model)
    params = autoencoder_params_from_diffusers(state_dict(network), model)
    x = image(16, 16, 3)
    z = ours(model, "encode", params, x)
    assert_same(z, theirs(lambda x: network.encode(x).latents, x))
    codes, index = quantize(z, params["codebook"])
    with torch.no_grad():
        _, _, (_, _, their_index) = network.quantize(
            torch.tensor(np.asarray(z).transpose(0, 3, 1, 2))
        )
    assert len(np.unique(index)) > 3
    np.testing.assert_array_equal(index.reshape(-1), their_index.numpy())
    decoded = ours(model, "decode", params, straight_through(z, codes))
    assert_same(decoded, theirs(lambda x: network(x).sample, x))
    straight = ours(model, "decode", params, z)
    assert_same(straight, theirs(lambda z: network.decode(z, force_not_quantize=True).sample, z))
    np.testing.assert_array_equal(ours(model, "__call__", params, x), straight)


def test_old_and_new_attention_names_are_the_same_weights(weights):
    new_to_old = {
        ".to_q.": ".query.",
        ".to_k.": ".key.",
        ".to_v.": ".value.",
        ".to_out.0.": ".proj_attn.",
    }
    old = {}
    for name, value in weights.items():
        for new_name, old_name in new_to_old.items():
            name = name.replace(new_name, old_name)
        old[name] = value
    # of encoder and decoder, 4 maps with weight and bias each
    assert len(set(weights) - set(old)) == 16
    jax.tree.map(
        np.testing.assert_array_equal,
        autoencoder_params_from_diffusers(old, SMALL),
        autoencoder_params_from_diffusers(weights, SMALL),
    )


@pytest.mark.parametrize("model", [SMALL, VQ])
def test_there_and_back_is_the_identity_and_diffusers_loads_it(model):
    network = peer(model)
    weights = state_dict(network)
    back = autoencoder_params_to_diffusers(autoencoder_params_from_diffusers(weights, model), model)
    assert set(back) == set(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    network.load_state_dict(
        {name: torch.tensor(value) for name, value in back.items()}, strict=True
    )


def test_the_shared_scale_is_left_out_there_and_starts_anew_back(weights):
    model = SMALL.clone(shared_log_scale=-1.5)
    params = autoencoder_params_from_diffusers(weights, model)
    assert params["log_scale"] == -1.5
    there = autoencoder_params_to_diffusers(params | {"log_scale": np.float32(0.25)}, model)
    assert set(there) == set(weights)
    image = jnp.zeros((1, 16, 16, 3))
    initial = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, initial)


def test_missing_left_over_and_misshapen_tensors_are_named(weights):
    with pytest.raises(UsageError, match=r"lacks quant_conv\.bias: give the first stage"):
        autoencoder_params_from_diffusers(
            {k: v for k, v in weights.items() if k != "quant_conv.bias"}, SMALL
        )
    with pytest.raises(UsageError, match=r"has, beyond the network's, quantize\.embedding\.weight"):
        autoencoder_params_from_diffusers(
            {**weights, "quantize.embedding.weight": np.zeros((16, 3))}, SMALL
        )
    with pytest.raises(UsageError, match=r"lacks quantize\.embedding\.weight"):
        autoencoder_params_from_diffusers(weights, VQ)
    with pytest.raises(
        UsageError, match=r"encoder\.conv_in\.weight .* the first stage has \(3, 3, 1, 32\)"
    ):
        autoencoder_params_from_diffusers(weights, SMALL.clone(image_channels=1))
