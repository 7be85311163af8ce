"""The choice of an attention implementation, and that each computes softmax(q kᵀ / √D) v."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models import attention
from ddpm_jax.models.attention import AttentionBlock, choose_implementation

CUDA = "cuda 13000"


def device(platform, capability=None, version=CUDA):
    client = types.SimpleNamespace(platform_version=version)
    return types.SimpleNamespace(platform=platform, compute_capability=capability, client=client)


@pytest.mark.parametrize(
    ("where", "dtype", "pixels", "head_size", "chosen"),
    [
        (device("gpu", "9.0"), "bfloat16", 256, 256, "cudnn"),  # DDPM's attention, at 16x16
        (device("gpu", "9.0"), "float16", 256, 64, "cudnn"),
        (device("gpu", "12.0"), "bfloat16", 4096, 64, "cudnn"),
        (device("gpu", "8.0"), "bfloat16", 256, 128, "cudnn"),
        (device("gpu", "8.0"), "bfloat16", 256, 256, "products"),  # too large a head for Ampere
        (device("gpu", "7.5"), "bfloat16", 256, 64, "products"),  # no flash attention before it
        (device("gpu", "9.0"), "float32", 256, 256, "products"),
        # the middle of the network, at 4x4
        (device("gpu", "9.0"), "bfloat16", 16, 256, "products"),
        (device("gpu", "9.0"), "bfloat16", 256, 512, "products"),
        (device("gpu", "9.0"), "bfloat16", 256, 36, "products"),
        (device("gpu", "gfx942", "rocm 6"), "bfloat16", 256, 64, "products"),
        (device("tpu"), "bfloat16", 256, 64, "products"),
        (device("cpu"), "bfloat16", 256, 64, "products"),
        (device("cpu"), "float32", 511, 64, "products"),
        (device("cpu"), "float32", 512, 64, "heads"),
        (device("tpu"), "float32", 4096, 64, "products"),
    ],
)
def test_flash_attention_is_chosen_where_cudnn_has_it(where, dtype, pixels, head_size, chosen):
    sizes = {"queries": pixels, "keys": pixels, "head_size": head_size}
    assert choose_implementation(where, jnp.dtype(dtype), **sizes) == chosen


def test_the_block_attends_by_what_was_chosen_for_its_own_heads(monkeypatch):
    asked = []

    def attend(implementation):
        return lambda q, k, v, is_causal: asked.append((q.shape, str(q.dtype), implementation)) or v

    monkeypatch.setattr(
        attention, "IMPLEMENTATIONS", {name: attend(name) for name in attention.IMPLEMENTATIONS}
    )
    monkeypatch.setattr(jax, "local_devices", lambda: [device("gpu", "9.0")])
    for heads, dtype in ((1, jnp.bfloat16), (4, jnp.float32)):
        block = AttentionBlock(heads, dtype=dtype)
        jax.eval_shape(
            lambda x, block=block: block.init_with_output(jax.random.key(0), x),
            jnp.zeros((2, 16, 16, 64), dtype),
        )
    assert asked == [
        ((2, 256, 1, 64), "bfloat16", "cudnn"),
        ((2, 256, 4, 16), "float32", "products"),
    ]


@pytest.mark.full
def test_attention_is_the_softmax_of_the_products_of_float64():
    block, x = AttentionBlock(2), jax.random.normal(jax.random.key(1), (2, 4, 4, 32))
    params = block.init(jax.random.key(0), x)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: (rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[0])).astype(np.float32),
        params,
    )
    ours = block.apply({"params": params}, x)

    p, x64 = jax.tree.map(np.float64, params), np.float64(x)
    # 32 groups of one channel each
    mean, var = (f(x64, axis=(1, 2), keepdims=True) for f in (np.mean, np.var))
    h = ((x64 - mean) / np.sqrt(var + 1e-6) * p["norm"]["scale"] + p["norm"]["bias"]).reshape(
        2, 16, 32
    )
    q, k, v = ((h @ p[n]["kernel"] + p[n]["bias"]).reshape(2, 16, 2, 16) for n in "qkv")
    weights = np.exp(np.einsum("bqnd,bknd->bnqk", q, k) / np.sqrt(16))
    o = np.einsum("bnqk,bknd->bqnd", weights / weights.sum(-1, keepdims=True), v).reshape(2, 16, 32)
    expected = x64 + (o @ p["proj_out"]["kernel"] + p["proj_out"]["bias"]).reshape(x64.shape)
    # float32 sums of at most 32 products
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def heads(tokens, keys, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (2, tokens, 3, 8), (2, keys, 3, 8), (2, keys, 3, 8)
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "is_causal"), [(13, False), (13, True), (5, False), (12, False), (12, True)]
)
@pytest.mark.parametrize("by", [attention.attention_by_products, attention.attention_by_heads])
def test_queries_and_keys_in_pieces_give_what_they_give_at_once_and_so_do_gradients(
    monkeypatch, keys, is_causal, by
):
    q, k, v = heads(13, keys)

    def compute(by):
        def loss(q, k, v):
            out = by(q, k, v, is_causal=is_causal)
            return jnp.sum(jnp.sin(out)), out

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)

    (_, whole), whole_gradients = compute(attention.attention_by_products)
    # a piece of 4 queries: the last of the four is filled up
    monkeypatch.setattr(attention, "PIECE", 4 * 2 * 3 * 4 * keys)
    # and for a head of 3 or 4 keys, or of all where their number has no such divisor
    monkeypatch.setattr(attention, "KEYS", 4)
    monkeypatch.setattr(attention, "PIECE_OF_A_HEAD", 4 * 4 * attention.piece_of_keys(keys))
    (_, pieces), gradients = compute(by)
    np.testing.assert_allclose(pieces, whole, atol=1e-6, rtol=0)
    # sums over the pieces in another order
    for ours, expected in zip(gradients, whole_gradients, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)


def test_weights_that_do_not_fit_are_never_in_memory_at_once():
    # Stable Diffusion's at 64x64, in 8 heads of 40 channels: 537 MB for one image
    heads = jax.ShapeDtypeStruct((1, 4096, 8, 40), jnp.float32)
    whole = 4 * 8 * 4096**2

    def gradient(by):
        return jax.grad(lambda q, k, v: jnp.sum(by(q, k, v)))

    by_products, by_heads = attention.attention_by_products, attention.attention_by_heads
    for compute, copies in (
        (by_products, 2), (by_heads, 2), (gradient(by_products), 4), (gradient(by_heads), 4),
    ):  # fmt: skip
        compiled = jax.jit(compute).lower(heads, heads, heads).compile()
        largest = compiled.memory_analysis().temp_size_in_bytes
        assert largest < copies * attention.PIECE + 2**26 < whole
