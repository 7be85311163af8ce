"""The U-Net with linear attention: its fields, its attention in float64, what it refuses.

Its outputs are compared with those of denoising-diffusion-pytorch in
tests/families/test_denoising_diffusion_pytorch.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.models.condition import Condition
from ddpm_jax.models.linear_unet import (
    MEMORY,
    LinearUNet,
    MemoryAttention,
    check_linear_unet,
    stacked,
)

SMALL = LinearUNet(ch=8, ch_mult=(1, 2), full_attention=(1,), heads=2, head_channels=4)
X = np.random.default_rng(0).normal(size=(2, 8, 4, 3)).astype(np.float32)
T = np.array([0, 999])


@functools.partial(jax.jit, static_argnums=0)
def apply(unet, params, x=X, keys=None):
    return unet.apply({"params": params}, x, T, dropout_keys=keys)


@pytest.fixture(scope="module")
def params():
    shapes, rng = jax.eval_shape(SMALL.init, jax.random.key(0), X, T), np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype("f"), shapes["params"])


@pytest.mark.full
def test_linear_attention_is_a_sum_over_pixels_in_float64():
    """Every pixel's output is its query's distribution over channels of sums over all pixels."""
    layer = MemoryAttention(2, 4, linear=True, dtype=jnp.float32)
    x = X @ np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)
    params = layer.init(jax.random.key(0), x)["params"]
    p = jax.tree.map(np.float64, params)

    def norm(x, scale):
        return x / np.linalg.norm(x, axis=-1, keepdims=True) * np.sqrt(x.shape[-1]) * scale

    def softmax(x, axis):
        e = np.exp(x - x.max(axis=axis, keepdims=True))
        return e / e.sum(axis=axis, keepdims=True)

    expected = np.float64(x)
    for b in range(2):
        pixels = np.float64(x[b]).reshape(-1, 6)
        qkv = norm(pixels, p["norm"]["scale"]) @ p["qkv"]["kernel"]
        heads = []
        for n in range(2):
            q, k, v = (qkv[:, 8 * i + 4 * n : 8 * i + 4 * n + 4] for i in range(3))
            k, v = (np.concatenate([p["memory"][i, :, n], part]) for i, part in enumerate((k, v)))
            assert len(k) == MEMORY + len(pixels)
            sums = softmax(k, axis=0).T @ v
            heads.append(softmax(q, axis=1) / 2 @ sums)
        out = np.concatenate(heads, axis=1) @ p["proj_out"]["kernel"] + p["proj_out"]["bias"]
        expected[b] += norm(out, p["norm_out"]["scale"]).reshape(x.shape[1:])
    actual = layer.apply({"params": params}, x)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_four_pixels_become_one_with_their_values_side_by_side():
    x = jnp.arange(2 * 2 * 4 * 3).reshape(2, 2, 4, 3)
    result = stacked(x)
    assert result.shape == (2, 1, 2, 12)
    np.testing.assert_array_equal(result[1, 0, 1, 4:8], x[1, :, 2:4, 1].reshape(-1))


@pytest.mark.slow
def test_the_parameters_do_not_depend_on_the_size_and_remat_keeps_the_gradient(params):
    assert apply(SMALL, params, jnp.ones((2, 16, 4, 3))).shape == (2, 16, 4, 3)

    def gradient(unet):
        return jax.jit(jax.grad(lambda p: apply(unet, p).sum()))(params)

    wanted = gradient(SMALL)
    for remat in ("blocks", "products"):
        found = gradient(SMALL.clone(remat=remat))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, wanted
        )


@pytest.mark.full
def test_dropout_depends_on_the_examples_key_alone(params):
    unet = SMALL.clone(dropout=0.5)
    keys = jax.random.split(jax.random.key(1), 2)
    both, swapped = apply(unet, params, X, keys), apply(unet, params, X, keys[::-1])
    assert not np.allclose(both, swapped)
    np.testing.assert_array_equal(apply(unet, params, X), apply(SMALL, params))


def test_a_condition_is_refused(params):
    with pytest.raises(UsageError, match="class label"):
        SMALL.apply({"params": params}, X, T, Condition(label=jnp.zeros(2, jnp.int32)))


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({}, 7, "height 7 is not divisible by 2, for the 2 levels"),
        ({"ch": 7}, 8, "ch is 7: give an even number"),
        ({"ch_mult": ()}, 8, "ch_mult is empty"),
        ({"ch_mult": (1, 0)}, 8, r"ch_mult\[1\] is 0"),
        ({"heads": 0}, 8, "heads is 0"),
        ({"norm_groups": 3}, 8, "norm_groups 3 does not divide ch 8"),
        ({"full_attention": (2,)}, 8, "names level 2: there are 0 to 1"),
        ({"dropout": 1.0}, 8, "dropout is 1.0"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, size, message):
    with pytest.raises(UsageError, match=message):
        check_linear_unet(SMALL.clone(**changes), size, 8)
    check_linear_unet(SMALL, 8, 4)
