"""The Frechet distance between two sets of features, each summarised by a Gaussian.

With Inception features this distance is the FID; those features are not computed here. Everything
is float64 NumPy on the host: the matrix square root of a nearly singular covariance needs all
digits.

Two sets are compared in one of two ways, whichever takes fewer operations: by their D x D
covariances, or, where the smaller set has fewer than about D elements, by the N x M products of
their elements. Both give the same number.
"""

import chex
import numpy as np
import scipy

from ddpm_jax import host_memory
from ddpm_jax.errors import UsageError

BUFFER = 2**27  # bytes that features in float64, or the products of some of them, take at a time


class GaussianAccumulator:
    """Mean and covariance of features that come in batches.

    By the pairwise update of Chan, Golub & LeVeque (1983).
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: np.ndarray | float = 0.0
        self._scatter: np.ndarray | float = 0.0

    def add(self, features: np.ndarray) -> None:
        """Add features [n, D] of any real dtype; n may be 0."""
        chex.assert_rank(features, 2)
        if not len(features):
            return
        features = np.asarray(features, np.float64)
        mean = features.mean(axis=0)
        centred = features - mean
        count = self.count + len(features)
        shift = mean - self._mean
        # In place: D x D arrays are the largest there are.
        scatter = centred.T @ centred
        if self.count:
            scatter += self._scatter
            scatter += np.outer(shift, shift * (self.count * len(features) / count))
        self._scatter = scatter
        self._mean = self._mean + shift * (len(features) / count)
        self.count = count

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean [D] and the covariance [D, D], float64, normalised by N - 1.

        Raises:
          UsageError: fewer than two features were added.
        """
        if self.count < 2:
            raise UsageError(
                f"A covariance needs at least 2 samples, got {self.count}: evaluate more of them."
            )
        return self._mean, self._scatter / (self.count - 1)


