"""Errors and biases of Frechet distances against Gaussians, whose distances are known."""

import math
import tracemalloc

import numpy as np
import pytest
import scipy.special

from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation import frechet
from ddpm_jax.evaluation.frechet_errors import (
    expected_by_class,
    expected_distance,
    frechet_by_class,
    frechet_infinity,
    frechet_standard_error,
    frechet_with_error,
)

DIMS = 8
SPECTRUM = 1 / np.arange(1.0, DIMS + 1)
REFERENCE = np.zeros(DIMS), np.diag(SPECTRUM)


def _samples(count, seed, *, shift=0.0, scale=1.0):
    """Normal features at distance (shift² + (scale - 1)²) tr C of the reference."""
    rng = np.random.default_rng(seed)
    return (scale * rng.normal(size=(count, DIMS)) + shift) * np.sqrt(SPECTRUM)


def _distance(features):
    return frechet.frechet_distance(*frechet.gaussian_statistics(features), *REFERENCE)


# Standard error


def test_the_error_is_the_derivative_by_the_weights_of_the_samples():
    """Weights of samples are their numbers: 400 copies of each, one more of one."""
    features, copies = _samples(12, 0, shift=0.4), 400
    repeated = np.repeat(features, copies, axis=0)
    base = _distance(repeated)
    change = [_distance(np.concatenate([repeated, [x]])) - base for x in features]
    # a copy more changes a weight by 1 / (12 · 400) of the whole
    expected = np.std(change, ddof=1) * 12 * copies / math.sqrt(12)
    assert frechet_with_error(features, *REFERENCE).standard_error == pytest.approx(
        expected, rel=2e-3
    )


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 1.1, 1.6), (0.5, 0.9, 1.1)])
def test_the_error_is_the_spread_over_sets_of_samples(shift, low, high):
    """Where the distributions differ; of equal ones up to √2 as large."""
    found = [frechet_with_error(_samples(160, s, shift=shift), *REFERENCE) for s in range(400)]
    spread = np.std([each.value for each in found])
    error = math.sqrt(np.mean([each.standard_error**2 for each in found]))
    assert low < error / spread < high


def test_the_value_is_the_distance_and_chunks_change_nothing(monkeypatch):
    features = _samples(50, 0, shift=0.3)
    whole = frechet_with_error(features, *REFERENCE)
    assert whole.value == _distance(features)
    monkeypatch.setattr(frechet, "BUFFER", 8 * DIMS * 7)
    assert frechet_with_error(features, *REFERENCE) == pytest.approx(whole, rel=1e-10)


def test_any_factor_of_the_covariance_gives_the_error():
    features, reference = _samples(50, 0, shift=0.3), _samples(20, 1)
    mean, covariance = frechet.gaussian_statistics(reference)
    by_elements = (reference - mean).T / math.sqrt(19)
    assert frechet_standard_error(features, mean, by_elements) == pytest.approx(
        frechet_with_error(features, mean, covariance).standard_error, rel=1e-9
    )


# Bias


def test_in_one_dimension_the_expected_distance_is_known():
    """E (s - σ)² + σ²/N = 2σ² (1 - c₄) + σ²/N with c₄ = E s / σ (Cochran's theorem)."""
    for count in (2, 5, 40):
        c4 = math.sqrt(2 / (count - 1)) * scipy.special.poch((count - 1) / 2, 0.5)
        found = expected_distance(np.array([[3.0]]), count, draws=1500)
        exact = 3.0 * (2 * (1 - c4) + 1 / count)
        assert found.value == pytest.approx(exact, abs=4 * found.standard_error)
        assert found.standard_error < 0.05 * exact


@pytest.mark.parametrize("num_reference", [None, 30])
@pytest.mark.parametrize("count", [5, 40])  # on both sides of the 8 dimensions
def test_the_expected_distance_is_the_mean_over_sets_of_gaussian_samples(count, num_reference):
    distances = []
    for seed in range(300):
        reference = REFERENCE
        if num_reference:
            reference = frechet.gaussian_statistics(_samples(num_reference, 10_000 + seed))
        statistics = frechet.gaussian_statistics(_samples(count, seed))
        distances.append(frechet.frechet_distance(*statistics, *reference))
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(DIMS, DIMS)))[0]
    covariance = rotation @ REFERENCE[1] @ rotation.T
    found = expected_distance(covariance, count, num_reference, draws=300)
    error = math.hypot(found.standard_error, np.std(distances) / math.sqrt(300))
    assert found.value == pytest.approx(np.mean(distances), abs=4 * error)
    assert error < 0.03 * found.value


