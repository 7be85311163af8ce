"""EDM2's network: magnitudes of its layers and blocks, and the whole of it written out in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from ddpm_jax.errors import UsageError
from ddpm_jax.models.condition import Condition
from ddpm_jax.models.edm2_unet import CosineAttention, EDM2UNet, MPBlock, check_edm2_unet
from ddpm_jax.models.magnitude import (
    SILU_MAGNITUDE,
    UNIT_KERNEL,
    MPFourier,
    MPLinear,
    mp_cat,
    mp_silu,
    mp_sum,
    with_unit_kernels,
)

NETWORK = EDM2UNet(8, 4, (1, 2), 1, (4,), num_classes=3)
X = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
T = np.array([0.3, -1.2], np.float32)
CLASSES = Condition(np.array([1, 3], np.int32))  # one class, and none


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def magnitude(x):
    return float(np.sqrt(np.mean(np.square(np.float64(x)))))


def applied(layer, *inputs, seed=0):
    @jax.jit
    def apply(*inputs):
        return layer.apply(layer.init(jax.random.key(seed), *inputs), *inputs)

    return apply(*inputs)


@functools.cache
def trained():
    """Parameters that training could have made: kernels of any magnitude, gains that are not 0."""
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), X, T, CLASSES)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.normal(0, 2, leaf.shape).astype(np.float32), shapes)


@jax.jit
def evaluate(params, condition=CLASSES):
    return NETWORK.apply({"params": params}, X, T, condition)


def assert_close(found, expected):
    """Equal to the rounding of float32 of the largest value, in some forty layers."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def test_layers_keep_the_magnitude_of_independent_normal_inputs():
    a, b = normal(4, 64, 64, 96), 2 + 3 * normal(4, 64, 64, 32, seed=1)  # of magnitudes 1 and √13
    assert magnitude(mp_silu(a)) == pytest.approx(1, abs=3e-3)
    b = b / magnitude(b)
    for t in (0.3, 0.5):
        assert magnitude(mp_sum(a[..., :32], b, t)) == pytest.approx(1, abs=3e-3)
        joined = mp_cat(a, b, t)
        assert magnitude(joined) == pytest.approx(1, abs=3e-3)
        # of what a layer makes of them, shares do not depend on their numbers of channels
        squares = [np.sum(np.square(part)) for part in (joined[..., :96], joined[..., 96:])]
        assert squares[1] / squares[0] == pytest.approx((t / (1 - t)) ** 2, rel=1e-2)
    assert magnitude(applied(MPLinear(256), a)) == pytest.approx(1, abs=0.01)
    inside = applied(MPLinear(256, 3), a)[:, 1:-1, 1:-1]  # a border of zeros takes its share
    assert magnitude(inside) == pytest.approx(1, abs=0.01)
    assert magnitude(applied(MPFourier(4096), normal(8))) == pytest.approx(1, abs=0.01)


def test_the_constant_of_the_activation_is_its_magnitude():
    density = lambda z: np.exp(-z * z / 2) / np.sqrt(2 * np.pi)  # noqa: E731
    square, _ = quad(lambda z: (z / (1 + np.exp(-z))) ** 2 * density(z), -30, 30)
    assert pytest.approx(square**0.5, abs=5e-4) == SILU_MAGNITUDE


@pytest.mark.parametrize("encodes", [True, False])
@pytest.mark.parametrize("resample", ["", "up", "down"])
def test_a_new_block_keeps_the_magnitude(encodes, resample):
    x, temb = normal(2, 32, 32, 64), normal(2, 128, seed=1)
    x = 3 * x if encodes else x  # there pixels are normalised
    if resample == "down" and not encodes:
        x = 2 * x  # a mean of four
    for features in (64, 96):
        block = MPBlock(features, encodes, resample=resample)
        assert magnitude(applied(block, x, temb, None)) == pytest.approx(1, abs=0.03)


def test_attention_to_equal_pixels_keeps_the_magnitude_and_to_any_at_most():
    pixel = normal(2, 1, 1, 128)
    equal = np.broadcast_to(pixel, (2, 8, 8, 128))
    assert magnitude(applied(CosineAttention(2), equal)) == pytest.approx(1, abs=0.1)
    # means of independent values are small: at least the shortcut's share stays
    least = 0.7 / np.sqrt(0.7**2 + 0.3**2)
    assert least - 0.01 < magnitude(applied(CosineAttention(2), normal(2, 8, 8, 128))) < 1.01


def test_every_block_of_a_new_network_has_activations_of_magnitude_one():
    network = EDM2UNet(32, 32, (1, 2, 2), 1, (8,))
    x, t = normal(2, 32, 32, 3), normal(2, seed=1)
    keep = lambda module, _: isinstance(module, MPBlock)  # noqa: E731
    params = network.init(jax.random.key(0), x, t)
    output, kept = network.apply(params, x, t, capture_intermediates=keep)
    found = {name: magnitude(of["__call__"][0]) for name, of in kept["intermediates"].items()}
    assert len(found) == 3 + 2 + 2 + 6 + 2
    # the border of zeros and what attention averages leave a little less or more
    assert all(0.85 < value < 1.1 for value in found.values()), found
    assert not np.any(output)  # whose gain is 0 at first


