"""Winograd's convolution against the direct sum in float64, and where networks use it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models import convolution, winograd
from ddpm_jax.models.convolution import conv2d, conv_upsampled

PADDING = ((1, 1), (1, 1))


def arrays(batch, height, width, channels, features, dtype=np.float32):
    rng = np.random.default_rng(0)
    x, y_bar = (
        rng.normal(size=(batch, height, width, channels)),
        rng.normal(size=(batch, height, width, features)),
    )
    return [a.astype(dtype) for a in (x, rng.normal(size=(3, 3, channels, features)) / 30, y_bar)]


def direct(x, kernel):
    """Return the sum over the nine pixels of the kernel, in float64."""
    height, width = x.shape[1:3]
    x, kernel = np.pad(np.float64(x), ((0, 0), (1, 1), (1, 1), (0, 0))), np.float64(kernel)
    return sum(
        x[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)
    )


@pytest.mark.parametrize("shape", [(2, 4, 6, 3, 5), (1, 2, 2, 1, 1), (3, 8, 4, 4, 2)])
def test_the_convolution_and_its_two_gradients_are_those_of_the_direct_sum(shape):
    with jax.enable_x64(True):
        x, kernel, y_bar = arrays(*shape, dtype=np.float64)
        np.testing.assert_allclose(winograd.convolve(x, kernel), direct(x, kernel), atol=1e-13)
        turned = kernel[::-1, ::-1].swapaxes(2, 3)
        np.testing.assert_allclose(
            winograd.input_gradient(y_bar, kernel), direct(y_bar, turned), atol=1e-13
        )
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        height, width = x.shape[1:3]
        for i, j in np.ndindex(3, 3):
            expected = np.einsum("bhwc,bhwd->cd", padded[:, i : i + height, j : j + width], y_bar)
            np.testing.assert_allclose(
                winograd.kernel_gradient(x, y_bar)[i, j], expected, atol=1e-12
            )


@pytest.mark.full
def test_a_batch_taken_in_parts_gives_the_same_numbers(monkeypatch):
    x, kernel, y_bar = arrays(4, 4, 4, 128, 128)
    monkeypatch.setattr(winograd, "MIN_TILES", 4)

    def compute():
        return winograd.convolve(x, kernel), winograd.kernel_gradient(x, y_bar)

    whole = compute()
    monkeypatch.setattr(winograd, "PART", 4 * 16 * 4 * 256 * 2)  # two images
    assert winograd.num_parts(x.shape, kernel.shape) == 2
    for part, all_at_once in zip(compute(), whole, strict=True):
        np.testing.assert_allclose(part, all_at_once, rtol=1e-6, atol=1e-5)


COLLECTIVES = """
import jax
from jax.sharding import NamedSharding, PartitionSpec
from ddpm_jax.models import winograd

winograd.PART = 4 * 16 * 16 * 256 * 2  # two images of four
mesh = jax.make_mesh((2,), ("batch",))
whole, shared = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("batch",)))
options = {"in_shardings": (whole, shared), "out_shardings": (whole, shared)}

def gradients(kernel, x):
    y_bar = winograd.convolve(x, kernel)
    return winograd.kernel_gradient(x, y_bar), winograd.input_gradient(y_bar, kernel)

