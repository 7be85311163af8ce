"""Precision, recall, density and coverage: whether each set lies among the other's neighbours.

The support of a set of features is taken to be the union of balls, one around each element, that
reach to its k-th nearest neighbour in the set. Precision and recall are of Kynkäänniemi et al.
2019, eq. 1 and 2; density and coverage, which one stray real image cannot move as far, of Naeem et
al. 2020, eq. 5 and 6. Everything is float64, a tile of pairs at a time (`pairwise`).

A point on the sphere counts as inside, with the rounding of the distances allowed for.
"""

from typing import NamedTuple

import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation.pairwise import check_feature_sets, distance_tiles, squared_norms

PRECISION_NEIGHBOURS = 3  # Kynkäänniemi et al. 2019, section 3.1
DENSITY_NEIGHBOURS = 5  # Naeem et al. 2020, section 4
_ROUNDING = 1e-13  # of a squared distance, as a share of |x|² + |y|²


class Share(NamedTuple):
    """A mean over the elements of one set, the other as it is."""

    value: float
    # over the elements that are counted. The balls are taken as given, so that of small sets,
    # whose balls are themselves random, it is too small.
    standard_error: float


class NeighbourMeasures(NamedTuple):
    """How the supports of samples and real images cover each other."""

    precision: Share  # of the samples, inside the balls of real images
    recall: Share  # of the real images, inside the balls of samples
    density: Share  # balls of real images that a sample lies in, over k; may exceed 1
    coverage: Share  # of the real images, whose ball has a sample in it


def neighbour_measures(
    samples: np.ndarray,
    real: np.ndarray,
    *,
    k: int = PRECISION_NEIGHBOURS,
    k_density: int = DENSITY_NEIGHBOURS,
) -> NeighbourMeasures:
    """Return precision, recall, density and coverage of samples with respect to real images.

    All four depend on the sizes of the sets, as the balls shrink with these: compare numbers of
    equal sizes only. If samples and real images have one distribution, the density is 1 in the mean
    and the coverage `expected_coverage`, whatever the distribution.

    Args:
      samples: features [M, D] of generated images, more than k of them.
      real: features [N, D], more than k and more than k_density of them.
      k: of the balls of precision and recall, at least 1.
      k_density: of those of density and coverage, at least 1.

    Raises:
      UsageError: sets too small, or a feature that is not finite.
    """
    if min(k, k_density) < 1:
        raise UsageError(f"k is {k} and k_density {k_density}: choose at least 1.")
    what = f"Precision and recall of {max(k, k_density)} neighbours"
    check_feature_sets(samples, real, at_least=max(k, k_density) + 1, what=what)
    real_radii = neighbour_distances(real, max(k, k_density))
    sample_radii = neighbour_distances(samples, k)[:, k - 1]
    precise, balls = np.zeros(len(samples), bool), np.zeros(len(samples))
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    squares_s, squares_r = squared_norms(samples), squared_norms(real)
    for rows, columns, tile in distance_tiles(samples, real):
        tile -= _ROUNDING * squares_s[rows, None]
        tile -= _ROUNDING * squares_r[None, columns]
        precise[rows] |= (tile <= real_radii[None, columns, k - 1]).any(axis=1)
        recalled[columns] |= (tile <= sample_radii[rows, None]).any(axis=0)
        inside = tile <= real_radii[None, columns, k_density - 1]
        balls[rows] += inside.sum(axis=1)
        covered[columns] |= inside.any(axis=0)
    return NeighbourMeasures(*map(_share, (precise, recalled, balls / k_density, covered)))


def expected_coverage(num_samples: int, num_real: int, k: int = DENSITY_NEIGHBOURS) -> float:
    """Return the mean coverage of M samples and N real images of one continuous distribution.

    A real image is not covered if its k nearest of the N + M - 1 others are all real:

      1 - (N-1) ... (N-k) / ((N+M-1) ... (N+M-k))

    Source: Naeem et al. 2020, eq. 9.
    """
    i = np.arange(1, k + 1)
    return float(1 - np.prod((num_real - i) / (num_real + num_samples - i)))


def neighbour_distances(features: np.ndarray, k: int) -> np.ndarray:
    """Return the squared distances of each element to its k nearest others, float64 [N, k].

    The nearest first; an element is not its own neighbour, but its copy is.

    Args:
      features: [N, D], N more than `k`.
      k: at least 1.
    """
    nearest = np.full((len(features), k), np.inf)
    for rows, columns, tile in distance_tiles(features):
        if rows == columns:
            np.fill_diagonal(tile, np.inf)
        else:
            nearest[columns] = _smallest(nearest[columns], tile.T)
        nearest[rows] = _smallest(nearest[rows], tile)
    return nearest


def _smallest(found: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Return the k smallest numbers of each row of both, sorted; `found` is [n, k]."""
    k = found.shape[1]
    if more.shape[1] > k:
        more = np.partition(more, k - 1, axis=1)[:, :k]
    return np.sort(np.concatenate([found, more], axis=1), axis=1)[:, :k]


def _share(values: np.ndarray) -> Share:
    values = values.astype(np.float64)
    return Share(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))