def test_kernels_are_normalised_and_nothing_else_is():
    params = trained()
    kept = jax.jit(with_unit_kernels)(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(kept):
        before = functools.reduce(lambda tree, key: tree[key.key], path, params)
        if path[-1].key == UNIT_KERNEL:
            squares = np.mean(np.square(np.float64(leaf)), axis=tuple(range(leaf.ndim - 1)))
            np.testing.assert_allclose(squares, 1, rtol=1e-6)
        else:
            np.testing.assert_array_equal(leaf, before)
    assert_close(evaluate(kept), evaluate(params))


def test_gradients_do_not_change_the_magnitude_of_a_kernel():
    params = trained()
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(jnp.sin(evaluate(params)))))
    grads = jax.device_get(gradient(params))
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        kernel = functools.reduce(lambda tree, key: tree[key.key], path, params)
        if path[-1].key == UNIT_KERNEL:
            axes = tuple(range(grad.ndim - 1))
            along = np.abs(np.sum(grad * kernel, axis=axes))
            lengths = np.sqrt(np.sum(grad**2, axis=axes) * np.sum(kernel**2, axis=axes))
            assert lengths.any()
            assert np.all(along <= 1e-4 * lengths.max()), path
        elif path[0].key == "time_features":
            assert not np.any(grad)
        else:
            assert np.all(grad), path


def in_numpy(params, x, t, one_hot):
    """EDM2UNet of two levels with a block each in float64, by the equations of the paper."""
    params = jax.tree.map(np.float64, params)
    silu = lambda z: z / (1 + np.exp(-z)) / 0.596  # noqa: E731
    unit = lambda z: z / np.sqrt(np.mean(z * z, axis=-1, keepdims=True) + 1e-6)  # noqa: E731
    total = lambda a, b, t: ((1 - t) * a + t * b) / np.hypot(1 - t, t)  # noqa: E731

    def linear(layer, z, gain=1.0):
        kernel = layer[UNIT_KERNEL]
        flat = kernel.reshape(-1, kernel.shape[-1])
        flat = gain * flat / np.linalg.norm(flat, axis=0)  # of length 1: of magnitude 1/sqrt(fan)
        if kernel.ndim == 2:
            return z @ flat
        kernel, (height, width) = flat.reshape(kernel.shape), z.shape[1:3]
        padded = np.pad(z, [(0, 0), (1, 1), (1, 1), (0, 0)])
        taps = [(i, j) for i in range(3) for j in range(3)]
        return sum(padded[:, i : i + height, j : j + width] @ kernel[i, j] for i, j in taps)

    def block(name, z, encodes):
        layers = params[name]
        if encodes:
            z = unit(linear(layers["shortcut"], z) if "shortcut" in layers else z)
        h = linear(layers["conv1"], silu(z))
        scale = 1 + linear(layers["temb_proj"], temb, layers["temb_gain"])
        h = linear(layers["conv2"], silu(h * scale[:, None, None]))
        if not encodes and "shortcut" in layers:
            z = linear(layers["shortcut"], z)
        return total(z, h, 0.3)

    def attention(name, z):
        layers, shape = params[name], z.shape
        q, k, v = (
            unit(linear(layers[of], z).reshape(len(z), -1, shape[-1])) for of in ("q", "k", "v")
        )
        weights = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(shape[-1]))
        seen = (weights / weights.sum(axis=-1, keepdims=True)) @ v
        return total(z, linear(layers["proj_out"], seen.reshape(shape)), 0.3)

    def joined(a, b):
        a_share, b_share = (0.5 / np.sqrt(part.shape[-1]) for part in (a, b))
        scale = np.sqrt((a.shape[-1] + b.shape[-1]) / (0.5**2 + 0.5**2))
        return scale * np.concatenate([a_share * a, b_share * b], axis=-1)

    features = params["time_features"]
    turns = np.outer(t, features["frequencies"]) + features["phases"]
    temb = linear(params["temb_dense"], np.sqrt(2) * np.cos(2 * np.pi * turns))
    classes = linear(params["class_embedding"], one_hot * np.sqrt(one_hot.shape[1]))
    temb = silu(total(temb, classes, 0.5))

    skips = [linear(params["conv_in"], np.concatenate([x, np.ones_like(x[..., :1])], axis=-1))]
    skips.append(block("down_0_block_0", skips[-1], True))
    small = skips[-1].reshape(len(x), 4, 2, 4, 2, -1).mean(axis=(2, 4))
    skips.append(block("down_0_downsample", small, True))
    skips.append(attention("down_1_attn_0", block("down_1_block_0", skips[-1], True)))
    h = attention("mid_attn_1", block("mid_block_1", skips[-1], False))
    h = block("mid_block_2", h, False)
    for j in range(2):
        h = attention(f"up_1_attn_{j}", block(f"up_1_block_{j}", joined(h, skips.pop()), False))
    h = block("up_1_upsample", h.repeat(2, axis=1).repeat(2, axis=2), False)
    for j in range(2):
        h = block(f"up_0_block_{j}", joined(h, skips.pop()), False)
    return linear(params["conv_out"], h, params["out_gain"])


def test_the_network_is_that_of_the_papers_equations():
    one_hot = np.array([[0, 1, 0], [0, 0, 0]], np.float64)  # none of the classes: zeros
    expected = in_numpy(trained(), np.float64(X), np.float64(T), one_hot)
    assert_close(evaluate(trained()), expected)
    assert np.isnan(evaluate(trained(), Condition(np.full(2, 4, np.int32)))).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ch_mult": (1,) * 5}, "height 8 is not divisible by 16"),
        ({"attn_resolutions": (3,)}, "attn_resolutions names 3"),
        ({"ch": 48, "ch_mult": (1, 3.9)}, "num_heads 2 does not divide the 187 channels"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, message):
    check_edm2_unet(NETWORK, 8, 8)
    with pytest.raises(UsageError, match=message):
        check_edm2_unet(NETWORK.clone(**changes), 8, 8)
