"""Winograd's minimal filtering F(2x2, 3x3): 3x3 convolutions in 4/9 of the multiplications.

Lavin and Gray (2016). The output is cut into tiles of 2x2 pixels, each of which depends on 4x4
pixels of the input d through the kernel g:

  y = Aᵀ [(G g Gᵀ) ∘ (Bᵀ d B)] A

where ∘, a product of 4x4 numbers, stands for 16 matrix products over the channels, for all tiles at
once. The entries of the matrices are small integers and halves, so the rounding errors are those of
the direct sum. `convolution.py` decides which convolutions are computed this way.

JAX traces and lowers each function once for all layers of one shape. Written out for every layer,
these sums took more than half of the time to trace a training step.

Where every pixel of the input was repeated 2x2 first, the four pixels of a tile of the output
depend on 3x3 pixels, and 9 products do (`convolve_upsampled`).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

B_T = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
A_T = ((1, 1, 1, 0), (0, 1, -1, -1))
# likewise for the upsampled image
UPSAMPLED_B_T = ((1, -1, 0), (0, 1, 0), (0, 1, -1))
UPSAMPLED_G = ((1, 0, 0), (1, 1, 1), (0, 0, 1))
UPSAMPLED_A_T = ((1, 1, 0), (0, 1, -1))

DTYPES = (jnp.float32, jnp.float64)  # in bfloat16 the sums of pixels would lose digits
# with fewer, the transformations cost about what is saved, and programs take longer to compile
MIN_CHANNELS = 128
MIN_CHANNELS_UPSAMPLED = 64
# with fewer tiles, transforming the kernel costs more than is saved
MIN_TILES = 64
# bytes of transformed tiles of input and output, in memory at once
MEMORY = 2**28

Blocks = list[list[jax.Array]]  # a matrix of arrays of one shape


def num_parts(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> int | None:
    """Return the number of equal parts to split a batch into; None where the direct sum is faster.

    The batch is zero-padded by 1. The transformed tiles of a part take at most `MEMORY`.
    """
    batch, height, width, channels = x_shape
    features = kernel_shape[3]
    if (
        kernel_shape[:2] != (3, 3)
        or height % 2
        or width % 2
        or min(channels, features) < MIN_CHANNELS
        or batch * (height // 2) * (width // 2) < MIN_TILES
    ):
        return None
    # of an image, in float32
    tile_bytes = 4 * 16 * (height // 2) * (width // 2) * (channels + features)
    return next(
        (n for n in range(1, batch + 1) if batch % n == 0 and batch // n * tile_bytes < MEMORY),
        None,
    )


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the cross-correlation of x [B, H, W, C], zero-padded by 1, with kernel [3, 3, C, D].

    H and W are even.
    """
    return _convolve(x, kernel, parts=num_parts(x.shape, kernel.shape) or 1)


@functools.partial(jax.jit, static_argnames="parts")
def _convolve(x: jax.Array, kernel: jax.Array, *, parts: int) -> jax.Array:
    return _convolve_by(_transform(G, _pixels(kernel)), x, parts)


def suits_upsampling(dtype: DTypeLike, kernel_shape: tuple[int, ...]) -> bool:
    """Return whether `convolve_upsampled` is faster than four convolutions of 2x2 pixels."""
    return dtype in DTYPES and min(kernel_shape[2:]) >= MIN_CHANNELS_UPSAMPLED


@jax.jit
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
    batch, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = [[x[:, i : i + height, j : j + width] for j in range(3)] for i in range(3)]
    kernels = _transform(UPSAMPLED_G, _pixels(kernel))
    products = _products(_transform(UPSAMPLED_B_T, windows), kernels)
    return _interleave(_transform(UPSAMPLED_A_T, products), (batch, height, width))