arrays = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((3, 3, 128, 128), (4, 8, 8, 128)))
program = jax.jit(gradients, **options).lower(*arrays).compile().as_text()
assert winograd.num_parts((4, 8, 8, 128), (3, 3, 128, 128)) == 2
print(program.count("all-reduce("), program.count("all-gather("))
"""


@pytest.mark.full
def test_of_a_batch_on_two_devices_only_the_gradient_of_the_kernel_is_exchanged(run_python):
    assert run_python("-c", COLLECTIVES, devices=2).stdout.split() == ["1", "0"]


def upsampled_direct(x, kernel):
    return direct(x.repeat(2, axis=1).repeat(2, axis=2), kernel)


@pytest.mark.parametrize("part", [winograd.SMALL_PART, 1])  # all at once, or an image at a time
@pytest.mark.parametrize("shape", [(2, 3, 5, 3, 5), (1, 1, 1, 1, 1)])
def test_the_convolution_of_repeated_pixels_and_its_gradients_are_those_of_the_direct_sum(
    monkeypatch, part, shape
):
    monkeypatch.setattr(winograd, "SMALL_PART", part)
    with jax.enable_x64(True):
        x, kernel, _ = arrays(*shape, dtype=np.float64)
        y_bar = np.random.default_rng(1).normal(size=upsampled_direct(x, kernel).shape)
        y = winograd.convolve_upsampled(x, kernel)
        np.testing.assert_allclose(y, upsampled_direct(x, kernel), atol=1e-13)
        y, pull_back = jax.vjp(winograd.convolve_upsampled, x, kernel)
        np.testing.assert_allclose(y, upsampled_direct(x, kernel), atol=1e-13)
        x_bar, kernel_bar = map(np.asarray, pull_back(jnp.asarray(y_bar)))
    # linear in each of both: the gradient's product with an array is that array's image
    x_dot, kernel_dot = np.cos(x), np.cos(kernel)
    for bar, dot, image in (
        (x_bar, x_dot, upsampled_direct(x_dot, kernel)),
        (kernel_bar, kernel_dot, upsampled_direct(x, kernel_dot)),
    ):
        np.testing.assert_allclose(np.sum(bar * dot), np.sum(y_bar * image), rtol=1e-12)


@pytest.mark.full
def test_in_float32_the_error_of_repeated_pixels_is_that_of_four_convolutions(monkeypatch):
    x, kernel, _ = arrays(1, 8, 8, 256, 128)
    expected = upsampled_direct(x, kernel)

    def error():
        y = conv_upsampled(jnp.asarray(x), jnp.asarray(kernel))
        return np.sqrt(np.mean((y - expected) ** 2) / np.mean(expected**2))

    by_nine_products = error()
    monkeypatch.setattr(winograd, "MIN_CHANNELS_UPSAMPLED", 1000)
    assert by_nine_products < 2 * error()


@pytest.mark.parametrize(
    ("dtype", "channels", "convolutions"),
    [(jnp.float32, 64, 0), (jnp.bfloat16, 64, 4), (jnp.float32, 63, 4)],
)
def test_only_wide_float32_layers_upsample_by_nine_products(dtype, channels, convolutions):
    x, kernel = jnp.zeros((1, 4, 4, channels), dtype), jnp.zeros((3, 3, channels, 64))
    program = str(jax.make_jaxpr(conv_upsampled)(x, kernel))
    assert program.count("conv_general_dilated[") == convolutions
    # the nine products are one batch
    assert program.count("dot_general[") == (0 if convolutions else 1)


@pytest.mark.full
def test_in_float32_its_error_is_that_of_the_direct_sum():
    x, kernel, _ = arrays(1, 8, 8, 256, 128)
    expected = direct(x, kernel)

    def error(y):
        return np.sqrt(np.mean((y - expected) ** 2) / np.mean(expected**2))

    assert error(winograd.convolve(x, kernel)) < 2 * error(
        np.asarray(convolution._conv2d(x, kernel, 1, PADDING))
    )


# all at once, or an image at a time
@pytest.mark.full
@pytest.mark.parametrize("part", [winograd.PART, 4 * 16 * 4 * 256])
@pytest.mark.parametrize("channels", [128, 64])
def test_a_layer_has_the_derivatives_of_lax_in_every_mode(monkeypatch, part, channels):
    monkeypatch.setattr(winograd, "PART", part)
    monkeypatch.setattr(winograd, "SMALL_PART", part)
    monkeypatch.setattr(winograd, "MIN_TILES", 1)
    monkeypatch.setattr(winograd, "MIN_TILES_NARROW", 1)
    x, kernel, y_bar = arrays(2, 4, 4, channels, channels)

    def ours(x, kernel):
        return conv2d(x, kernel, padding=PADDING)

    def theirs(x, kernel):
        return convolution._conv2d(x, kernel, 1, PADDING)

    tangents = jnp.sin(x), jnp.sin(kernel)
    for derivative in (
        lambda f: f(x, kernel),
        lambda f: jax.vjp(f, x, kernel)[1](jnp.asarray(y_bar)),
        lambda f: jax.jvp(f, (x, kernel), tangents)[1],
        lambda f: jax.vmap(jax.grad(lambda x: jnp.sum(f(x[None], kernel) ** 2)))(x),
    ):
        # Sums of up to 1,152 products of order 1/30 in float32.
        for a, b in zip(
            *(jax.tree.leaves(jax.jit(derivative, static_argnums=0)(f)) for f in (ours, theirs)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())


@pytest.mark.parametrize(
    ("shape", "kernel", "expected"),
    [
        ((8, 32, 32, 128), (3, 3, 128, 128), 1),  # the first level of the CIFAR-10 network, batch 8
        ((8, 32, 32, 384), (3, 3, 384, 128), 2),  # there, after the skips
        ((128, 32, 32, 128), (3, 3, 128, 128), 16),
        ((8, 16, 16, 256), (3, 3, 256, 256), 1),
        ((8, 16, 16, 256), (3, 3, 256, 32), None),  # too few channels
        ((8, 16, 16, 256), (3, 3, 256, 64), None),  # too few tiles for so few channels
        ((16, 16, 16, 256), (3, 3, 256, 64), 2),
        ((8, 64, 64, 64), (3, 3, 64, 64), 4),  # the first level of a small first stage
        ((8, 16, 16, 256), (2, 2, 256, 256), None),  # of the upsampling
        ((8, 15, 16, 256), (3, 3, 256, 256), None),
        ((1, 256, 256, 128), (3, 3, 128, 128), None),  # not even an image fits
        ((99, 32, 32, 128), (3, 3, 128, 128), 33),
        ((2, 64, 64, 960), (3, 3, 960, 320), 2),  # Stable Diffusion's, with and without the text
        ((2, 16, 16, 1280), (3, 3, 1280, 1280), 1),
        ((2, 8, 8, 1280), (3, 3, 1280, 1280), None),  # too few tiles
    ],
)
def test_wide_layers_of_even_maps_are_taken_in_parts_that_fit_into_memory(shape, kernel, expected):
    assert winograd.num_parts(shape, kernel) == expected


@pytest.mark.parametrize(("features", "direct"), [(128, 0), (64, 1)])
def test_only_wide_layers_have_their_kernels_gradient_there(features, direct):
    x, kernel = jnp.zeros((8, 32, 32, 128)), jnp.zeros((3, 3, 128, features))

    def pull_back(x, kernel):
        y, of_y = jax.vjp(lambda x, kernel: conv2d(x, kernel, padding=PADDING), x, kernel)
        return of_y(y)

    assert str(jax.make_jaxpr(pull_back)(x, kernel)).count("conv_general_dilated[") == direct


@pytest.mark.parametrize(
    ("changed", "direct"),
    [({}, 0), ({"dtype": jnp.bfloat16}, 1), ({"stride": 2}, 1), ({"padding": ((0, 1), (0, 1))}, 1)],
)
def test_only_float32_of_stride_one_and_symmetric_padding_goes_there(changed, direct):
    changed = {"stride": 1, "padding": PADDING, "dtype": jnp.float32} | changed
    dtype = changed.pop("dtype")
    x, kernel = jnp.zeros((8, 8, 8, 128), dtype), jnp.zeros((3, 3, 128, 128), dtype)
    program = str(jax.make_jaxpr(lambda x, kernel: conv2d(x, kernel, **changed))(x, kernel))
    assert program.count("conv_general_dilated[") == direct
