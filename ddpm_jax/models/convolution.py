"""Two-dimensional convolution whose gradients are as fast inside a loop as outside.

Differentiating `lax.conv_general_dilated` gives convolutions of arrays in unusual layouts (a weight
gradient takes the batch for the channels), stated by dimension numbers. XLA for CPU converts these
to the usual layout, for which it has fast code, only outside loops; inside a `lax.scan` it falls
back to plain loops: for one layer of the CIFAR-10 network 50x slower for the weights and 5x for the
input (jax 0.10.2). Here the two gradients are written in the usual layout, with the transpositions
made explicit. Other devices choose layouts themselves and use JAX's own gradients.

On a CPU, float32 3x3 convolutions of stride 1 between many channels use `winograd.py`, 1.5 to 1.9x
as fast. Where a large kernel meets a small feature map, they compute one matrix product over
patches, 2 to 2.5x as fast as XLA's direct sum. The layers are in `layers.py`.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from ddpm_jax.models import winograd

Padding = tuple[tuple[int, int], tuple[int, int]]  # ((top, bottom), (left, right)), in pixels
DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")
CONVOLUTION = "convolution"  # what `jax.checkpoint` policies call the results of conv2d

# bytes of a kernel from which XLA's direct sum is slow on a CPU where pixels are few
LARGE_KERNEL = 2**23

_AS_WRITTEN = contextvars.ContextVar("convolutions as they are written", default=False)


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Trace every convolution as the one operation of XLA that it is, whatever its shape.

    For a program that runs once: of a U-Net over 256x256 pixels it is compiled in a third of the
    time and half the memory (jax 0.10.2, CPU), and runs slower. The results differ by rounding.
    """
    token = _AS_WRITTEN.set(True)
    try:
        yield
    finally:
        _AS_WRITTEN.reset(token)


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
    return checkpoint_name(
        choose_algorithm(x, kernel, stride, padding)(x, kernel, stride, padding), CONVOLUTION
    )


def choose_algorithm(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> Callable[..., jax.Array]:
    """Return the function that computes the convolution fastest; only shapes are looked at."""
    if jax.default_backend() != "cpu" or _AS_WRITTEN.get():
        return _conv2d
    by_winograd = _num_winograd_parts(x, kernel.shape, stride, padding)
    rows, cols = _output_size(x.shape[1:3], kernel.shape[:2], stride, padding)
    # the patches are then smaller than the kernel
    pixels_are_few = x.shape[0] * rows * cols <= kernel.shape[3]
    if not by_winograd and pixels_are_few and kernel.size * kernel.dtype.itemsize >= LARGE_KERNEL:
        return _conv2d_of_patches
    return _conv2d_usual_layout


def _output_size(
    size: tuple[int, ...], window: tuple[int, ...], stride: int, padding: Padding
) -> tuple[int, int]:
    """Return the height and width of a convolution's output."""
    return tuple(
        (length + sum(pad) - reach) // stride + 1
        for length, reach, pad in zip(size, window, padding, strict=True)
    )


def _conv2d_of_patches(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Convolve by one product: the patches of x that the kernel covers, times the kernel.

    The gradients are two more products.
    """
    rows, cols = _output_size(x.shape[1:3], kernel.shape[:2], stride, padding)
    height, width, channels, features = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))

    def pixels(i: int, j: int) -> jax.Array:
        # of all patches at once, the one at row i and column j
        ends = i + stride * (rows - 1) + 1, j + stride * (cols - 1) + 1
        return x[:, i : ends[0] : stride, j : ends[1] : stride]

    patches = jnp.concatenate([pixels(i, j) for i in range(height) for j in range(width)], axis=3)
    y = patches.reshape(-1, height * width * channels) @ kernel.reshape(-1, features)
    return y.reshape(-1, rows, cols, features)


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
    if stride != 1 or padding != ((1, 1), (1, 1)) or x.dtype not in winograd.DTYPES:
        return None
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

    if min(shape[2:]) >= winograd.WIDE and _num_winograd_parts(x, shape, stride, padding):
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


def conv_upsampled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the zero-padded 3x3 convolution of x with each pixel repeated 2x2.

    This takes 4/9 of the multiplications of the direct sum: a 3x3 window on the repeated image
    covers only 2x2 different pixels of x, so the output pixels of each parity are a 2x2 convolution
    of x whose weights are sums of the kernel's. Along one axis, with kernel (a, b, c):

      y[2i]     = a x[i-1] + b x[i] + c x[i]   = a x[i-1] + (b + c) x[i]
      y[2i + 1] = a x[i] + b x[i] + c x[i+1]   = (a + b) x[i] + c x[i+1]

    Args:
      x: [B, H, W, C], any float type.
      kernel: [3, 3, C, D] float32; summed in float32, then applied in the type of x.

    Returns:
      [B, 2H, 2W, D] in the type of x.

    Between many float32 channels, a CPU takes 1/4 of the multiplications: `winograd.py`.
    """
    by_winograd = winograd.suits_upsampling(x.dtype, kernel.shape) and not _AS_WRITTEN.get()
    if jax.default_backend() == "cpu" and by_winograd:
        return checkpoint_name(winograd.convolve_upsampled(x, kernel), CONVOLUTION)
    batch, height, width, _ = x.shape

    def phases(kernel: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
        a, b, c = jnp.split(kernel, 3, axis)
        return jnp.concatenate([a, b + c], axis), jnp.concatenate([a + b, c], axis)

    # A window on row 2i + row reaches one row up where row is 0 and one down where it is 1.
    def conv2x2(row: int, col: int, kernel: jax.Array) -> jax.Array:
        return conv2d(x, kernel.astype(x.dtype), padding=((1 - row, row), (1 - col, col)))

    rows = [
        jnp.stack([conv2x2(i, j, phase) for j, phase in enumerate(phases(row_kernel, 1))], axis=3)
        for i, row_kernel in enumerate(phases(kernel, 0))
    ]
    # [B, H, 2, W, 2, D]: the four parities interleave into the doubled image.
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, kernel.shape[-1])
