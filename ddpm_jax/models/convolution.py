"""Two-dimensional convolution whose gradients are as fast inside a loop as outside.

Differentiating `lax.conv_general_dilated` gives convolutions of arrays in unusual layouts (a weight
gradient takes the batch for the channels), stated by dimension numbers. XLA for CPU converts these
to the usual layout, for which it has fast code, only outside loops; inside a `lax.scan` it falls
back to plain loops: for one layer of the CIFAR-10 network 50x slower for the weights and 5x for the
input (jax 0.10.2). Here the two gradients are written in the usual layout, with the transpositions
made explicit. Other devices choose layouts themselves and use JAX's own gradients.

On a CPU, float32 3x3 convolutions of stride 1 between many channels use `winograd.py`, 1.5 to 1.9x
as fast, except for the gradient of the kernel on large feature maps. The layers are in `layers.py`.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from ddpm_jax.models import winograd

Padding = tuple[tuple[int, int], tuple[int, int]]  # ((top, bottom), (left, right)), in pixels
DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")
CONVOLUTION = "convolution"  # what `jax.checkpoint` policies call the results of conv2d


def conv2d(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: Padding = ((0, 0), (0, 0))
) -> jax.Array:
    """y[b, i, j] = sum_{h, w} x[b, stride i + h, stride j + w] kernel[h, w], a cross-correlation.

    Args:
      x: [B, H, W, C], any float type.
      kernel: [h, w, C, D], of the same type.
      stride: of both axes.
      padding: rows and columns of zeros around x; the indices above include them.

    Returns:
      [B, (H + padding - h) // stride + 1, likewise for W, D].
    """
    convolve = _conv2d_usual_layout if jax.default_backend() == "cpu" else _conv2d
    return checkpoint_name(convolve(x, kernel, stride, padding), CONVOLUTION)


def _conv2d(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=DIMENSION_NUMBERS
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _conv2d_usual_layout(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
    if _num_winograd_parts(x, kernel.shape, stride, padding):
        return winograd.convolve(x, kernel)
    return _conv2d(x, kernel, stride, padding)


def _num_winograd_parts(
    x: jax.Array, kernel_shape: tuple[int, ...], stride: int, padding: Padding
) -> int | None:
    """Return the number of parts in which `winograd` takes the batch x; None if it does not.

    Only the shape and type of x are looked at.
    """
    if stride != 1 or padding != ((1, 1), (1, 1)) or x.dtype not in (jnp.float32, jnp.float64):
        return None  # in bfloat16 the sums of pixels would lose digits
    return winograd.num_parts(x.shape, kernel_shape)


@_conv2d_usual_layout.defjvp
def _conv2d_jvp(stride, padding, primals, tangents):
    """State each tangent map as the transpose of the gradient we want.

    Reverse mode transposes it back to that gradient.
    """
    x, kernel = primals
    x_dot, kernel_dot = tangents
    y = _conv2d_usual_layout(x, kernel, stride, padding)
    to_x = functools.partial(
        input_gradient, kernel=kernel, shape=x.shape, stride=stride, padding=padding
    )
    to_kernel = functools.partial(
        kernel_gradient, x=x, shape=kernel.shape, stride=stride, padding=padding
    )
    (from_x,) = jax.linear_transpose(to_x, y)(x_dot)
    (from_kernel,) = jax.linear_transpose(to_kernel, y)(kernel_dot)
    return y, from_x + from_kernel


def input_gradient(
    y_bar: jax.Array, *, kernel: jax.Array, shape: tuple[int, ...], stride: int, padding: Padding
) -> jax.Array:
    """Return the gradient of a loss w.r.t. x, of the given shape, from that w.r.t. the output y."""

    if _num_winograd_parts(jax.ShapeDtypeStruct(shape, y_bar.dtype), kernel.shape, stride, padding):
        return winograd.input_gradient(y_bar, kernel)

    def pad(axis: int) -> tuple[int, int]:
        # of the output's gradient, dilated by the stride, so that the result has x's shape
        low = kernel.shape[axis] - 1 - padding[axis][0]
        spread = (y_bar.shape[1 + axis] - 1) * stride + 1
        return low, shape[1 + axis] + kernel.shape[axis] - 1 - spread - low

    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    return lax.conv_general_dilated(
        y_bar,
        turned,
        (1, 1),
        (pad(0), pad(1)),
        lhs_dilation=(stride, stride),
        dimension_numbers=DIMENSION_NUMBERS,
    )


def kernel_gradient(
    y_bar: jax.Array, *, x: jax.Array, shape: tuple[int, ...], stride: int, padding: Padding
) -> jax.Array:
    """Return the gradient of a loss w.r.t. the kernel, of the given shape, from that w.r.t. y."""

    if _num_winograd_parts(x, shape, stride, padding) == 1:
        return winograd.kernel_gradient(x, y_bar)

    def pad(axis: int) -> tuple[int, int]:
        low = padding[axis][0]
        spread = (y_bar.shape[1 + axis] - 1) * stride + 1
        return low, shape[axis] + spread - 1 - x.shape[1 + axis] - low

    # The channels of x take the batch's place and the batch the channels': a usual layout.
    x_CxHxWxB, y_bar_HxWxBxD = x.transpose(3, 1, 2, 0), y_bar.transpose(1, 2, 0, 3)
    kernel_bar_CxhxwxD = lax.conv_general_dilated(
        x_CxHxWxB,
        y_bar_HxWxBxD,
        (1, 1),
        (pad(0), pad(1)),
        rhs_dilation=(stride, stride),
        dimension_numbers=DIMENSION_NUMBERS,
    )
    return kernel_bar_CxhxwxD.transpose(1, 2, 0, 3)
