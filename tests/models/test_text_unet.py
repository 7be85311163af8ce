"""The U-Net that looks at a text: sizes of the published networks, what looks at what, precision."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.models import cross_attention
from ddpm_jax.models.condition import null_condition
from ddpm_jax.models.cross_attention import Transformer, TransformerBlock
from ddpm_jax.models.text_unet import TextUNet, check_text_unet

TINY = TextUNet(
    resolution=8, ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(8,), context_size=6
)


def shapes(unet, side=8):
    x = jax.ShapeDtypeStruct((1, side, side, 4), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    return jax.eval_shape(unet.init, jax.random.key(0), x, t, null_condition(unet, x))["params"]


@pytest.mark.full
@pytest.mark.parametrize(
    ("unet", "parameters"),
    [
        (TextUNet(), 859_520_964),  # Stable Diffusion 1.x
        (TextUNet(num_heads=(5, 10, 20, 20), context_size=1024), 865_910_724),  # 2.x
    ],
)
def test_the_network_has_the_parameters_of_stable_diffusion(unet, parameters):
    leaves = jax.tree.leaves(shapes(unet))
    assert sum(leaf.size for leaf in leaves) == parameters
    assert len(leaves) == 686


def drawn(shape_tree, seed=0):
    """Return parameters none of which is zero."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        fan_in = max(1, math.prod(leaf.shape[:-1]))
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(fan_in), jnp.float32)

    return jax.tree.map(draw, shape_tree)


def block_in_float64(p, x, context, heads, only_cross):
    """Return the output of a transformer block, written out token by token and head by head."""
    from scipy.special import erf

    def norm(x, p):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p[
            "scale"
        ] + p["bias"]

    def attend(x, context, p):
        size = x.shape[1] // heads
        outputs = []
        for n in range(heads):
            part = slice(n * size, (n + 1) * size)
            q, k, v = (
                a @ p[name]["kernel"][:, part]
                for name, a in (("q", x), ("k", context), ("v", context))
            )
            weights = np.exp(q @ k.T / np.sqrt(size))
            outputs.append(weights / weights.sum(-1, keepdims=True) @ v)
        return np.concatenate(outputs, -1) @ p["proj_out"]["kernel"] + p["proj_out"]["bias"]

    h = norm(x, p["norm1"])
    x = x + attend(h, context if only_cross else h, p["attn1"])
    x = x + attend(norm(x, p["norm2"]), context, p["attn2"])
    h = norm(x, p["norm3"]) @ p["mlp_dense0"]["kernel"] + p["mlp_dense0"]["bias"]
    value, gate = np.split(h, 2, axis=-1)
    h = value * gate * (1 + erf(gate / np.sqrt(2))) / 2
    return x + h @ p["mlp_dense1"]["kernel"] + p["mlp_dense1"]["bias"]


@pytest.mark.parametrize("only_cross", [False, True])
def test_a_block_is_attention_to_pixels_attention_to_the_text_and_a_gated_mlp(only_cross):
    rng = np.random.default_rng(1)
    x, context = rng.normal(size=(2, 7, 12)), rng.normal(size=(2, 5, 6))
    block = TransformerBlock(3, only_cross)
    inputs = jnp.asarray(x, jnp.float32), jnp.asarray(context, jnp.float32)
    params = drawn(jax.eval_shape(block.init, jax.random.key(0), *inputs)["params"])
    ours = jax.jit(block.apply)({"params": params}, *inputs)
    p = jax.tree.map(np.float64, params)
    expected = np.stack(
        [block_in_float64(p, *pair, 3, only_cross) for pair in zip(x, context, strict=True)]
    )
    # float32 sums of a few terms
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.full
def test_an_mlp_of_one_piece_after_another_is_the_same_layer(monkeypatch):
    x, context = (
        jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)
        for shape in ((2, 6, 12), (2, 5, 6))
    )
    block, traced = TransformerBlock(3), []

    def compute():
        def loss(params, x):
            y = block.apply({"params": params}, x, context)
            return jnp.sum(jnp.sin(y)), y

        params = jax.jit(block.init)(jax.random.key(0), x, context)["params"]
        gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)
        traced.append(str(jax.make_jaxpr(gradient)(params, x)).count("scan["))
        return params, jax.jit(gradient)(params, x)

    whole = compute()
    monkeypatch.setattr(cross_attention, "PIECE_OF_AN_MLP", 4 * 96 * 5)  # at most 5 of 12 tokens
    pieces = compute()
    assert traced == [0, 2]  # forward and backward
    # sums over the tokens in another order
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=0), pieces, whole)


@pytest.mark.parametrize(
    ("tokens", "width", "count"),
    [
        (2 * 4096, 2560, 8),  # the levels of Stable Diffusion with guidance: 10 MB each
        (2 * 1024, 5120, 4),
        (2 * 256, 10240, 2),
        (2 * 64, 10240, 1),
        (8191, 2560, 1),  # a prime number of tokens
    ],
)
def test_an_mlp_is_split_into_equal_pieces_that_fit_a_cache(tokens, width, count):
    assert cross_attention.num_pieces(tokens, 4 * width) == count


def test_the_normalisation_before_a_transformer_has_an_epsilon_of_its_own():
    x, context = jnp.zeros((1, 2, 2, 32)), jnp.zeros((1, 1, 6))
    x = x.at[0, 0, 0].set(1e-3)  # of a variance like the epsilon
    transformer = Transformer(2, depth=0)
    params = drawn(jax.eval_shape(transformer.init, jax.random.key(0), x, context)["params"])
    p = jax.tree.map(np.float64, params)
    h = (np.float64(x) - 2.5e-4) / np.sqrt(np.float64(x).var(axis=(1, 2)) + 1e-6)[:, None, None]
    h = h * p["norm"]["scale"] + p["norm"]["bias"]
    for name in ("proj_in", "proj_out"):
        h = h @ p[name]["kernel"] + p[name]["bias"]
    np.testing.assert_allclose(
        transformer.apply({"params": params}, x, context), np.float64(x) + h, atol=1e-5, rtol=0
    )


def test_a_network_without_a_null_class_has_a_row_for_each_class_and_no_more():
    for null_class, rows in ((True, 8), (False, 7)):
        unet = TINY.clone(num_classes=7, null_class=null_class)
        x = jnp.zeros((1, 8, 8, 4))
        assert shapes(unet)["class_embedding"]["embedding"].shape == (rows, 128)
        assert null_condition(unet, x).label == (7 if null_class else 0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"context_size": 0}, "context_size is 0"),
        ({"num_heads": (4, 4, 4)}, "num_heads has 3 values"),
        ({"num_heads": (4, 3)}, "num_heads 3 does not divide the 32 channels"),
        ({"num_heads": (0, 4)}, "num_heads is 0"),
        ({"depth": (1, 0)}, "depth is 0"),
        ({"only_cross_attention": (True,)}, "only_cross_attention has 1 values"),
        ({"mid_block": "resnet"}, "Unknown middle 'resnet'"),
        ({"time_embedding": "sines"}, "Unknown time embedding"),
        ({"out_channels": 0}, "out_channels is 0"),
    ],
)
def test_what_cannot_be_built_is_refused(fields, said):
    with pytest.raises(UsageError) as refused:
        check_text_unet(TINY.clone(**fields), 8, 8)
    assert said in str(refused.value)


def test_a_network_without_its_text_is_refused():
    with pytest.raises(UsageError, match="needs a text"):
        jax.eval_shape(TINY.init, jax.random.key(0), jnp.zeros((1, 8, 8, 4)), jnp.zeros(1))