@pytest.mark.parametrize("num_reference", [24, 60, 300])
@pytest.mark.parametrize("fall", [0.0, 1.0, 2.0])
def test_a_covariance_of_few_images_gives_the_expectation_of_the_true_one(fall, num_reference):
    """20 features of variance i^-fall. As it is, that of 24 gives 0.66 to 0.84 of it."""
    spectrum, count = np.arange(1.0, 21) ** -fall, 100
    random = np.random.default_rng(0)
    distances, expected = [], []
    for seed in range(150):
        a, b = (
            frechet.gaussian_statistics(random.normal(size=(n, 20)) * np.sqrt(spectrum))
            for n in (count, num_reference)
        )
        distances.append(frechet.frechet_distance(*a, *b))
        found = expected_distance(
            b[1], count, num_reference, estimated_from=num_reference, seed=seed
        )
        expected.append(found.value)
    error = math.hypot(*(np.std(values) / math.sqrt(150) for values in (distances, expected)))
    true = np.mean(distances)
    # the fit of so few degrees of freedom as 23 of 20 leaves some per cent
    assert np.mean(expected) == pytest.approx(true, abs=3 * error + 0.05 * true)
    assert error < 0.05 * true


def test_features_that_do_not_vary_change_no_expectation():
    covariance = np.cov(np.random.default_rng(0).normal(size=(40, 6)).T)
    with_constants = np.zeros((9, 9))
    with_constants[1:7, 1:7] = covariance
    few, more = (
        expected_distance(c, 50, 40, estimated_from=40, draws=200)
        for c in (covariance, with_constants)
    )
    error = math.hypot(few.standard_error, more.standard_error)
    assert more.value == pytest.approx(few.value, abs=4 * error)


def test_many_samples_have_the_bias_of_perturbation_theory():
    count = 4000
    pairs = np.outer(SPECTRUM, SPECTRUM) / (SPECTRUM[:, None] + SPECTRUM)
    expected = (1.25 * SPECTRUM.sum() + pairs.sum() / 2) / count
    found = expected_distance(REFERENCE[1], count, draws=300)
    assert found.value == pytest.approx(expected, rel=0.03)
    assert found.standard_error < 0.015 * expected


# Extrapolation


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_infinitely_many_samples_have_no_bias_and_the_error_is_as_stated(shift):
    true, found = shift**2 * SPECTRUM.sum(), []
    for seed in range(200):
        found.append(frechet_infinity(_samples(300, seed, shift=shift), *REFERENCE))
    values = np.array([each.value for each in found])
    bias = np.mean([each.distances[0] for each in found]) - true
    # the term in 1 / N² that a line leaves is a few per cent of the bias of 300 samples
    assert abs(values.mean() - true) < 0.12 * bias + 3 * values.std() / math.sqrt(200)
    error = math.sqrt(np.mean([each.standard_error**2 for each in found]))
    assert 0.85 < error / values.std() < 1.5  # 200 sets know the spread to 5 %
    assert np.mean([each.slope for each in found]) / 300 == pytest.approx(bias, rel=0.15)


def test_the_points_of_the_line_are_means_of_disjoint_parts():
    features = _samples(90, 0, shift=0.3)
    found = frechet_infinity(features, *REFERENCE, parts=4, seed=3)
    order = np.random.RandomState(3).permutation(90)
    halves = [_distance(features[rows]) for rows in (order[:45], order[45:])]
    assert found.distances[:2] == pytest.approx([_distance(features), np.mean(halves)], rel=1e-9)
    np.testing.assert_array_equal(found.sizes, [90, 45, 30, 22])
    # weights of the squares 1, 1/2, ...: numpy's weights multiply the residuals
    inverse = [1 / 90, 1 / 45, 1 / 30, np.mean([1 / 23, 1 / 23, 1 / 22, 1 / 22])]
    line = np.polyfit(inverse, found.distances, 1, w=1 / np.sqrt([1, 2, 3, 4]))
    assert (found.slope, found.value) == pytest.approx(tuple(line), rel=1e-9)


def test_a_line_without_noise_has_no_error_of_its_fit(monkeypatch):
    monkeypatch.setattr(frechet, "gaussian_statistics", lambda features: (len(features), 0))
    monkeypatch.setattr(frechet, "frechet_distance", lambda count, *_: 2.0 + 30 / count)
    features = _samples(600, 0)
    found = frechet_infinity(features, *REFERENCE, parts=3)
    assert (found.value, found.slope) == pytest.approx((2, 30), rel=1e-9)
    error = frechet_standard_error(features, *REFERENCE[:1], np.sqrt(REFERENCE[1]))
    assert found.standard_error == pytest.approx(error, rel=1e-9)


def test_too_few_samples_to_extrapolate_are_refused():
    with pytest.raises(
        UsageError, match=r"40 samples in up to 5 parts leaves 8 .* more than 40 sa"
    ):
        frechet_infinity(_samples(40, 0), *REFERENCE)
    with pytest.raises(UsageError, match="parts is 2"):
        frechet_infinity(_samples(100, 0), *REFERENCE, parts=2)
    with pytest.raises(UsageError, match="of 1 samples"):
        expected_distance(REFERENCE[1], 1)


