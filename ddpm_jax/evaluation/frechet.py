"""The Frechet distance between two sets of features, each summarised by a Gaussian; here also on bare pixels.

With Inception features this distance is the FID; computing those features is not done here. All of it is float64 NumPy
on the host: the matrix square root of a nearly singular covariance has no digits to spare.
"""

from collections.abc import Iterator

import chex
import numpy as np
import scipy.linalg

from ddpm_jax.errors import UsageError

_CHUNK = 4096  # Images turned to float64 at a time: 100 MB for 32x32x3.


class GaussianAccumulator:
    """Mean and covariance of features that come in batches, by the pairwise update of Chan, Golub & LeVeque (1983)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: np.ndarray | float = 0.0
        self._scatter: np.ndarray | float = 0.0

    def add(self, features: np.ndarray) -> None:
        """Takes in features [n, D] of any real dtype; n may be 0."""
        chex.assert_rank(features, 2)
        if not len(features):
            return
        features = np.asarray(features, np.float64)
        mean = features.mean(axis=0)
        centred = features - mean
        count = self.count + len(features)
        shift = mean - self._mean
        self._scatter = (
            self._scatter + centred.T @ centred + np.outer(shift, shift) * (self.count * len(features) / count)
        )
        self._mean = self._mean + shift * (len(features) / count)
        self.count = count

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the mean [D] and the covariance [D, D], float64, normalised by N - 1.

        Raises:
          UsageError: fewer than two features were added.
        """
        if self.count < 2:
            raise UsageError(f"A covariance needs at least 2 samples, got {self.count}: evaluate more of them.")
        return self._mean, self._scatter / (self.count - 1)


def gaussian_statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean [D] and the covariance [D, D] (normalised by N - 1), float64, of features [N, D].

    Raises:
      UsageError: N < 2.
    """
    accumulator = GaussianAccumulator()
    accumulator.add(features)
    return accumulator.statistics()


def frechet_distance(mean_1: np.ndarray, cov_1: np.ndarray, mean_2: np.ndarray, cov_2: np.ndarray) -> float:
    """Squared Frechet (2-Wasserstein) distance between two Gaussians.

      d² = |μ₁ - μ₂|² + tr(C₁ + C₂ - 2 (C₁C₂)^½)

    With any factors C = F Fᵀ the trace of the root is the sum of the singular values of F₁ᵀF₂. This needs no root of a
    product that is not symmetric, stays real for singular covariances, and keeps all digits, where the
    eigenvalues of C₁C₂ lose half of theirs to the square root.

    Args:
      mean_1: [D].
      cov_1: [D, D], symmetric, positive semi-definite, of any rank.
      mean_2: [D].
      cov_2: [D, D].

    Returns:
      d² >= 0.

    Raises:
      ValueError: a covariance has a negative eigenvalue beyond rounding, or something is not finite.

    Source: Dowson & Landau 1982, eq. 4; as a distance between sets of images Heusel et al. 2017, eq. 6.
    """
    mean_1, cov_1, mean_2, cov_2 = (np.asarray(array, np.float64) for array in (mean_1, cov_1, mean_2, cov_2))
    chex.assert_shape([mean_1, mean_2], (len(mean_1),))
    chex.assert_shape([cov_1, cov_2], (len(mean_1), len(mean_1)))
    root_trace = scipy.linalg.svdvals(_factor(cov_1).T @ _factor(cov_2)).sum()
    squared = np.sum((mean_1 - mean_2) ** 2) + np.trace(cov_1) + np.trace(cov_2) - 2 * root_trace
    return max(0.0, float(squared))


def pixel_frechet_distance(images_a: np.ndarray, images_b: np.ndarray) -> float:
    """Frechet distance between two sets of images on their pixels, scaled to [0, 1].

    A check for small images, where it tells a trained model from an untrained one in a second. It is no FID, and its
    cost grows with the cube of the number of pixels. Finite sets bias it upwards: compare sets of equal size.

    Args:
      images_a: uint8 [N, H, W, C].
      images_b: uint8 [M, H, W, C].

    Returns:
      d² >= 0, in units of the squared intensity range. On [-1, 1] it would be 4 times as large.

    Raises:
      UsageError: the two sets differ in image shape, or one has fewer than 2 images.
    """
    chex.assert_type([images_a, images_b], np.uint8)
    chex.assert_rank([images_a, images_b], 4)
    if images_a.shape[1:] != images_b.shape[1:]:
        raise UsageError(
            f"Cannot compare images of shape {images_a.shape[1:]} with images of shape {images_b.shape[1:]}: "
            "give two sets of the same height, width and channels."
        )
    return frechet_distance(*_pixel_statistics(images_a), *_pixel_statistics(images_b))


def _pixel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    accumulator = GaussianAccumulator()
    for chunk in _chunks(images):
        accumulator.add(chunk.reshape(len(chunk), -1) / 255.0)
    return accumulator.statistics()


def _chunks(images: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(images), _CHUNK):
        yield images[start : start + _CHUNK]


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F [D, r] with F Fᵀ = covariance, r its numerical rank."""
    eigenvalues, eigenvectors = scipy.linalg.eigh(covariance)
    largest = np.abs(eigenvalues).max()
    if eigenvalues[0] < -1e-5 * largest:  # Well beyond the rounding of a covariance that was computed in float32.
        raise ValueError(f"Not a covariance: its smallest eigenvalue is {eigenvalues[0]:.3g}, expected none below 0.")
    # What cannot be told from zero is dropped: the root would turn 1e-16 of noise into 1e-8.
    kept = eigenvalues > len(eigenvalues) * np.finfo(np.float64).eps * largest
    return eigenvectors[:, kept] * np.sqrt(eigenvalues[kept])
