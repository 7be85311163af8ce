"""DINOv2's weights: the authors' file and transformers' directory, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.dinov2_weights import dinov2_from_tensors
from ddpm_jax.models.vision_transformer import VisionTransformer, bicubic_weights

from ..conftest import GOLDENS
from .dinov2_files import HEADS, WIDTH, as_the_authors, random_state


def pictures(size):
    return np.random.default_rng(size).normal(size=(2, size, size, 3)).astype(np.float32)


def program(network):
    return jax.jit(lambda params, x: network.apply({"params": params}, x))


@pytest.mark.parametrize(("kind", "gated"), [("mlp", False), ("gated", True)])
@pytest.mark.parametrize("size", [28, 70, 112])
def test_features_are_those_of_transformers_at_every_size(kind, gated, size):
    with np.load(GOLDENS / "dinov2.npz") as goldens:
        expected = goldens[f"{kind}_{size}"]
    network, params = dinov2_from_tensors(random_state(gated), heads=HEADS, offset=0.0)
    assert network.gated == gated
    found = program(network)(params, pictures(size))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("gated", [False, True])
def test_random_networks_are_those_of_transformers(gated, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.Dinov2Config(
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=56,
        patch_size=8,
        use_swiglu_ffn=gated,
    )
    theirs = transformers.Dinov2Model(config).eval()
    for parameter in theirs.parameters():
        parameter.data.normal_(0, 0.2)
    theirs.save_pretrained(tmp_path)
    from safetensors.numpy import load_file

    network, params = dinov2_from_tensors(load_file(tmp_path / "model.safetensors"), offset=0.0)
    assert (network.heads, network.patch_size, network.side) == (2, 8, 7)
    x = pictures(40)
    with torch.no_grad():
        expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).last_hidden_state[:, 0]
    np.testing.assert_allclose(program(network)(params, x), expected, atol=1e-4)


@pytest.mark.parametrize("gated", [False, True])
def test_the_authors_file_is_the_same_network(gated):
    state = random_state(gated)
    ours, theirs = (dinov2_from_tensors(s) for s in (state, as_the_authors(state)))
    assert ours[0] == theirs[0]
    jax.tree.map(np.testing.assert_array_equal, ours[1], theirs[1])


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"width": 384, "layers": 12, "heads": 6, "hidden": 1536}, 22_056_576),
        ({"width": 768, "layers": 12, "heads": 12, "hidden": 3072}, 86_580_480),
        ({}, 304_368_640),
        pytest.param(
            {"width": 1536, "layers": 40, "heads": 24, "hidden": 4096, "gated": True},
            1_136_480_768,
            marks=pytest.mark.full,
        ),
    ],
)
def test_the_released_networks_have_their_number_of_parameters(options, parameters):
    """The numbers are of the authors' state dicts, which have the token of masked patches too."""
    network = VisionTransformer(**options)
    shapes = jax.eval_shape(
        network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 14, 14, 3), jnp.float32)
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count + network.width == parameters


def reference_weights(before, after, scale):
    """Bicubic interpolation written out, pixel by pixel."""
    weights = np.zeros((after, before))
    for i in range(after):
        place = (i + 0.5) / scale - 0.5
        for j in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            x, a = abs(place - j), -0.75
            w = (
                (a + 2) * x**3 - (a + 3) * x**2 + 1
                if x <= 1
                else a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
            )
            weights[i, min(max(j, 0), before - 1)] += w
    return weights


@pytest.mark.parametrize("offset", [0.0, 0.1])
@pytest.mark.parametrize(("before", "after"), [(37, 16), (5, 8), (4, 4)])
def test_positions_are_interpolated_bicubically(before, after, offset):
    scale = (after + offset) / before
    found = bicubic_weights(before, after, scale)
    np.testing.assert_allclose(found, reference_weights(before, after, scale), atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(("before", "after"), [(37, 16), (5, 8)])
def test_the_offset_of_the_authors_is_their_call_of_pytorch(before, after):
    torch = pytest.importorskip("torch")
    scale = (after + 0.1) / before
    grid = np.random.default_rng(0).normal(size=(1, 3, before, before)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.tensor(grid), scale_factor=(scale, scale), mode="bicubic"
    )
    weights = bicubic_weights(before, after, scale)
    found = np.einsum("ij,bcjk,lk->bcil", weights, grid, weights)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def changed(**changes):
    state = random_state() | changes
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"a.weight": np.zeros(3, np.float32)}, "none of DINOv2, in which pos_embed is missing"),
        (changed(**{"encoder.layer.1.norm1.bias": None}), "lacks blocks.1.norm1.bias"),
        (changed(register_tokens=np.zeros((1, 4, WIDTH))), "beyond the network's, register_tok"),
        (changed(**{"encoder.layer.0.norm2.bias": np.zeros(3)}), "norm2.bias of the state dict"),
        (changed(**{"embeddings.position_embeddings": np.zeros((1, 26))}), "has the shape"),
        (changed(**{"layernorm.bias": np.full(WIDTH, np.nan)}), "no finite number"),
    ],
)
def test_other_weights_are_refused(state, sentence):
    with pytest.raises(UsageError, match=sentence):
        dinov2_from_tensors(state, heads=HEADS)
