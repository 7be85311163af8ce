"""What a Frechet distance of finite sets is off by: its standard error and its bias.

The distance itself is `frechet`. Of N samples of a perfect model it is not 0: a covariance of N
samples differs from the true one, and the distance cannot be negative. `expected_distance` says how
large it is then, `frechet_infinity` extrapolates it away. Everything is float64 NumPy on the host.
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import numpy as np
import scipy

from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation import frechet

FEWEST_PARTS = 3  # of a line with an error
DRAWS = 3  # of a simulation
FITS = 2  # of a spectrum to that of estimates; more change nothing


class FrechetDistance(NamedTuple):
    """A squared distance and its error over samples."""

    value: float
    standard_error: float


class FrechetInfinity(NamedTuple):
    """The distance that infinitely many samples would have, by a line in 1 / N."""

    value: float  # the intercept; may be negative
    standard_error: float
    slope: float  # N times the bias of N samples
    sizes: np.ndarray  # int [K], the samples of a part
    distances: np.ndarray  # float64 [K], the mean over disjoint parts of so many


class ExpectedDistance(NamedTuple):
    """The distance of the samples of a perfect model, in the mean."""

    value: float
    standard_error: float  # of the simulation


class ExpectedClassDistances(NamedTuple):
    """Distances of the samples of a perfect model, by class."""

    distances: tuple[ExpectedDistance, ...]
    mean: ExpectedDistance  # over classes


class ClassDistances(NamedTuple):
    """Distances of each class of the samples to the same class of the reference."""

    classes: np.ndarray  # int [K]
    distances: tuple[FrechetDistance, ...]
    mean: FrechetDistance  # over classes


def frechet_with_error(
    features: np.ndarray, mean_2: np.ndarray, cov_2: np.ndarray
) -> FrechetDistance:
    """Return the distance of samples to a reference, and its standard error over the samples.

    Args:
      features: of the samples, [N, D], N at least 2.
      mean_2: of the reference, [D]; it is taken as given.
      cov_2: [D, D].

    Raises:
      UsageError: N < 2.
    """
    value = frechet.frechet_distance(*frechet.gaussian_statistics(features), mean_2, cov_2)
    error = frechet_standard_error(features, mean_2, frechet.covariance_factor(cov_2))
    return FrechetDistance(value, error)


def frechet_standard_error(features: np.ndarray, mean_2: np.ndarray, factor_2: np.ndarray) -> float:
    """Return the standard error of the distance over the samples, the reference as given.

    By the infinitesimal jackknife (Efron & Stein 1981): the distance is a function of the weights
    of the samples, whose derivative for sample x with P = (x - μ₁)ᵀ F₂ and K = F₂ᵀ C₁ F₂ is

      2 (μ₁ - μ₂)·(x - μ₁) + |x - μ₁|² - P K^{-½} Pᵀ

    up to a constant; its standard deviation over √N is the error. Where the distance is far above
    its bias this is the spread over sets of samples. Of equal distributions the derivative vanishes
    and the error, made of second-order terms only, is up to √2 too large. The bootstrap is worse
    there: its resampled sets have the bias of fewer samples, and their distances scatter as theirs.

    Args:
      features: of the samples, [N, D], N at least 2.
      mean_2: of the reference, [D].
      factor_2: F₂ [D, r] with F₂ F₂ᵀ the covariance of the reference.
    """
    count, rows = len(features), max(1, frechet.BUFFER // (8 * features.shape[1]))
    parts = [features[start : start + rows] for start in range(0, count, rows)]
    mean = sum(part.astype(np.float64).sum(axis=0) for part in parts) / count
    k = np.zeros((factor_2.shape[1],) * 2)
    for part in parts:
        projected = (part - mean) @ factor_2
        k += projected.T @ projected / count
    squares, vectors = scipy.linalg.eigh(k)
    # of a reference without variance there are none
    kept = squares > len(squares) * np.finfo(np.float64).eps * squares.max(initial=0.0)
    root = factor_2 @ (vectors[:, kept] * squares[kept] ** -0.25)
    derivatives = []
    for part in parts:
        centred = part - mean
        of_root = np.sum((centred @ root) ** 2, axis=1)
        derivatives.append(2 * centred @ (mean - mean_2) + np.sum(centred**2, axis=1) - of_root)
    return float(np.concatenate(derivatives).std(ddof=1) / np.sqrt(count))


def frechet_infinity(
    features: np.ndarray,
    mean_2: np.ndarray,
    cov_2: np.ndarray,
    *,
    parts: int = 5,
    seed: int = 0,
) -> FrechetInfinity:
    """Return the distance extrapolated to infinitely many samples, with its error.

    The bias of N samples is b / N + O(1 / N²), so the intercept of a line in 1 / N is free of its
    first term (Chong & Forsyth 2020, section 3). They fit 15 sizes of random subsets. Here the
    samples, in a random order, are divided into m = 1, 2, ..., `parts` disjoint parts of N / m, and
    the mean distance of the m parts is fitted, weighted by 1 / m: every point uses all samples, so
    that what these have in common does not look like a slope. The error has two parts in
    quadrature, `frechet_standard_error` of all samples and that of the fit by its residuals. The
    bias due to a finite reference remains, as does the term in 1 / N².

    Args:
      features: of the samples, [N, D], N above `parts` D: the bias of fewer samples than features
        does not fall as 1 / N.
      mean_2: of the reference, [D].
      cov_2: [D, D].
      parts: the most parts, at least 3; it takes parts (parts + 1) / 2 distances.
      seed: of the order, by MT19937.

    Raises:
      UsageError: too few samples or parts.
    """
    count, dims = features.shape
    if parts < FEWEST_PARTS:
        raise UsageError(f"parts is {parts}: a line with an error takes at least {FEWEST_PARTS}.")
    if count <= parts * dims:
        raise UsageError(
            f"Extrapolating from {count:,} samples in up to {parts} parts leaves "
            f"{count // parts:,} in each, no more than the {dims:,} features: take more than "
            f"{parts * dims:,} samples, or fewer parts."
        )
    order = np.random.RandomState(seed).permutation(count)
    divided = [np.array_split(order, m) for m in range(1, parts + 1)]
    distances = np.array(
        [
            np.mean(
                [
                    frechet.frechet_distance(
                        *frechet.gaussian_statistics(features[rows]), mean_2, cov_2
                    )
                    for rows in parts_of_all
                ]
            )
            for parts_of_all in divided
        ]
    )
    inverse = np.array([np.mean([1 / len(rows) for rows in each]) for each in divided])
    intercept, slope, error = _line(inverse, distances, 1 / np.arange(1, parts + 1))
    over_samples = frechet_standard_error(features, mean_2, frechet.covariance_factor(cov_2))
    sizes = count // np.arange(1, parts + 1)
    return FrechetInfinity(intercept, float(np.hypot(error, over_samples)), slope, sizes, distances)


def expected_distance(
    covariance: np.ndarray,
    num_samples: int,
    num_reference: int | None = None,
    *,
    estimated_from: int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> ExpectedDistance:
    """Return the distance to expect between two sets of one Gaussian, the bias of a perfect model.

    By simulation; the spectrum λ of the covariance decides. The means add tr C (1/N + 1/M); the
    covariances Ĉ = F̂ F̂ᵀ of the samples have a Wishart distribution with N - 1 degrees of freedom,

      tr (Ĉ₁ Ĉ₂)^½ = |F̂₁ᵀ F̂₂|_*   (F₂ = C^½ of an infinite reference)

    and F̂ is drawn by Bartlett's decomposition, so that N may be large: a draw takes some D³
    operations. For N much larger than D, and an infinite reference, it tends to

      (tr C + ½ Σ_ij λ_i λ_j / (λ_i + λ_j) + ¼ tr C) / N

    which is tr C / N times a quarter of the features that vary alike, or more. Features of a
    network are not Gaussian: their covariances scatter by their fourth moments, and the double sum
    with them.

    Args:
      covariance: of the features, [D, D].
      num_samples: N, at least 2.
      num_reference: M, at least 2, of a reference of other images; None for infinitely many.
      estimated_from: the number of images that the covariance is of, whose spectrum is steeper than
        the true one: see `_true_spectrum`; None for a covariance that is taken as the true one.
      draws: simulations, at least 2.
      seed: of these.

    Raises:
      UsageError: fewer than 2 samples, reference images or draws.
    """
    if min(num_samples, num_reference or 2, draws) < 2:
        raise UsageError(
            f"The expected distance of {num_samples} samples to {num_reference} in {draws} draws: "
            "take at least 2 of each."
        )
    eigenvalues = np.maximum(scipy.linalg.eigvalsh(covariance), 0)
    if estimated_from is not None:
        eigenvalues = _true_spectrum(eigenvalues, estimated_from - 1)
    return _simulated(eigenvalues, num_samples, num_reference, draws, seed)


def frechet_by_class(
    features_a: np.ndarray, labels_a: np.ndarray, features_b: np.ndarray, labels_b: np.ndarray
) -> ClassDistances:
    """Return the distance of each class of the samples to that of the reference, and their mean.

    A class has fewer images than the whole and so a larger bias: compare numbers of equal counts.
    `expected_by_class` says how large it is.

    Args:
      features_a: of the samples, [N, D].
      labels_a: their classes, int [N].
      features_b: of the reference, [M, D].
      labels_b: int [M].

    Raises:
      UsageError: a class of one set that the other lacks, or with fewer than 2 images.
    """
    chex.assert_rank([labels_a, labels_b], 1)
    chex.assert_equal_shape_prefix([features_a, labels_a], 1)
    chex.assert_equal_shape_prefix([features_b, labels_b], 1)
    classes = np.union1d(labels_a, labels_b)
    for label in classes:
        counts = [np.count_nonzero(labels == label) for labels in (labels_a, labels_b)]
        if min(counts) < 2:
            raise UsageError(
                f"Class {label} has {counts[0]} samples and {counts[1]} reference images: a "
                "distance of classes takes at least 2 of each."
            )
    distances = tuple(
        _of_class(features_a[labels_a == label], features_b[labels_b == label]) for label in classes
    )
    return ClassDistances(classes, distances, FrechetDistance(*_mean(distances)))


def expected_by_class(
    labels_a: np.ndarray, features_b: np.ndarray, labels_b: np.ndarray
) -> ExpectedClassDistances:
    """Return what `frechet_by_class` is to expect of a perfect model with as many of each class.

    It is `expected_distance` of each class, its covariance estimated from its reference images.

    Args:
      labels_a: classes of the samples, int [N].
      features_b: of the reference, [M, D].
      labels_b: int [M], at least 2 of each class that the samples have.
    """
    found = tuple(
        _simulated(
            _class_spectrum(features_b[labels_b == label]),
            np.count_nonzero(labels_a == label),
            np.count_nonzero(labels_b == label),
            DRAWS,
            0,
        )
        for label in np.unique(labels_a)
    )
    return ExpectedClassDistances(found, ExpectedDistance(*_mean(found)))


def _class_spectrum(features: np.ndarray) -> np.ndarray:
    """Return the eigenvalues [D] of the covariance that features [M, D] have been drawn from."""
    degrees, dims = len(features) - 1, features.shape[1]
    centred = features.astype(np.float64)
    centred -= centred.mean(axis=0)
    spectrum = np.zeros(dims)
    values = scipy.linalg.svdvals(centred)[::-1] ** 2 / degrees
    spectrum[-len(values) :] = values
    return _true_spectrum(spectrum, degrees)


def _true_spectrum(spectrum: np.ndarray, degrees: int) -> np.ndarray:
    """Return the spectrum of a covariance whose estimates have such a spectrum.

    A covariance of n degrees of freedom has a steeper spectrum than the true one. Where n is above
    D, each eigenvalue is scaled until the estimates of covariances with the result, drawn as in
    `_sample_factor`, have the given spectrum in the mean. Where n is not, some eigenvalues are 0
    and say nothing, and the spectrum λ is drawn to its mean, λ' = m + k (λ - m), with k such that
    Σ λ'² is what the images say of tr C² without bias:

      n² / ((n - 1) (n + 2)) (tr Ĉ² - (tr Ĉ)² / n)

    Source: shrinkage, Ledoit & Wolf 2004; the estimate of tr C², Srivastava 2005.

    Args:
      spectrum: eigenvalues, [D], in rising order.
      degrees: n, one less than the images.
    """
    rounding = len(spectrum) * np.finfo(np.float64).eps * spectrum.max(initial=0.0)
    varied = spectrum > rounding  # not so are features that are the same, or sums of others
    if degrees <= np.count_nonzero(varied):
        return _drawn_to_the_mean(spectrum, degrees)
    found, random = spectrum[varied], np.random.default_rng(0)
    for _ in range(FITS):
        factors = [_sample_factor(found, degrees + 1, random) for _ in range(DRAWS)]
        drawn = [scipy.linalg.eigvalsh(factor @ factor.T) for factor in factors]
        found = np.sort(found * spectrum[varied] / np.mean(drawn, axis=0))
    return np.concatenate([spectrum[~varied], found])


def _drawn_to_the_mean(spectrum: np.ndarray, degrees: int) -> np.ndarray:
    mean, spread = spectrum.mean(), np.sum((spectrum - spectrum.mean()) ** 2)
    if degrees == 1 or not spread:
        return spectrum
    of_squares = np.sum(spectrum**2) - np.sum(spectrum) ** 2 / degrees
    of_squares *= degrees**2 / ((degrees - 1) * (degrees + 2))
    k = np.sqrt(max(of_squares - len(spectrum) * mean**2, 0.0) / spread)
    return mean + k * (spectrum - mean)


def _mean(found: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the mean of independent values, and its error."""
    values, errors = np.array(found).T
    return float(values.mean()), float(np.sqrt(np.sum(errors**2)) / len(errors))


