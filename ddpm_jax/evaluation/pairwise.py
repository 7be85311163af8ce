"""Inner products and squared distances of all pairs of two sets of features, a tile at a time.

The sets stay as they are; the features of a tile are converted to float64, so that the memory taken
besides the sets is a few times `BUFFER`, whatever their size. What is done with a tile is known to
`kernel_distance`, `neighbours` and `memorization`.
"""

from collections.abc import Iterator

import numpy as np

from ddpm_jax.errors import UsageError

BUFFER = 2**26  # bytes that a tile, or one side's features of it in float64, take at most

# A tile: the rows of the first set, those of the second, and float64 [rows, columns] of the pairs
Tile = tuple[slice, slice, np.ndarray]


def check_feature_sets(*sets: np.ndarray, at_least: int, what: str) -> None:
    """Refuse sets that cannot be compared.

    Args:
      sets: arrays [N, D].
      at_least: the fewest elements of each.
      what: the subject of the sentence.

    Raises:
      UsageError: not [N, D] with one D, too few elements, or a number that is not finite.
    """
    shapes = [list(features.shape) for features in sets]
    if any(len(shape) != 2 for shape in shapes) or len({shape[1] for shape in shapes}) != 1:
        raise UsageError(f"{what} compares features [N, D] of one D, got the shapes {shapes}.")
    fewest = min(map(len, sets))
    if fewest < at_least:
        raise UsageError(
            f"{what} needs at least {at_least} examples of each set, got {fewest}: take more."
        )
    for features in sets:  # minimum and maximum propagate NaN and make no array
        if not np.isfinite([features.min(), features.max()]).all():
            raise UsageError(
                f"{what}: a feature is not-a-number or infinite, so an image or the network's "
                "weights are damaged."
            )


def product_tiles(a: np.ndarray, b: np.ndarray | None = None) -> Iterator[Tile]:
    """Yield the inner products of elements of `a` [N, D] and `b` [M, D], real numbers.

    With `b` None those of `a` with itself, each unordered pair of tiles once: the columns of a tile
    begin where its rows do or later.
    """
    second = a if b is None else b
    step = _rows_of_a_tile(a.shape[1])
    for start in range(0, len(a), step):
        rows = slice(start, min(start + step, len(a)))
        x = a[rows].astype(np.float64)
        for first in range(start if b is None else 0, len(second), step):
            columns = slice(first, min(first + step, len(second)))
            yield rows, columns, x @ second[columns].astype(np.float64).T


def distance_tiles(a: np.ndarray, b: np.ndarray | None = None) -> Iterator[Tile]:
    """Yield the squared Euclidean distances of elements; arguments are those of `product_tiles`.

    |x|² + |y|² - 2 x·y, at least 0: exact for features that are whole numbers, such as pixels,
    otherwise to about 1e-15 (|x|² + |y|²).
    """
    squares_a = squared_norms(a)
    squares_b = squares_a if b is None else squared_norms(b)
    for rows, columns, tile in product_tiles(a, b):
        tile *= -2
        tile += squares_a[rows, None]
        tile += squares_b[None, columns]
        yield rows, columns, np.maximum(tile, 0, out=tile)


def squared_norms(features: np.ndarray) -> np.ndarray:
    """Return |x|² of features [N, D], float64 [N]."""
    step = _rows_of_a_tile(features.shape[1])
    parts = [
        np.sum(features[start : start + step].astype(np.float64) ** 2, axis=1)
        for start in range(0, len(features), step)
    ]
    return np.concatenate(parts)


def _rows_of_a_tile(dims: int) -> int:
    """Return how many elements fit on a side, at least 1."""
    return max(1, min(int((BUFFER / 8) ** 0.5), BUFFER // (8 * max(1, dims))))
