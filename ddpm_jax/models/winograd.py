"""Winograd's minimal filtering F(2x2, 3x3): 3x3 convolutions in 4/9 of the multiplications.

Lavin and Gray (2016). The output is cut into tiles of 2x2 pixels, each of which depends on 4x4
pixels of the input d through the kernel g:

  y = Aᵀ [(G g Gᵀ) ∘ (Bᵀ d B)] A

where ∘, a product of 4x4 numbers, stands for 16 matrix products over the channels, for all tiles at
once. The entries of the matrices are small integers and halves, so the rounding errors are those of
the direct sum. `convolution.py` decides which convolutions are computed this way.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

B_T = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
A_T = ((1, 1, 1, 0), (0, 1, -1, -1))

# with fewer, the transformations cost about what is saved, and programs take longer to compile
MIN_CHANNELS = 128
# bytes of transformed tiles of input and output; with more, memory and not arithmetic decides
CACHE = 2**25

Blocks = list[list[jax.Array]]  # a matrix of arrays of one shape


def num_parts(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> int | None:
    """Return the number of equal parts to split a batch into; None where the direct sum is faster.

    The batch is zero-padded by 1. The transformed tiles of a part stay in the cache of the CPU.
    """
    batch, height, width, channels = x_shape
    features = kernel_shape[3]
    if (
        kernel_shape[:2] != (3, 3)
        or height % 2
        or width % 2
        or min(channels, features) < MIN_CHANNELS
    ):
        return None
    # of an image, in float32
    tile_bytes = 4 * 16 * (height // 2) * (width // 2) * (channels + features)
    return next(
        (n for n in range(1, batch + 1) if batch % n == 0 and batch // n * tile_bytes < CACHE), None
    )


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the cross-correlation of x [B, H, W, C], zero-padded by 1, with kernel [3, 3, C, D].

    H and W are even.
    """
    return _convolve(x, _transform(G, [[kernel[i, j] for j in range(3)] for i in range(3)]))


def input_gradient(y_bar: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the gradient of a loss w.r.t. x [B, H, W, C] from that w.r.t. the output [B, H, W, D].

    It is a convolution with the kernel turned by 180 degrees and its channels exchanged. They are
    exchanged in the matrix products, which costs nothing, not in memory.
    """
    turned = _transform(G, [[kernel[2 - i, 2 - j] for j in range(3)] for i in range(3)])
    return _convolve(y_bar, [[block.T for block in row] for row in turned])


def kernel_gradient(x: jax.Array, y_bar: jax.Array) -> jax.Array:
    """Return the gradient of a loss w.r.t. the kernel [3, 3, C, D] from that w.r.t. the output.

    g_bar = Gᵀ [(A y_bar Aᵀ) ∘ (Bᵀ d B)] G, the product summed over the tiles.
    """

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


def _convolve(x: jax.Array, kernels: Blocks) -> jax.Array:
    """Convolve as `convolve` does, given G kernel Gᵀ."""

    def images(x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        products = [
            [tile.reshape(-1, channels) @ kernel for tile, kernel in zip(*row, strict=True)]
            for row in zip(_transform(B_T, _windows(x)), kernels, strict=True)
        ]
        y = [
            [block.reshape(batch, height // 2, width // 2, -1) for block in row]
            for row in _transform(A_T, products)
        ]
        # [B, H/2, 2, W/2, 2, D]: pixel i, j of every tile
        rows = [jnp.stack(row, axis=3) for row in y]
        return jnp.stack(rows, axis=2).reshape(batch, height, width, -1)

    count = num_parts(x.shape, (3, 3, *kernels[0][0].shape)) or 1
    if count == 1:
        return images(x)
    y = lax.map(images, x.reshape(count, -1, *x.shape[1:]))
    return y.reshape(-1, *y.shape[2:])


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