@pytest.mark.parametrize("level", [0.0, 0.3])
def test_to_a_reference_without_variance_it_is_the_mean_squared_distance(level):
    """d² = |μ₁ - μ₂|² + tr C₁; its error that of the mean of |x - μ₂|²."""
    x = _samples(50, 0)
    mean, covariance = np.full(x.shape[1], level), np.zeros((x.shape[1],) * 2)
    squares = np.sum((x - level) ** 2, axis=1)
    found = frechet_with_error(x, mean, covariance)
    wanted = np.sum((x.mean(axis=0) - level) ** 2) + np.sum(x.var(axis=0, ddof=1))
    assert found.value == pytest.approx(wanted)
    assert found.standard_error == pytest.approx(squares.std(ddof=1) / np.sqrt(50), rel=1e-10)
    assert frechet_with_error(np.zeros_like(x), mean, covariance) == (
        pytest.approx(x.shape[1] * level**2),
        0.0,
    )
    labels = np.arange(50) % 2
    perfect = expected_by_class(labels, np.full_like(x, level), labels)
    assert perfect.mean == pytest.approx((0, 0), abs=1e-30)


# Classes


@pytest.mark.parametrize("count", [6, 30])  # fewer and more than the dimensions
def test_classes_are_compared_each_with_its_own(count):
    labels = np.random.default_rng(0).permutation(np.repeat([2, 5, 7], count))
    a, b = _samples(3 * count, 1, shift=0.3), _samples(3 * count, 2)
    found = frechet_by_class(a, labels, b, labels[::-1])
    assert found.classes.tolist() == [2, 5, 7]
    for label, distance in zip(found.classes, found.distances, strict=True):
        own, others = a[labels == label], b[labels[::-1] == label]
        expected = frechet_with_error(own, *frechet.gaussian_statistics(others))
        assert distance == pytest.approx(expected, rel=1e-8)
    assert found.mean.value == pytest.approx(np.mean([each.value for each in found.distances]))
    errors = [each.standard_error for each in found.distances]
    assert found.mean.standard_error == pytest.approx(math.sqrt(np.sum(np.square(errors))) / 3)


@pytest.mark.parametrize("count", [5, 40])  # fewer and more than the dimensions
def test_of_a_perfect_model_the_distances_of_classes_are_those_expected(count):
    """Classes of other counts and variances. The covariance of 5 images as it is gives half."""
    counts, scale = {2: count, 5: 2 * count}, {2: 1.0, 5: 3.0}
    labels = np.concatenate([[label] * count for label, count in counts.items()])
    scales = np.array([scale[label] for label in labels])[:, None]
    values, expected = [], []
    for i in range(30):
        a, b = (scales * _samples(3 * count, seed) for seed in (i, 99 + i))
        found = frechet_by_class(a, labels, b, labels)
        values.append([each.value for each in found.distances] + [found.mean.value])
        perfect = expected_by_class(labels, b, labels)
        expected.append([each.value for each in perfect.distances] + [perfect.mean.value])
    np.testing.assert_allclose(np.mean(expected, axis=0), np.mean(values, axis=0), rtol=0.25)


def test_a_class_that_one_set_lacks_is_refused():
    features = _samples(6, 0)
    with pytest.raises(UsageError, match="Class 4 has 0 samples and 3 reference images"):
        frechet_by_class(features, np.array([1] * 6), features, np.array([1, 1, 1, 4, 4, 4]))


# Memory


def test_statistics_of_a_stream_take_no_memory_for_the_features():
    """4,000 x 256 features: 8 MiB in float64; a few 256 x 256 arrays are 0.5 MiB each.

    So 50,000 x 2,048 take a few arrays of 32 MiB and the batch.
    """
    accumulator, taken = frechet.GaussianAccumulator(), []
    for count in (1000, 3000):
        tracemalloc.start()
        for _ in range(count // 100):
            accumulator.add(np.ones((100, 256), np.float32))
        accumulator.statistics()
        taken.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(taken) < 6 * 8 * 256**2
    assert taken[1] < 1.5 * taken[0]
    # both sets in float32, and the distance of their statistics
    features = 2 * 4 * 50_000 * 2048
    assert features + frechet.memory_needed(50_000, 50_000, 2048) < 2e9


def test_statistics_and_the_error_are_computed_in_chunks(monkeypatch):
    features = np.random.default_rng(0).normal(size=(20_000, 32)).astype(np.float32)
    monkeypatch.setattr(frechet, "BUFFER", 2**17)
    tracemalloc.start()
    mean, covariance = frechet.gaussian_statistics(features)
    frechet_standard_error(features, mean, np.sqrt(np.diag(np.diag(covariance))))
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 12 * 2**17 < features.nbytes
