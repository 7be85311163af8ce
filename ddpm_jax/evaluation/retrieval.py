"""Retrieval: which pictures of a set are nearest to others, and how often chance finds a match.

The distance is Euclidean, of pixels: for small images with little freedom of position, such as
digits or icons. For photos it says little.
"""

import numpy as np

from ddpm_jax import host_memory

_AT_A_TIME = 1024  # pictures of the set in float64


def nearest_images(images: np.ndarray, candidates: np.ndarray, count: int) -> np.ndarray:
    """Return the `count` candidates nearest to each image, int [n, count], the nearest first.

    Of equal distances the first candidate counts as nearer.

    Args:
      images: uint8 [n, H, W, C].
      candidates: uint8 [N, H, W, C], N at least `count`.
      count: at least 1.
    """
    x = images.reshape(len(images), -1).astype(np.float64)
    distances = np.concatenate(
        [
            _squared_distances(x, candidates[start : start + _AT_A_TIME])
            for start in range(0, len(candidates), _AT_A_TIME)
        ],
        axis=1,
    )
    return np.argsort(distances, axis=1, kind="stable")[:, :count]


def check_retrieval(num_images: int, num_candidates: int, dims: int) -> None:
    """Refuse sets whose distances do not fit into memory.

    Raises:
      UsageError: `nearest_images` of so many would need more memory than there is.
    """
    host_memory.check(
        8 * (num_images * (dims + 3 * num_candidates) + _AT_A_TIME * dims),
        what=f"The distances of {num_images:,} images to {num_candidates:,}",
        remedy="lower num_samples",
    )


def chance_of_match(matches: np.ndarray, num_candidates: int, count: int) -> float:
    """Return how often one of `count` candidates drawn at random is a match, the mean over images.

    Args:
      matches: int [n], how many of the candidates are one for each image.
      num_candidates: N, at least `count`.
      count: drawn without replacement.
    """
    drawn = np.arange(count)[None]
    others = np.maximum(num_candidates - matches[:, None] - drawn, 0)
    return float(np.mean(1 - np.prod(others / (num_candidates - drawn), axis=1)))


def _squared_distances(x: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return those of x, float64 [n, D], to uint8 [m, H, W, C]: exact, as pixels are whole."""
    y = candidates.reshape(len(candidates), -1).astype(np.float64)
    return (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