def _of_class(features_a: np.ndarray, features_b: np.ndarray) -> FrechetDistance:
    value = frechet.frechet_distance_of_sets(features_a, features_b)
    count, dims = features_b.shape
    if count < dims:  # the centred elements are themselves a factor, and the smaller one
        centred = features_b.astype(np.float64)
        mean = centred.mean(axis=0)
        factor = (centred - mean).T / np.sqrt(count - 1)
    else:
        mean, covariance = frechet.gaussian_statistics(features_b)
        factor = frechet.covariance_factor(covariance)
    return FrechetDistance(value, frechet_standard_error(features_a, mean, factor))


def _simulated(
    eigenvalues: np.ndarray, num_samples: int, num_reference: int | None, draws: int, seed: int
) -> ExpectedDistance:
    """Return `expected_distance` of a spectrum [D]."""
    trace, random = eigenvalues.sum(), np.random.default_rng(seed)
    inverse = 1 / num_samples + (1 / num_reference if num_reference else 0)
    values = []
    for _ in range(draws):
        first = _sample_factor(eigenvalues, num_samples, random)
        if num_reference is None:
            second, product = np.sqrt(eigenvalues), np.sqrt(eigenvalues)[:, None] * first
        else:
            second = _sample_factor(eigenvalues, num_reference, random)
            product = second.T @ first
        # |F̂|² instead of its mean tr C: its noise is that of the nuclear norm and cancels
        traces = np.sum(first**2) + np.sum(second**2)
        values.append(trace * inverse + traces - 2 * scipy.linalg.svdvals(product).sum())
    error = np.std(values, ddof=1) / np.sqrt(draws)
    return ExpectedDistance(float(np.mean(values)), float(error))


def _sample_factor(eigenvalues: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Draw F̂ [D, min(D, N - 1)] with F̂ F̂ᵀ the covariance of N samples of N(0, diag λ).

    Bartlett 1933: a Wishart matrix is L Lᵀ with L lower triangular, of normal numbers below the
    diagonal and roots of chi-squares of N - 1, N - 2, ... degrees of freedom on it.
    """
    dims, degrees = len(eigenvalues), count - 1
    width = min(dims, degrees)
    factor = np.tril(random.normal(size=(dims, width)), -1)
    factor[np.arange(width), np.arange(width)] = np.sqrt(
        random.chisquare(degrees - np.arange(width))
    )
    return np.sqrt(eigenvalues)[:, None] * factor / np.sqrt(degrees)


def _line(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """Return intercept, slope and error of the intercept of a weighted line through [K] points."""
    design = np.stack([np.ones_like(x), x], axis=1)
    inverse = np.linalg.inv(design.T @ (weights[:, None] * design))
    intercept, slope = inverse @ design.T @ (weights * y)
    residuals = y - intercept - slope * x
    variance = np.sum(weights * residuals**2) / (len(x) - 2)
    return float(intercept), float(slope), float(np.sqrt(variance * inverse[0, 0]))
