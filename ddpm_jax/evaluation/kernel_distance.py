"""Maximum mean discrepancies between two sets of features: KID and CMMD.

  MMD² = E k(x, x') + E k(y, y') - 2 E k(x, y)                 Gretton et al. 2012, eq. 2

for independent x, x' of one distribution and y, y' of the other. Its unbiased estimate leaves out
the pairs of an element with itself and may be negative; the biased one keeps them and is at least
0. Everything is float64; kernels are computed a tile at a time (`pairwise`), with the sums over
rows kept. From these the standard error follows:

  Deleting one element changes the estimate by what its row contributes. The delete-one jackknife
  of both sets (Efron & Stein 1981) is in the mean never less than the variance. Where the
  distributions differ it tends to it; where they are equal the estimate is a degenerate
  U-statistic, and the error is up to √2 too large.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation.pairwise import check_feature_sets, product_tiles, squared_norms

CMMD_SIGMA = 10.0  # Jayasumana et al. 2024, section 4
CMMD_SCALE = 1000.0


class KernelDistance(NamedTuple):
    """A squared maximum mean discrepancy of two whole sets."""

    value: float
    standard_error: float  # over elements of both sets, by the jackknife


class KernelDistanceOfSubsets(NamedTuple):
    """The mean over random subsets."""

    value: float
    # standard deviation over subsets, that of their population: how far one subset's distance
    # scatters, and not an error of the mean
    deviation: float


class _KernelSums(NamedTuple):
    """Sums of the kernel of an N x N, N x M or M x M matrix."""

    xx: np.ndarray  # float64 [N], over rows
    xx_diagonal: np.ndarray  # float64 [N]
    yy: np.ndarray  # float64 [M]
    yy_diagonal: np.ndarray  # float64 [M]
    xy: np.ndarray  # float64 [N], over y
    yx: np.ndarray  # float64 [M], over x


# (inner products [n, m], |x|² [n, 1], |y|² [1, m]) -> kernel [n, m]
_Kernel = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def kernel_inception_distance(features_a: np.ndarray, features_b: np.ndarray) -> KernelDistance:
    """Return the unbiased MMD² of all pairs with the kernel (x·y / D + 1)³.

    Symmetric in the two sets. It takes D (N² + M² + 2 N M) multiplications.

    Args:
      features_a: [N, D], N at least 3.
      features_b: [M, D], M at least 3.

    Raises:
      UsageError: sets too small, or a feature that is not finite.

    Source: Bińkowski et al. 2018, section 4.
    """
    check_feature_sets(features_a, features_b, at_least=3, what="A kernel distance")
    return _distance(
        _kernel_sums(features_a, features_b, _cubic(features_a.shape[1])), biased=False
    )


def kernel_inception_distance_of_subsets(
    features_a: np.ndarray,
    features_b: np.ndarray,
    *,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 2020,
) -> KernelDistanceOfSubsets:
    """Return the mean of the unbiased MMD² over random subsets of equal size.

    The field's protocol; the defaults and the draws are torch-fidelity's: for each subset `size`
    elements of the first set, then of the second, without replacement, by one MT19937. The mean
    estimates what `kernel_inception_distance` does, with more noise.

    Args:
      features_a: [N, D], N at least `size`. The samples, where the draws should be
        torch-fidelity's with the samples as its first input.
      features_b: [M, D], M at least `size`.
      subsets: at least 1.
      size: at least 2.
      seed: of the draws.

    Raises:
      UsageError: a set with fewer than `size` elements, or a feature that is not finite.
    """
    if subsets < 1 or size < 2:
        raise UsageError(
            f"KID of {subsets} subsets of {size} elements: take at least 1 subset of 2."
        )
    check_feature_sets(
        features_a, features_b, at_least=size, what=f"KID of subsets of {size} elements"
    )
    random = np.random.RandomState(seed)
    kernel = _cubic(features_a.shape[1])
    distances = []
    for _ in range(subsets):
        a, b = (x[random.choice(len(x), size, replace=False)] for x in (features_a, features_b))
        distances.append(_mmd(_kernel_sums(a, b, kernel), biased=False))
    return KernelDistanceOfSubsets(float(np.mean(distances)), float(np.std(distances)))


def clip_mmd(features_a: np.ndarray, features_b: np.ndarray) -> KernelDistance:
    """Return CMMD: 1000 times the biased MMD² with the kernel exp(-|x - y|² / (2 · 10²)).

    The paper's features are the image embeddings of CLIP ViT-L/14 at 336 pixels, divided by their
    lengths; this function takes what it is given. Its reference implementation keeps the pairs of
    an element with itself, and so does this: in the mean that adds
    1000 ((1 - E k(x, x')) / N + (1 - E k(y, y')) / M), positive also for equal distributions.

    Args:
      features_a: [N, D], N at least 2.
      features_b: [M, D], M at least 2.

    Raises:
      UsageError: sets too small, or a feature that is not finite.

    Source: Jayasumana et al. 2024, section 4.
    """
    check_feature_sets(features_a, features_b, at_least=2, what="A CMMD")
    found = _distance(_kernel_sums(features_a, features_b, _gaussian), biased=True)
    return KernelDistance(*(CMMD_SCALE * number for number in found))


def _cubic(dims: int) -> _Kernel:
    def kernel(products, squares_x, squares_y):
        root = products / dims + 1
        return root * root * root  # NumPy's power takes ten times as long

    return kernel


def _gaussian(products: np.ndarray, squares_x: np.ndarray, squares_y: np.ndarray) -> np.ndarray:
    return np.exp((2 * products - squares_x - squares_y) / (2 * CMMD_SIGMA**2))


def _kernel_sums(a: np.ndarray, b: np.ndarray, kernel: _Kernel) -> _KernelSums:
    squares_a, squares_b = squared_norms(a), squared_norms(b)
    xy, yx = np.zeros(len(a)), np.zeros(len(b))
    for rows, columns, products in product_tiles(a, b):
        values = kernel(products, squares_a[rows, None], squares_b[None, columns])
        xy[rows] += values.sum(axis=1)
        yx[columns] += values.sum(axis=0)
    return _KernelSums(
        *_own_sums(a, squares_a, kernel), *_own_sums(b, squares_b, kernel), xy=xy, yx=yx
    )


def _own_sums(
    features: np.ndarray, squares: np.ndarray, kernel: _Kernel
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums over rows of a set's own kernel matrix, and its diagonal."""
    sums, diagonal = np.zeros(len(features)), np.zeros(len(features))
    for rows, columns, products in product_tiles(features):
        values = kernel(products, squares[rows, None], squares[None, columns])
        sums[rows] += values.sum(axis=1)
        if rows == columns:
            diagonal[rows] = np.diagonal(values)
        else:
            sums[columns] += values.sum(axis=0)
    return sums, diagonal