def input_gradient(y_bar: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the gradient of a loss w.r.t. x [B, H, W, C] from that w.r.t. the output [B, H, W, D].

    It is a convolution with the kernel turned by 180 degrees and its channels exchanged. They are
    exchanged in the matrix products, which costs nothing, not in memory.
    """
    shape = (3, 3, kernel.shape[3], kernel.shape[2])
    return _input_gradient(y_bar, kernel, parts=num_parts(y_bar.shape, shape) or 1)


@functools.partial(jax.jit, static_argnames="parts")
def _input_gradient(y_bar: jax.Array, kernel: jax.Array, *, parts: int) -> jax.Array:
    turned = _transform(G, [[kernel[2 - i, 2 - j] for j in range(3)] for i in range(3)])
    return _convolve_by([[block.T for block in row] for row in turned], y_bar, parts)


def kernel_gradient(x: jax.Array, y_bar: jax.Array) -> jax.Array:
    """Return the gradient of a loss w.r.t. the kernel [3, 3, C, D] from that w.r.t. the output.

    g_bar = Gᵀ [(A y_bar Aᵀ) ∘ (Bᵀ d B)] G, the product summed over the tiles.
    """
    shape = (3, 3, x.shape[-1], y_bar.shape[-1])
    return _kernel_gradient(x, y_bar, parts=num_parts(x.shape, shape) or 1)


@functools.partial(jax.jit, static_argnames="parts")
def _kernel_gradient(x: jax.Array, y_bar: jax.Array, *, parts: int) -> jax.Array:
    def of_images(x: jax.Array, y_bar: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        y_bar = y_bar.reshape(batch, height // 2, 2, width // 2, 2, -1)
        spread = _transform(
            _transpose(A_T), [[y_bar[:, :, i, :, j] for j in range(2)] for i in range(2)]
        )
        products = [
            [
                tile.reshape(-1, channels).T @ y.reshape(-1, y_bar.shape[-1])
                for tile, y in zip(*row, strict=True)
            ]
            for row in zip(_transform(B_T, _windows(x)), spread, strict=True)
        ]
        return jnp.stack([jnp.stack(row) for row in _transform(_transpose(G), products)])

    if parts == 1:
        return of_images(x, y_bar)
    split = [array.reshape(parts, -1, *array.shape[1:]) for array in (x, y_bar)]
    return lax.map(lambda part: of_images(*part), split).sum(axis=0)


def _convolve_by(kernels: Blocks, x: jax.Array, parts: int) -> jax.Array:
    """Convolve as `convolve` does, given G kernel Gᵀ, the batch in equal parts."""

    def images(x: jax.Array) -> jax.Array:
        batch, height, width, _ = x.shape
        products = _products(_transform(B_T, _windows(x)), kernels)
        return _interleave(_transform(A_T, products), (batch, height // 2, width // 2))

    if parts == 1:
        return images(x)
    y = lax.map(images, x.reshape(parts, -1, *x.shape[1:]))
    return y.reshape(-1, *y.shape[2:])


def _pixels(kernel: jax.Array) -> Blocks:
    """Return the 3x3 pixels of a kernel, each [C, D]."""
    return [[kernel[i, j] for j in range(3)] for i in range(3)]


def _products(tiles: Blocks, kernels: Blocks) -> Blocks:
    """Return tile @ kernel of each block, [tiles, D]."""
    return [
        [tile.reshape(-1, tile.shape[-1]) @ kernel for tile, kernel in zip(*row, strict=True)]
        for row in zip(tiles, kernels, strict=True)
    ]


def _interleave(blocks: Blocks, shape: tuple[int, int, int]) -> jax.Array:
    """Return the image [B, 2h, 2w, D] of tiles of 2x2 pixels.

    Block i, j is pixel i, j of all tiles; `shape` is B, h, w.
    """
    batch, height, width = shape
    rows = [jnp.stack([block.reshape(*shape, -1) for block in row], axis=3) for row in blocks]
    # [B, h, 2, w, 2, D]
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1)


def _windows(x: jax.Array) -> Blocks:
    """Return the 4x4 pixels that each tile depends on.

    Block i, j is pixel i, j of all windows, [B, H/2, W/2, C].
    """
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [
        [
            lax.slice(
                x, (0, i, j, 0), (batch, i + height - 1, j + width - 1, channels), (1, 2, 2, 1)
            )
            for j in range(4)
        ]
        for i in range(4)
    ]


def _transform(matrix: Sequence[Sequence[float]], blocks: Blocks) -> Blocks:
    """Return matrix @ blocks @ matrixᵀ."""
    half = [
        [_combine(row, [blocks[i][j] for i in range(len(row))]) for j in range(len(blocks[0]))]
        for row in matrix
    ]
    return [[_combine(row, half_row) for row in matrix] for half_row in half]


def _combine(weights: Sequence[float], blocks: Sequence[jax.Array]) -> jax.Array:
    """Return the weighted sum of arrays, without multiplying by 0 and 1."""
    terms = [
        block if weight == 1 else -block if weight == -1 else weight * block
        for weight, block in zip(weights, blocks, strict=True)
        if weight
    ]
    return sum(terms[1:], terms[0])


def _transpose(matrix: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    return list(zip(*matrix, strict=True))
