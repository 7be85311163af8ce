"""Winograd's minimal filtering F(2x2, 3x3): 3x3 convolutions in 4/9 of the multiplications.

Lavin and Gray (2016). The output is cut into tiles of 2x2 pixels, each of which depends on 4x4
pixels of the input d through the kernel g:

  y = Aᵀ [(G g Gᵀ) ∘ (Bᵀ d B)] A

where ∘, a product of 4x4 numbers, stands for 16 matrix products over the channels, for all tiles at
once. The entries of the matrices are small integers and halves, so the rounding errors are those of
the direct sum. `convolution.py` decides which convolutions are computed this way.

A transformation of all tiles is one array and one loop, of a sparse matrix along each axis of the
image (`sparse_maps.py`), and the products are one batch. JAX traces and lowers each function once
for all layers of one shape, and XLA compiles its loops once.

Where every pixel of the input was repeated 2x2 first, the four pixels of a tile of the output
depend on 3x3 pixels, and 9 products do (`convolve_upsampled`).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from ddpm_jax.models.sparse_maps import Sparse, apply_along, sparse
from ddpm_jax.separate_calls import compiled_apart

Matrix = tuple[tuple[float, ...], ...]
Function = Callable[..., jax.Array]

B_T = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
A_T = ((1, 1, 1, 0), (0, 1, -1, -1))
# likewise for the upsampled image
UPSAMPLED_B_T = ((1, -1, 0), (0, 1, 0), (0, 1, -1))
UPSAMPLED_G = ((1, 0, 0), (1, 1, 1), (0, 0, 1))
UPSAMPLED_A_T = ((1, 1, 0), (0, 1, -1))

DTYPES = (jnp.float32, jnp.float64)  # in bfloat16 the sums of pixels would lose digits
# with fewer, the transformations cost about what is saved, and programs take longer to compile
MIN_CHANNELS = 64
MIN_CHANNELS_UPSAMPLED = 64
# with fewer, the kernel's gradient takes longer than by the direct sum
WIDE = 128
# with fewer tiles, transforming the kernel costs more than is saved
MIN_TILES = 64
# with fewer of layers that are not wide, too little is saved for the time to compile them
MIN_TILES_NARROW = 1024
# bytes of transformed tiles of input and output: what may be in memory at once, and what a part of
# the batch should have, so that a cache holds it
MEMORY = 2**28
PART = 2**25
# likewise of layers that are not wide and of upsampling, whose tiles are many for their products
SMALL_PART = 2**24


def num_parts(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> int | None:
    """Return the number of equal parts to split a batch into; None where the direct sum is faster.

    The batch is zero-padded by 1. The transformed tiles of a part take at most `PART` or, where
    the layer is not wide, `SMALL_PART`; or it is an image.
    """
    batch, height, width, channels = x_shape
    features = kernel_shape[3]
    is_wide, tiles = min(channels, features) >= WIDE, (height // 2) * (width // 2)
    if (
        kernel_shape[:2] != (3, 3)
        or height % 2
        or width % 2
        or min(channels, features) < MIN_CHANNELS
        or batch * tiles < (MIN_TILES if is_wide else MIN_TILES_NARROW)
    ):
        return None
    # of an image, in float32
    tile_bytes = 4 * 16 * tiles * (channels + features)
    if tile_bytes >= MEMORY:
        return None
    return _parts_that_fit(batch, tile_bytes, PART if is_wide else SMALL_PART)


def _parts_that_fit(batch: int, image_bytes: int, limit: int) -> int:
    """Return the number of equal parts of a batch that take at most `limit` or are an image."""
    fitting = (n for n in range(1, batch) if batch % n == 0 and batch // n * image_bytes <= limit)
    return next(fitting, batch)


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the cross-correlation of x [B, H, W, C], zero-padded by 1, with kernel [3, 3, C, D].

    H and W are even.
    """
    return _convolve(x, kernel, parts=num_parts(x.shape, kernel.shape) or 1)


