"""Each layer against an independent form of its formula."""

import re

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from ddpm_jax.models.attention import AttentionBlock
from ddpm_jax.models.layers import (
    DOWNSAMPLE_PADDINGS,
    TIME_EMBEDDINGS,
    Conv3x3,
    Dropout,
    GroupNorm,
    Upsample,
    computed_once,
    conv_upsampled,
    dense,
    shape_keys,
    timestep_embedding,
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def ddpm_embedding(t, features):
    half = features // 2
    angles = [t * 10000 ** (-i / (half - 1)) for i in range(half)]
    return [np.sin(a) for a in angles] + [np.cos(a) for a in angles]


def improved_ddpm_embedding(t, features):
    half = features // 2
    angles = [t * 10000 ** (-i / half) for i in range(half)]
    return [np.cos(a) for a in angles] + [np.sin(a) for a in angles]


def ddpm_embedding_cosines_first(t, features):
    sines_and_cosines = ddpm_embedding(t, features)
    return sines_and_cosines[features // 2 :] + sines_and_cosines[: features // 2]


@pytest.mark.parametrize(
    ("form", "embed"),
    [
        ("sin_cos", ddpm_embedding),
        ("cos_sin", improved_ddpm_embedding),
        ("cos_sin_inclusive", ddpm_embedding_cosines_first),
    ],
)
def test_timestep_embedding_is_the_published_formula(form, embed):
    t = [0, 1, 437.5, 999]
    # Angles reach 1000, whose float32 spacing is 6e-5; the sine and cosine move by as much at most.
    np.testing.assert_allclose(
        timestep_embedding(jnp.array(t), 8, form), [embed(time, 8) for time in t], atol=1e-4
    )


@pytest.mark.parametrize("form", TIME_EMBEDDINGS)
def test_an_odd_embedding_ends_in_zero(form):
    odd = timestep_embedding(jnp.array([3, 5]), 9, form)
    np.testing.assert_array_equal(odd[:, :8], timestep_embedding(jnp.array([3, 5]), 8, form))
    np.testing.assert_array_equal(odd[:, 8], 0.0)


def group_norm_float64(x, scale, bias, eps=1e-6):
    groups = x.reshape(*x.shape[:3], 32, -1)
    mean = groups.mean(axis=(1, 2, 4), keepdims=True)
    variance = groups.var(axis=(1, 2, 4), keepdims=True)
    return ((groups - mean) / np.sqrt(variance + eps)).reshape(x.shape) * scale + bias


@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_group_norm_of_a_nearly_constant_image_depends_on_eps(eps):
    x = (1e-3 * normal(1, 4, 4, 32)).astype(np.float32)  # a variance of 1e-6
    params = {"params": {"scale": jnp.ones(32), "bias": jnp.zeros(32)}}
    np.testing.assert_allclose(
        GroupNorm(eps).apply(params, x), group_norm_float64(np.float64(x), 1, 0, eps), atol=1e-5
    )


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_group_norm_keeps_its_digits_however_large_the_mean(offset):
    x = (normal(2, 4, 6, 96) * np.repeat(np.arange(1, 33), 3) + offset).astype(np.float32)
    scale, bias = normal(96, seed=1), normal(96, seed=2)
    params = {"params": {"scale": jnp.float32(scale), "bias": jnp.float32(bias)}}
    expected = group_norm_float64(x.astype(np.float64), scale, bias)
    # Float32 values near 1000 subtract their mean with an error of 6e-5 / 2; the smallest group has
    # deviation 1.
    np.testing.assert_allclose(
        GroupNorm().apply(params, x), expected, atol=5e-6 if offset == 0 else 3e-4
    )


def test_group_norm_of_bfloat16_has_float32_statistics():
    x = jnp.bfloat16(normal(1, 16, 16, 32) + 8.0)
    params = GroupNorm().init(jax.random.key(0), x)
    y = GroupNorm(dtype=jnp.bfloat16).apply(params, x)
    assert y.dtype == jnp.bfloat16
    expected = group_norm_float64(np.float64(x), 1.0, 0.0)
    # only the result is rounded
    np.testing.assert_allclose(np.float64(y), expected, rtol=2**-8, atol=1e-5)


def test_upsample_is_a_convolution_of_the_repeated_image():
    x, kernel = normal(2, 3, 5, 4), normal(3, 3, 4, 6, seed=1)
    with jax.enable_x64(True):
        y = conv_upsampled(jnp.asarray(x), jnp.asarray(kernel))
    repeated = x.repeat(2, axis=1).repeat(2, axis=2)
    expected = np.zeros((2, 6, 10, 6))
    for b, c, d in np.ndindex(2, 4, 6):
        expected[b, :, :, d] += scipy.signal.correlate2d(
            repeated[b, :, :, c], kernel[:, :, c, d], mode="same"
        )
    np.testing.assert_allclose(y, expected, atol=1e-12)


@pytest.mark.full
def test_gradients_of_upsample_are_those_of_repeat_then_convolve():
    def plain(x, kernel):
        repeated = x.repeat(2, axis=1).repeat(2, axis=2)
        return jax.lax.conv_general_dilated(
            repeated, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    with jax.enable_x64(True):
        x, kernel = jnp.asarray(normal(2, 3, 5, 4)), jnp.asarray(normal(3, 3, 4, 6, seed=1))
        cotangent = jnp.asarray(normal(2, 6, 10, 6, seed=2))
        grads = jax.vjp(conv_upsampled, x, kernel)[1](cotangent)
        expected = jax.vjp(plain, x, kernel)[1](cotangent)
    for grad, want in zip(grads, expected, strict=True):
        np.testing.assert_allclose(grad, want, atol=1e-12)


def test_upsample_in_bfloat16_sums_its_weights_in_float32():
    x = jnp.float32(normal(1, 4, 4, 32))
    params = Upsample().init(jax.random.key(0), x)
    y, expected = Upsample(jnp.bfloat16).apply(params, x), Upsample().apply(params, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(y), expected, atol=0.03)


@pytest.mark.parametrize(("padding", "start"), [("end", 0), ("both", -1)])
def test_downsample_pads_an_even_image_as_named(padding, start):
    """The window starts at (2i, 2j) with SAME, at (2i-1, 2j-1) with PyTorch's padding=1."""
    x = normal(1, 4, 6, 2).astype(np.float32)
    layer = Conv3x3(3, stride=2, padding=DOWNSAMPLE_PADDINGS[padding])
    params = layer.init(jax.random.key(0), x)
    kernel = np.asarray(params["params"]["kernel"])
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # pixel (0, 0) is at (1, 1)
    expected = np.zeros((1, 2, 3, 3))
    for i, j in np.ndindex(2, 3):
        top, left = 2 * i + start + 1, 2 * j + start + 1
        expected[0, i, j] = np.einsum(
            "hwc,hwcd->d", padded[0, top : top + 3, left : left + 3], kernel
        )
    np.testing.assert_allclose(layer.apply(params, x), expected, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_is_softmax_of_scaled_products(heads):
    x = jnp.float32(normal(2, 2, 4, 64))
    block = AttentionBlock(heads)
    params = block.init(jax.random.key(0), x)
    params = jax.tree.map(
        lambda p: p + 0.1 * normal(*p.shape, seed=p.size).astype(np.float32), params
    )
    np.testing.assert_allclose(
        block.apply(params, x), attention_float64(x, params["params"], heads), atol=2e-5
    )


def attention_float64(x, params, heads):
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    h = group_norm_float64(np.float64(x), params["norm"]["scale"], params["norm"]["bias"])
    q, k, v = (h @ params[name]["kernel"] + params[name]["bias"] for name in "qkv")
    out = np.zeros_like(q)
    depth = x.shape[-1] // heads
    for b, n in np.ndindex(x.shape[0], heads):
        qs, ks, vs = (
            a[b].reshape(-1, x.shape[-1])[:, n * depth : (n + 1) * depth] for a in (q, k, v)
        )
        weights = np.exp(qs @ ks.T / np.sqrt(depth))
        weights /= weights.sum(axis=1, keepdims=True)
        out[b, :, :, n * depth : (n + 1) * depth] = (weights @ vs).reshape(*x.shape[1:3], depth)
    return np.float64(x) + out @ params["proj_out"]["kernel"] + params["proj_out"]["bias"]


class TestDropout:
    layer = Dropout(0.25, name="dropout")
    keys = jax.random.split(jax.random.key(5), 4)

    def mask(self, keys, layer=None, shape=(64, 64)):
        return (layer or self.layer).apply({}, jnp.ones((len(keys), *shape)), keys)

    def test_an_example_has_the_same_mask_whatever_the_batch_around_it(self):
        whole = self.mask(self.keys)
        np.testing.assert_array_equal(self.mask(self.keys[2:3])[0], whole[2])
        np.testing.assert_array_equal(self.mask(self.keys[::-1])[1], whole[2])
        assert (whole[0] != whole[1]).any()

    def test_kept_elements_are_scaled_and_their_share_is_right(self):
        mask = self.mask(self.keys)
        np.testing.assert_allclose(np.unique(mask), [0.0, 1 / 0.75], rtol=1e-6)
        # 16,384 draws: the share has standard deviation 0.0034; allow four.
        assert abs((mask > 0).mean() - 0.75) < 0.0135

    def test_layers_draw_independently(self):
        class Two(nn.Module):
            @nn.compact
            def __call__(self, x, keys):
                return Dropout(0.25, name="a")(x, keys), Dropout(0.25, name="b")(x, keys)

        a, b = (np.asarray(m) > 0 for m in Two().apply({}, jnp.ones((4, 64, 64)), self.keys))
        # standard deviation 0.0039; equal masks would give 0.75
        assert abs((a & b).mean() - 0.75**2) < 0.0155

    def test_nothing_is_drawn_at_rate_zero_or_without_keys(self):
        x = jnp.ones((4, 3))
        for rate, keys in ((0.0, self.keys), (0.25, None)):
            jaxpr = jax.make_jaxpr(
                lambda x, rate=rate, keys=keys: Dropout(rate).apply({}, x, keys)
            )(x)
            assert not jaxpr.eqns


@pytest.mark.full
def test_float16_parameters_are_converted_to_float32_one_layer_after_the_other():
    class Layers(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i in range(12):
                x = jnp.tanh(dense(256, name=f"{i}", dtype=jnp.float32)(x))
            return x

    x = jnp.ones((4, 256))
    params = Layers().init(jax.random.key(0), x)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params)

    def chain(params, x):
        return jax.lax.scan(lambda x, _: (Layers().apply(params, x), None), x, length=3)[0]

    sizes = jax.jit(chain).lower(half, x).compile().memory_analysis()
    assert sizes.temp_size_in_bytes < sizes.argument_size_in_bytes / 2
    # and they are the same numbers, with the same gradients, as if converted beforehand
    converted = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)

    def loss(params):
        return jnp.sum(Layers().apply(params, x))

    ours, expected = jax.grad(loss)(half), jax.grad(loss)(converted)
    for mine, theirs in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
        np.testing.assert_allclose(np.float32(mine), theirs, rtol=2e-2, atol=2e-2)


def test_what_is_computed_once_is_the_same_with_the_same_derivatives():
    x, tangent = (jnp.asarray(normal(3, 4, seed=seed), jnp.float32) for seed in (0, 1))

    def function(x):
        return jnp.sum(jnp.square(computed_once(x)))

    np.testing.assert_array_equal(computed_once(x), x)
    np.testing.assert_array_equal(jax.vmap(computed_once)(x), x)
    # of sum(x^2): 2 x and 2 x . dx; of the second in the direction dx: 2 dx
    np.testing.assert_array_equal(jax.grad(function)(x), 2 * x)
    value, slope = jax.jvp(function, (x,), (tangent,))
    np.testing.assert_allclose(value, np.sum(np.square(x)), rtol=1e-6)
    np.testing.assert_allclose(slope, np.sum(2 * x * tangent), rtol=1e-5)
    np.testing.assert_array_equal(jax.jvp(jax.grad(function), (x,), (tangent,))[1], 2 * tangent)


@pytest.mark.full
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="it is a call on CPUs only")
def test_no_loop_of_a_deep_residual_network_reads_what_all_its_blocks_have_added():
    def most_inputs_of_a_loop(depth):
        def loss(weights, x):
            for w in weights:
                x = computed_once(x)
                x = x + jnp.tanh((x - x.mean(axis=-1, keepdims=True)) @ w)
            return jnp.sum(jnp.square(x))

        shapes = [jax.ShapeDtypeStruct((128, 128), jnp.float32)] * depth, jnp.ones((256, 128))
        program = jax.jit(jax.grad(loss)).lower(*shapes).compile().as_text()
        return max(
            operands.count("%") for operands in re.findall(r" fusion\((.*?)\), kind", program)
        )

    # without it 6 blocks make a loop of 13 inputs, and 12 blocks one of 25
    assert most_inputs_of_a_loop(12) == most_inputs_of_a_loop(6)


def _drawn(key, shape, dtype=jnp.float32):
    return jax.random.normal(key, shape, dtype)


def _never(key, shape, dtype=jnp.float32):
    raise AssertionError("an initialiser was traced")


@pytest.mark.parametrize(
    "layer",
    [
        lambda init: Conv3x3(4, kernel_init=init),
        lambda init: dense(4, name=None, dtype=jnp.float32, kernel_init=init),
    ],
    ids=["convolution", "dense"],
)
def test_initialisers_are_traced_only_where_weights_are_drawn(layer):
    x, key = jnp.ones((1, 6, 6, 3)), jax.random.key(0)
    drawn = layer(_drawn).init(key, x)
    shapes = jax.eval_shape(layer(_never).init, shape_keys(key), x)
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, shapes)
    np.testing.assert_array_equal(layer(_never).apply(drawn, x), layer(_drawn).apply(drawn, x))
    with pytest.raises(AssertionError, match="was traced"):
        layer(_never).init(key, x)


@pytest.mark.parametrize("layer", [Conv3x3(4), dense(4, name=None, dtype=jnp.float32)])
def test_weights_of_another_shape_are_refused_as_flax_does(layer):
    x = jnp.ones((1, 6, 6, 3))
    params = layer.init(jax.random.key(0), x)
    with pytest.raises(flax.errors.ScopeParamShapeError, match="kernel"):
        layer.apply(params, jnp.ones((1, 6, 6, 5)))
    with pytest.raises(flax.errors.ScopeParamNotFoundError, match="kernel"):
        layer.apply({"params": {"bias": params["params"]["bias"]}}, x)
