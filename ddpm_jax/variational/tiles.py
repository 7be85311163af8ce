"""Large latents decoded in tiles that overlap, so that memory is that of one tile.

A tile is decoded by itself: its attention and its norms see nothing of the others, and its edge
is padded as that of an image. In the overlap the images of neighbours are mixed, with weights that
fall linearly towards the edge of each; outside of it a pixel is that of its one tile.
"""

from collections.abc import Callable
from itertools import product

import chex
import jax
import jax.numpy as jnp
import numpy as np

OVERLAP = 0.25  # of the side of a tile, at least


def decode_in_tiles(
    decode: Callable[[chex.Array], chex.Array], z: chex.Array, tile: int
) -> chex.Array:
    """Return the images of latents z, decoded tile by tile.

    Args:
      decode: [B, h, w, c] -> [B, h F, w F, C], for any h and w; traceable by JAX.
      z: [B, H/F, W/F, c].
      tile: height and width of a tile in latents, 2 or more. A side of z that is no longer is not
        cut.

    Returns:
      [B, H, W, C]; `decode(z)` if one tile is all of it.
    """
    sides = z.shape[1:3]
    starts = [tile_starts(side, tile) for side in sides]
    height, width = (min(side, tile) for side in sides)
    corners = list(product(*starts))
    if len(corners) == 1:
        return decode(z)
    tiles = jnp.stack([z[:, i : i + height, j : j + width] for i, j in corners])
    images = jax.lax.map(decode, tiles)
    factor = images.shape[2] // height
    across = _shares(starts[0], sides[0] * factor, height * factor, factor)
    along = _shares(starts[1], sides[1] * factor, width * factor, factor)
    total = jnp.zeros((z.shape[0], sides[0] * factor, sides[1] * factor, images.shape[-1]))
    for image, (i, j) in zip(images, corners, strict=True):
        share = np.outer(across[i], along[j])[None, :, :, None]
        rows, columns = (
            slice(start * factor, (start + size) * factor)
            for start, size in ((i, height), (j, width))
        )
        total = total.at[:, rows, columns].add(image * share)
    return total


def tile_starts(side: int, tile: int) -> list[int]:
    """Return where the tiles along a side begin: evenly, the last one flush with the end.

    Neighbours overlap by `OVERLAP` of a tile or more.
    """
    if side <= tile:
        return [0]
    stride = tile - max(1, round(OVERLAP * tile))
    count = -(-(side - tile) // stride) + 1
    return [round(k * (side - tile) / (count - 1)) for k in range(count)]


def _shares(starts: list[int], side: int, tile: int, factor: int) -> dict[int, np.ndarray]:
    """Return the share of the tile at each start in its pixels, float32 [tile], summing to 1.

    A share is proportional to the distance to the nearer edge of the tile that is inside the image.
    """
    ramps, total = {}, np.zeros(side)
    for start in starts:
        pixels = np.arange(tile) + 0.5
        below = pixels if start else np.full(tile, np.inf)
        above = tile - pixels if start * factor + tile < side else np.full(tile, np.inf)
        ramps[start] = np.minimum(np.minimum(below, above), tile)
        total[start * factor : start * factor + tile] += ramps[start]
    return {
        start: np.float32(ramp / total[start * factor : start * factor + tile])
        for start, ramp in ramps.items()
    }
