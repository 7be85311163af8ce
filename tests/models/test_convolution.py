"""The convolution against SciPy, its derivatives against those of `lax`, in float64."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from jax import lax

from ddpm_jax.models import convolution
from ddpm_jax.models.convolution import (
    DIMENSION_NUMBERS,
    _conv2d_of_patches,
    _conv2d_usual_layout,
)

CASES = [  # height, width, kernel size, stride, padding
    (6, 8, 3, 1, ((1, 1), (1, 1))),
    (5, 7, 3, 1, ((1, 1), (1, 1))),
    (6, 8, 3, 2, ((0, 1), (0, 1))),
    (7, 5, 3, 2, ((0, 1), (1, 1))),
    (8, 8, 3, 2, ((1, 1), (1, 1))),
    (4, 6, 2, 1, ((1, 0), (0, 1))),
    (4, 6, 2, 1, ((0, 0), (0, 0))),
]


def arrays(height, width, size):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(2, height, width, 3))), jnp.asarray(
        rng.normal(size=(size, size, 3, 4))
    )


def plain(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=DIMENSION_NUMBERS
    )


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


ALGORITHMS = [_conv2d_usual_layout, _conv2d_of_patches]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("height", "width", "size", "stride", "padding"), CASES)
def test_values_are_those_of_scipy(height, width, size, stride, padding, algorithm):
    x, kernel = arrays(height, width, size)
    y = np.asarray(jax.jit(algorithm, static_argnums=(2, 3))(x, kernel, stride, padding))
    x, kernel = np.asarray(x), np.asarray(kernel)
    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    for b, d in np.ndindex(2, 4):
        expected = sum(
            scipy.signal.correlate2d(padded[b, ..., c], kernel[..., c, d], mode="valid")
            for c in range(3)
        )
        np.testing.assert_allclose(y[b, ..., d], expected[::stride, ::stride], atol=1e-12)


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "stride", "chosen"),
    [
        # Stable Diffusion's: the lowest level, with and without guidance; what leads to it; above
        ((2, 8, 8, 1280), (3, 3, 1280, 1280), 1, _conv2d_of_patches),
        ((1, 8, 8, 2560), (3, 3, 2560, 1280), 1, _conv2d_of_patches),
        ((2, 16, 16, 1280), (3, 3, 1280, 1280), 2, _conv2d_of_patches),
        ((2, 16, 16, 1280), (3, 3, 1280, 1280), 1, _conv2d_usual_layout),  # by Winograd's algorithm
        ((99, 8, 8, 1280), (3, 3, 1280, 1280), 2, _conv2d_usual_layout),  # many pixels
        ((2, 4, 4, 256), (3, 3, 256, 256), 1, _conv2d_usual_layout),  # a small kernel
    ],
)
def test_patches_are_taken_where_a_large_kernel_meets_few_pixels(
    x_shape, kernel_shape, stride, chosen
):
    x, kernel = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (x_shape, kernel_shape))
    algorithm = convolution.choose_algorithm(x, kernel, stride, ((1, 1), (1, 1)))
    assert algorithm is chosen


def test_as_they_are_written_convolutions_are_those_of_xla():
    """Also those for which Winograd's algorithm is faster, and those of upsampled images."""
    x, kernel = jnp.ones((1, 16, 16, 128)), jnp.ones((3, 3, 128, 128))
    same, twice = ((1, 1), (1, 1)), x.repeat(2, 1).repeat(2, 2)
    with convolution.as_written():
        text = jax.jit(lambda x: convolution.conv2d(x, kernel, padding=same)).lower(x).as_text()
        upsampled = convolution.conv_upsampled(x, kernel)
    assert text.count("stablehlo.convolution") == 1
    by_winograd = jax.jit(lambda x: convolution.conv2d(x, kernel, padding=same)).lower(x).as_text()
    assert "stablehlo.convolution" not in by_winograd
    np.testing.assert_allclose(upsampled, plain(twice, kernel, 1, same), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("height", "width", "size", "stride", "padding"), CASES)
def test_forward_and_reverse_derivatives_are_those_of_lax(
    height, width, size, stride, padding, algorithm
):
    x, kernel = arrays(height, width, size)

    def ours(x, kernel):
        return algorithm(x, kernel, stride, padding)

    def theirs(x, kernel):
        return plain(x, kernel, stride, padding)

    y, pullback = jax.vjp(ours, x, kernel)
    y_bar = jnp.cos(jnp.arange(y.size, dtype=jnp.float64)).reshape(y.shape)
    for ours_bar, theirs_bar in zip(
        pullback(y_bar), jax.vjp(theirs, x, kernel)[1](y_bar), strict=True
    ):
        np.testing.assert_allclose(ours_bar, theirs_bar, atol=1e-12)
    tangents = jnp.sin(x), jnp.sin(kernel)
    np.testing.assert_allclose(
        jax.jvp(ours, (x, kernel), tangents)[1],
        jax.jvp(theirs, (x, kernel), tangents)[1],
        atol=1e-12,
    )


@pytest.mark.full
def test_per_example_gradients_and_second_derivatives_are_those_of_lax():
    x, kernel = arrays(4, 4, 3)

    def gradient_norms(conv, kernel):
        def loss(kernel, x):
            return jnp.sum(jnp.tanh(conv(x[None], kernel, 1, ((1, 1), (1, 1)))))

        return jnp.sum(
            jnp.square(jax.vmap(jax.grad(loss), (None, 0))(kernel, x)), axis=(1, 2, 3, 4)
        )

    ours, theirs = (
        functools.partial(gradient_norms, conv) for conv in (_conv2d_usual_layout, plain)
    )
    np.testing.assert_allclose(ours(kernel), theirs(kernel), rtol=1e-10)
    np.testing.assert_allclose(
        jax.jacrev(ours)(kernel), jax.jacrev(theirs)(kernel), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_no_convolution_of_the_backward_pass_has_an_unusual_layout(stride):
    """XLA for CPU is slow at these inside loops; the gradient of `lax` is seen to have one."""

    def layouts(conv):
        x, kernel = arrays(4, 4, 3)
        y, pullback = jax.vjp(lambda x, k: conv(x, k, stride, ((1, 1), (1, 1))), x, kernel)
        jaxpr = jax.make_jaxpr(pullback)(y)
        eqns = [
            eqn
            for eqn in flat_equations(jaxpr.jaxpr)
            if eqn.primitive is lax.conv_general_dilated_p
        ]
        assert len(eqns) == 2
        return {eqn.params["dimension_numbers"] for eqn in eqns}

    usual = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), DIMENSION_NUMBERS)
    assert layouts(_conv2d_usual_layout) == {usual}
    assert layouts(plain) != {usual}


def flat_equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from flat_equations(inner)