def _mmd(sums: _KernelSums, *, biased: bool) -> float:
    n, m = len(sums.xx), len(sums.yy)
    xx, yy, left_out = sums.xx.sum(), sums.yy.sum(), 0
    if not biased:
        xx, yy, left_out = xx - sums.xx_diagonal.sum(), yy - sums.yy_diagonal.sum(), 1
    return float(
        xx / (n * (n - left_out)) + yy / (m * (m - left_out)) - 2 * sums.xy.sum() / (n * m)
    )


def _distance(sums: _KernelSums, *, biased: bool) -> KernelDistance:
    variance = _jackknife_variance(
        sums.xx, sums.xx_diagonal, sums.xy, len(sums.yy), biased=biased
    ) + _jackknife_variance(sums.yy, sums.yy_diagonal, sums.yx, len(sums.xx), biased=biased)
    return KernelDistance(_mmd(sums, biased=biased), float(np.sqrt(variance)))


def _jackknife_variance(
    own: np.ndarray, diagonal: np.ndarray, cross: np.ndarray, num_others: int, *, biased: bool
) -> float:
    """Return (N-1)/N Σ (θ_i - mean θ)² over the estimates θ_i without element i of one set."""
    n = len(own)
    if biased:
        within = (own.sum() - 2 * own + diagonal) / (n - 1) ** 2
    else:
        within = (own.sum() - diagonal.sum() - 2 * (own - diagonal)) / ((n - 1) * (n - 2))
    without = within - 2 * (cross.sum() - cross) / ((n - 1) * num_others)
    return (n - 1) * without.var()