def input_gradient(y_bar: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the gradient of a loss w.r.t. x [B, H, W, C] from that w.r.t. the output [B, H, W, D].

    It is a convolution with the kernel turned by 180 degrees and its channels exchanged. They are
    exchanged in the matrix products, which costs nothing, not in memory.
    """
    shape = (3, 3, kernel.shape[3], kernel.shape[2])
    return _input_gradient(y_bar, kernel, parts=num_parts(y_bar.shape, shape) or 1)


def kernel_gradient(x: jax.Array, y_bar: jax.Array) -> jax.Array:
    """Return the gradient of a loss w.r.t. the kernel [3, 3, C, D] from that w.r.t. the output.

    g_bar = Gᵀ [(A y_bar Aᵀ) ∘ (Bᵀ d B)] G, the product summed over the tiles.
    """
    shape = (3, 3, x.shape[-1], y_bar.shape[-1])
    return _kernel_gradient(x, y_bar, parts=num_parts(x.shape, shape) or 1)


def suits_upsampling(dtype: DTypeLike, kernel_shape: tuple[int, ...]) -> bool:
    """Return whether `convolve_upsampled` is faster than four convolutions of 2x2 pixels."""
    return dtype in DTYPES and min(kernel_shape[2:]) >= MIN_CHANNELS_UPSAMPLED


@compiled_apart("parts")
def _convolve(x: jax.Array, kernel: jax.Array, *, parts: int) -> jax.Array:
    return _convolve_by(_transformed(G, kernel), x, parts, contracted=1)


@compiled_apart("parts")
def _input_gradient(y_bar: jax.Array, kernel: jax.Array, *, parts: int) -> jax.Array:
    turned = tuple(row[::-1] for row in G)
    return _convolve_by(_transformed(turned, kernel), y_bar, parts, contracted=2)


@compiled_apart("parts")
def _kernel_gradient(x: jax.Array, y_bar: jax.Array, *, parts: int) -> jax.Array:
    def of_images(x: jax.Array, y_bar: jax.Array) -> jax.Array:
        tiles, spread = _tiles(B_T, 2, x), _spread(A_T, y_bar)
        # [16, C, D]
        return lax.dot_general(tiles, spread, (((1,), (1,)), ((0,), (0,))))

    if parts == 1:
        products = of_images(x, y_bar)
    else:
        split = _split(x, parts), _split(y_bar, parts)
        products = lax.map(lambda part: of_images(*part), split).sum(axis=0)
    return _along_two(_transpose(G), products.reshape(4, 4, *products.shape[1:]), (0, 1))


@jax.custom_jvp
def convolve_upsampled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the convolution of x with every pixel repeated 2x2, zero-padded by 1.

    Along one axis, with the kernel (a, b, c), the two pixels that x[i] becomes are

      y[2i]     = a x[i-1] + (b + c) x[i] = a (x[i-1] - x[i]) + (a + b + c) x[i]
      y[2i + 1] = (a + b) x[i] + c x[i+1] = (a + b + c) x[i] - c (x[i] - x[i+1])

    which are three products, so along both axes nine. It is F(2x2, 3x3) on the repeated image, of
    which the third row and column of Bᵀ d B are 0.

    Args:
      x: [B, H, W, C].
      kernel: [3, 3, C, D].

    Returns:
      [B, 2H, 2W, D].
    """
    batch, height, width, channels = x.shape
    tile_bytes = 4 * 9 * height * width * (channels + kernel.shape[3])
    return _convolve_upsampled(x, kernel, parts=_parts_that_fit(batch, tile_bytes, SMALL_PART))


@convolve_upsampled.defjvp
def _convolve_upsampled_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Differentiate the whole batch at once: a loop over parts would keep the tiles of each."""
    return jax.jvp(functools.partial(_convolve_upsampled, parts=1), primals, tangents)


@compiled_apart("parts")
def _convolve_upsampled(x: jax.Array, kernel: jax.Array, *, parts: int) -> jax.Array:
    kernels = _transformed(UPSAMPLED_G, kernel)

    def images(x: jax.Array) -> jax.Array:
        products = _products(_tiles(UPSAMPLED_B_T, 1, x), kernels, contracted=1)
        return _pixels(UPSAMPLED_A_T, products, x.shape[:3])

    return _in_parts(images, x, parts)


def _convolve_by(kernels: jax.Array, x: jax.Array, parts: int, contracted: int) -> jax.Array:
    """Convolve as `convolve` does, given G kernel Gᵀ, the batch in equal parts.

    `contracted` is the axis of the kernels that is summed over.
    """

    def images(x: jax.Array) -> jax.Array:
        batch, height, width, _ = x.shape
        products = _products(_tiles(B_T, 2, x), kernels, contracted)
        return _pixels(A_T, products, (batch, height // 2, width // 2))

    return _in_parts(images, x, parts)


def _in_parts(function: Function, x: jax.Array, parts: int) -> jax.Array:
    """Apply a function of images to x, one part after the other."""
    if parts == 1:
        return function(x)
    y = lax.map(function, _split(x, parts)).swapaxes(0, 1)
    return y.reshape(-1, *y.shape[2:])


def _split(x: jax.Array, parts: int) -> jax.Array:
    """Return the images of each part, [parts, B / parts, H, W, C].

    A part takes every `parts`-th image, so that devices that share a batch share each part.
    """
    return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)


def _tiles(b_t: Matrix, step: int, x: jax.Array) -> jax.Array:
    """Return Bᵀ d B, [products, tiles, C], of the zero-padded image x [B, H, W, C].

    The window d of tile i, j begins at pixel step i - 1, step j - 1.
    """
    batch, height, width, channels = x.shape
    rows, columns = height // step, width // step
    x = apply_along(_windows(b_t, step, height), x, 1)
    x = apply_along(_windows(b_t, step, width), x, 2)
    x = x.reshape(batch, len(b_t), rows, len(b_t), columns, channels)
    return x.transpose(1, 3, 0, 2, 4, 5).reshape(-1, batch * rows * columns, channels)


def _products(tiles: jax.Array, kernels: jax.Array, contracted: int) -> jax.Array:
    """Return tile @ kernel of each of the products, [products, tiles, D]."""
    return lax.dot_general(tiles, kernels, (((2,), (contracted,)), ((0,), (0,))))


def _pixels(a_t: Matrix, products: jax.Array, tiles: tuple[int, ...]) -> jax.Array:
    """Return Aᵀ products A, the image [B, 2h, 2w, D] of B, h, w tiles."""
    batch, rows, columns = tiles
    products = products.reshape(len(a_t[0]), len(a_t[0]), batch, rows, columns, -1)
    y = _along_two(a_t, products, (0, 1)).transpose(2, 3, 0, 4, 1, 5)
    return y.reshape(batch, 2 * rows, 2 * columns, -1)


def _spread(a_t: Matrix, y: jax.Array) -> jax.Array:
    """Return A y Aᵀ, [products, tiles, D], the transpose of `_pixels`."""
    batch, height, width, channels = y.shape
    y = y.reshape(batch, height // 2, 2, width // 2, 2, channels)
    y = _along_two(_transpose(a_t), y, (2, 4)).transpose(2, 4, 0, 1, 3, 5)
    return y.reshape(len(a_t[0]) ** 2, -1, channels)


def _transformed(g: Matrix, kernel: jax.Array) -> jax.Array:
    """Return G kernel Gᵀ, [products, C, D]."""
    return _along_two(g, kernel, (0, 1)).reshape(-1, *kernel.shape[2:])


def _along_two(matrix: Matrix, x: jax.Array, axes: tuple[int, int]) -> jax.Array:
    for axis in axes:
        x = apply_along(sparse(matrix), x, axis)
    return x


@functools.lru_cache
def _windows(b_t: Matrix, step: int, size: int) -> Sparse:
    """Return the matrix that maps the pixels of an axis to Bᵀ d of its windows d.

    Row i, p of it, [len(b_t) * size // step, size], gives number i of window p.
    """
    count, reach = size // step, len(b_t[0])
    windows = np.zeros((len(b_t), count, size + 2))
    for p in range(count):
        windows[:, p, step * p : step * p + reach] = b_t
    return sparse(windows.reshape(-1, size + 2)[:, 1:-1])


def _transpose(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))