def gaussian_statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean [D] and covariance [D, D] (normalised by N - 1), float64, of features [N, D].

    Besides the features it takes a few times `BUFFER` and three D x D arrays.

    Raises:
      UsageError: N < 2.
    """
    accumulator = GaussianAccumulator()
    rows = max(1, BUFFER // (8 * features.shape[1]))
    for start in range(0, len(features), rows):
        accumulator.add(features[start : start + rows])
    return accumulator.statistics()


def frechet_distance(
    mean_1: np.ndarray, cov_1: np.ndarray, mean_2: np.ndarray, cov_2: np.ndarray
) -> float:
    """Return the squared Frechet (2-Wasserstein) distance between two Gaussians.

      d² = |μ₁ - μ₂|² + tr(C₁ + C₂ - 2 (C₁C₂)^½)

    With any factors C = F Fᵀ the trace of the root is the sum of the singular values of F₁ᵀF₂. This
    needs no root of a product that is not symmetric, stays real for singular covariances, and keeps
    all digits, where the eigenvalues of C₁C₂ lose half of theirs to the square root.

    Args:
      mean_1: [D].
      cov_1: [D, D], symmetric, positive semi-definite, of any rank.
      mean_2: [D].
      cov_2: [D, D].

    Returns:
      d² >= 0.

    Raises:
      ValueError: a covariance has a negative eigenvalue beyond rounding, or something is not
        finite.

    Source: Dowson & Landau 1982, eq. 4; as a distance between sets of images Heusel et al. 2017,
      eq. 6.
    """
    mean_1, cov_1, mean_2, cov_2 = (
        np.asarray(array, np.float64) for array in (mean_1, cov_1, mean_2, cov_2)
    )
    chex.assert_shape([mean_1, mean_2], (len(mean_1),))
    chex.assert_shape([cov_1, cov_2], (len(mean_1), len(mean_1)))
    root_trace = scipy.linalg.svdvals(covariance_factor(cov_1).T @ covariance_factor(cov_2)).sum()
    squared = np.sum((mean_1 - mean_2) ** 2) + np.trace(cov_1) + np.trace(cov_2) - 2 * root_trace
    return max(0.0, float(squared))


def frechet_distance_of_sets(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """Return the distance between Gaussians fitted to two sets, the cheaper of two ways.

    With the centred features X [N, D] and Y [M, D] as rows, C_1 = XᵀX / (N-1) has the factor Xᵀ /
    √(N-1), so that

      tr (C₁C₂)^½ = |X Yᵀ|_* / √((N-1)(M-1)),   tr C₁ = |X|² / (N-1)

    with the nuclear norm, the sum of the singular values, of an N x M matrix, and nothing is D x D.
    The error of a singular value is at most a few ε of the largest, ε = 2e-16, and so that of their
    sum is min(N, M) ε of the traces.

    Args:
      features_a: [N, D], of any real dtype.
      features_b: [M, D].

    Returns:
      d² >= 0.

    Raises:
      UsageError: a set has fewer than 2 elements, or neither way has the memory it needs.
    """
    chex.assert_rank([features_a, features_b], 2)
    check_sets(len(features_a), len(features_b), features_a.shape[1])
    if prefers_elements(len(features_a), len(features_b), features_a.shape[1]):
        return _distance_by_elements(features_a, features_b)
    return frechet_distance(*gaussian_statistics(features_a), *gaussian_statistics(features_b))


def memory_needed(num_a: int, num_b: int, dims: int) -> int:
    """Return the bytes that `frechet_distance_of_sets` takes at most besides the features."""
    if prefers_elements(num_a, num_b, dims):
        return 8 * num_a * num_b + 3 * max(BUFFER, 8 * (num_a + num_b))
    # Both covariances; for the second also a copy, its eigenvectors and its factor, besides the
    # factor of the first.
    return 6 * 8 * dims**2 + 3 * max(BUFFER, 8 * dims)


def check_sets(
    num_a: int, num_b: int, dims: int, *, besides: int = 0, remedy: str = "compare smaller sets"
) -> None:
    """Refuse a distance that cannot be computed, before there are sets for it.

    Args:
      num_a, num_b: elements of the sets.
      dims: D.
      besides: bytes in use by the time the distance is computed.
      remedy: what to do where the memory does not suffice, in the imperative.

    Raises:
      UsageError: a set has fewer than 2 elements, or the memory needed is more than there is.
    """
    fewer = min(num_a, num_b)
    if fewer < 2:
        raise UsageError(
            f"A covariance needs at least 2 samples, got {fewer}: evaluate more of them."
        )
    host_memory.check(
        memory_needed(num_a, num_b, dims) + besides,
        what=f"The Frechet distance between {num_a:,} and {num_b:,} examples of {dims:,} numbers",
        remedy=remedy,
    )


def prefers_elements(num_a: int, num_b: int, dims: int) -> bool:
    """Return whether the N x M way takes fewer operations, to leading order."""
    few, many = sorted((num_a, num_b))
    by_elements = 2 * few * many * dims + 4 * few**2 * many
    # Two eigendecompositions with vectors, of some 10 D³ each, and the singular values of a
    # product.
    return by_elements < 2 * (few + many) * dims**2 + 25 * dims**3


def _distance_by_elements(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """Compute the distance by N x M products of centred elements, some dimensions at a time."""
    num_a, num_b = len(features_a), len(features_b)
    products = np.zeros((num_a, num_b), order="F")  # the order that SciPy overwrites
    squares_a = squares_b = of_means = 0.0
    width, columns = max(1, BUFFER // (8 * (num_a + num_b))), max(1, BUFFER // (8 * num_a))
    for start in range(0, features_a.shape[1], width):
        a, b = (x[:, start : start + width].astype(np.float64) for x in (features_a, features_b))
        mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
        a -= mean_a
        b -= mean_b
        of_means += np.sum((mean_a - mean_b) ** 2)
        squares_a, squares_b = squares_a + np.vdot(a, a), squares_b + np.vdot(b, b)
        for column in range(0, num_b, columns):
            products[:, column : column + columns] += a @ b[column : column + columns].T
    root_trace = scipy.linalg.svdvals(products, overwrite_a=True).sum() / np.sqrt(
        (num_a - 1) * (num_b - 1)
    )
    return max(
        0.0, float(of_means + squares_a / (num_a - 1) + squares_b / (num_b - 1) - 2 * root_trace)
    )


def covariance_factor(covariance: np.ndarray) -> np.ndarray:
    """Return F [D, r] with F Fᵀ = covariance [D, D], r its numerical rank.

    Raises:
      ValueError: an eigenvalue is negative beyond rounding.
    """
    eigenvalues, eigenvectors = scipy.linalg.eigh(covariance)
    largest = np.abs(eigenvalues).max()
    # Well beyond the rounding of a covariance that was computed in float32.
    if eigenvalues[0] < -1e-5 * largest:
        raise ValueError(
            f"Not a covariance: its smallest eigenvalue is {eigenvalues[0]:.3g}, expected none "
            "below 0."
        )
    # Eigenvalues indistinguishable from zero are dropped: the root would turn 1e-16 of noise into
    # 1e-8.
    kept = eigenvalues > len(eigenvalues) * np.finfo(np.float64).eps * largest
    return eigenvectors[:, kept] * np.sqrt(eigenvalues[kept])
