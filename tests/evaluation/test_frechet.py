"""The Frechet distance against closed forms, scipy's matrix square root, and Gaussian samples."""

import tracemalloc

import numpy as np
import pytest
import scipy.linalg

from ddpm_jax import host_memory
from ddpm_jax.data.in_memory import ArraySource
from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation import frechet, pixel_frechet

RNG_SEED = 0


def _orthogonal(rng, size):
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


def _covariance(rng, size):
    factor = rng.normal(size=(size, 2 * size))
    return factor @ factor.T / (2 * size)


def test_statistics_are_numpys():
    features = np.random.default_rng(RNG_SEED).normal(3.0, 2.0, (50, 7))
    mean, covariance = frechet.gaussian_statistics(features)
    np.testing.assert_allclose(mean, features.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(covariance, np.cov(features, rowvar=False), rtol=1e-12, atol=1e-14)


def test_statistics_in_batches_are_those_of_the_whole_also_far_from_zero():
    # An offset of 1e6 costs the textbook sum of squares 12 of 16 digits; this update keeps about 9.
    features = 1e6 + np.random.default_rng(RNG_SEED).normal(size=(101, 5))
    accumulator = frechet.GaussianAccumulator()
    for batch in np.split(features, [1, 1, 40, 97]):
        accumulator.add(batch)
    mean, covariance = accumulator.statistics()
    np.testing.assert_allclose(mean, features.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(covariance, np.cov(features, rowvar=False), rtol=0, atol=1e-8)


@pytest.mark.parametrize("count", [0, 1])
def test_one_sample_has_no_covariance(count):
    with pytest.raises(UsageError, match=f"at least 2 samples, got {count}"):
        frechet.gaussian_statistics(np.zeros((count, 3)))


def test_in_one_dimension_it_is_the_difference_of_means_and_of_deviations():
    distance = frechet.frechet_distance(
        np.array([1.0]), np.array([[4.0]]), np.array([4.0]), np.array([[25.0]])
    )
    assert distance == pytest.approx((1 - 4) ** 2 + (2 - 5) ** 2, rel=1e-14)


def test_commuting_covariances_have_a_closed_form():
    rng = np.random.default_rng(RNG_SEED)
    basis = _orthogonal(rng, 12)
    variances_1, variances_2 = rng.uniform(0, 4, (2, 12))
    mean_1, mean_2 = rng.normal(size=(2, 12))
    distance = frechet.frechet_distance(
        mean_1, basis * variances_1 @ basis.T, mean_2, basis * variances_2 @ basis.T
    )
    expected = np.sum((mean_1 - mean_2) ** 2) + np.sum(
        (np.sqrt(variances_1) - np.sqrt(variances_2)) ** 2
    )
    assert distance == pytest.approx(expected, rel=1e-12)


def test_two_by_two_has_a_closed_form_without_commuting():
    # A 2x2 root R of M has tr(R)² = tr(M) + 2 det(R), det(R) = det(M)^½.
    rng = np.random.default_rng(RNG_SEED)
    cov_1, cov_2 = _covariance(rng, 2), _covariance(rng, 2)
    assert np.abs(cov_1 @ cov_2 - cov_2 @ cov_1).max() > 0.05
    root_trace = np.sqrt(np.trace(cov_1 @ cov_2) + 2 * np.sqrt(np.linalg.det(cov_1 @ cov_2)))
    distance = frechet.frechet_distance(np.zeros(2), cov_1, np.zeros(2), cov_2)
    assert distance == pytest.approx(np.trace(cov_1 + cov_2) - 2 * root_trace, rel=1e-12)


def test_it_agrees_with_scipys_square_root_where_that_is_well_conditioned():
    rng = np.random.default_rng(RNG_SEED)
    cov_1, cov_2 = _covariance(rng, 20), _covariance(rng, 20)
    mean_1, mean_2 = rng.normal(size=(2, 20))
    expected = np.sum((mean_1 - mean_2) ** 2) + np.trace(
        cov_1 + cov_2 - 2 * scipy.linalg.sqrtm(cov_1 @ cov_2).real
    )
    assert frechet.frechet_distance(mean_1, cov_1, mean_2, cov_2) == pytest.approx(
        expected, rel=1e-11
    )


def test_it_is_symmetric_and_zero_for_equal_gaussians():
    rng = np.random.default_rng(RNG_SEED)
    first, second = [(rng.normal(size=30), _covariance(rng, 30)) for _ in range(2)]
    assert frechet.frechet_distance(*first, *second) == pytest.approx(
        frechet.frechet_distance(*second, *first), rel=1e-12
    )
    # Traces of about 30.
    assert frechet.frechet_distance(*first, *first) == pytest.approx(0.0, abs=1e-12)


def test_rank_one_covariances_have_a_closed_form():
    # C = u uᵀ: the only singular value of u vᵀ's core is |u·v|.
    u, v = np.random.default_rng(RNG_SEED).normal(size=(2, 40))
    distance = frechet.frechet_distance(np.zeros(40), np.outer(u, u), np.zeros(40), np.outer(v, v))
    assert distance == pytest.approx(u @ u + v @ v - 2 * abs(u @ v), rel=1e-12)


def test_a_singular_covariance_against_the_identity_has_a_closed_form():
    # tr (u uᵀ)^½ = |u|. Rounding noise of 1e-16 left in the 199 empty directions would add its
    # root, 1e-6 in all.
    u = np.random.default_rng(RNG_SEED).normal(size=200)
    distance = frechet.frechet_distance(np.zeros(200), np.outer(u, u), np.zeros(200), np.eye(200))
    assert distance == pytest.approx(u @ u + 200 - 2 * np.linalg.norm(u), rel=1e-12)


def test_a_point_mass_is_as_far_as_the_variance():
    covariance = np.diag([1.0, 2.0, 3.0])
    assert frechet.frechet_distance(
        np.zeros(3), covariance, np.zeros(3), np.zeros((3, 3))
    ) == pytest.approx(6.0)
    assert frechet.frechet_distance(
        np.ones(3), np.zeros((3, 3)), np.zeros(3), np.zeros((3, 3))
    ) == pytest.approx(3.0)


def test_more_dimensions_than_samples_change_nothing_under_an_isometry():
    # 30 features of 8 numbers, embedded in 200 dimensions: both covariances are singular, the
    # distance is the same.
    rng = np.random.default_rng(RNG_SEED)
    low_a, low_b = rng.normal(size=(30, 8)), rng.normal(0.5, 1.5, (30, 8))
    embedding = _orthogonal(rng, 200)[:8]
    low = frechet.frechet_distance(
        *frechet.gaussian_statistics(low_a), *frechet.gaussian_statistics(low_b)
    )
    high = frechet.frechet_distance(
        *frechet.gaussian_statistics(low_a @ embedding),
        *frechet.gaussian_statistics(low_b @ embedding),
    )
    assert high == pytest.approx(low, rel=1e-11)


def test_a_singular_gaussian_is_at_distance_zero_from_itself():
    # The eigenvalues of C₁C₂ are rounding noise of 1e-16 in 191 directions; their roots would add
    # 1e-8 each.
    statistics = frechet.gaussian_statistics(np.random.default_rng(RNG_SEED).normal(size=(10, 200)))
    assert frechet.frechet_distance(*statistics, *statistics) == pytest.approx(0.0, abs=1e-11)


def test_what_is_no_covariance_is_refused():
    with pytest.raises(ValueError, match="smallest eigenvalue is -1"):
        frechet.frechet_distance(np.zeros(2), np.diag([1.0, -1.0]), np.zeros(2), np.eye(2))


def test_gaussian_samples_approach_the_closed_form():
    rng = np.random.default_rng(RNG_SEED)
    deviations_1, deviations_2 = np.array([1.0, 2.0, 0.5]), np.array([1.5, 1.0, 0.5])
    expected = 3 * 0.3**2 + np.sum((deviations_1 - deviations_2) ** 2)
    samples_1 = rng.normal(size=(200_000, 3)) * deviations_1
    samples_2 = rng.normal(size=(200_000, 3)) * deviations_2 + 0.3
    distance = frechet.frechet_distance(
        *frechet.gaussian_statistics(samples_1), *frechet.gaussian_statistics(samples_2)
    )
    # Standard error: 2 * difference * error of a mean or deviation, at most 2 * 1.0 * 2 / sqrt(4e5)
    # = 0.006 a term.
    assert distance == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_compared_on_the_unit_interval(channels):
    rng = np.random.default_rng(RNG_SEED)
    images_a = rng.integers(0, 128, (300, 3, 4, channels), dtype=np.uint8)
    images_b = images_a + np.uint8(51)  # 0.2 of the range, the covariance unchanged.
    expected = 3 * 4 * channels * 0.2**2
    assert pixel_frechet.pixel_frechet_distance(images_a, images_b) == pytest.approx(
        expected, rel=1e-10
    )


@pytest.mark.parametrize("size", [4, 8])  # 16 dimensions: by covariances; 64: by elements
def test_pixel_distance_does_not_depend_on_order_or_on_the_chunks(monkeypatch, size):
    rng = np.random.default_rng(RNG_SEED)
    images_a, images_b = rng.integers(0, 256, (2, 50, size, size, 1), dtype=np.uint8)
    whole = pixel_frechet.pixel_frechet_distance(images_a, images_b)
    # 7 images of 100 numbers, 7 numbers of 100 images
    monkeypatch.setattr(frechet, "BUFFER", 8 * 100 * 7)
    assert pixel_frechet.pixel_frechet_distance(images_a[::-1], images_b) == pytest.approx(
        whole, rel=1e-12
    )


# Two ways to one number


def _features(count, dims, seed, *, scale=1.0, shift=0.0):
    """Correlated features far from isotropic, as pixels are: a spectrum over three decades."""
    rng = np.random.default_rng(seed)
    return shift + scale * rng.normal(size=(count, dims)) * np.logspace(0, -3, dims) @ _orthogonal(
        np.random.default_rng(9), dims
    )


# on both sides of 30 and 40, and of one less of each
@pytest.mark.parametrize("dims", [5, 30, 31, 40, 41, 80])
def test_by_elements_it_is_the_distance_by_covariances(dims):
    a, b = _features(30, dims, 0), _features(40, dims, 1, scale=1.3, shift=0.2)
    by_covariances = frechet.frechet_distance(
        *frechet.gaussian_statistics(a), *frechet.gaussian_statistics(b)
    )
    # 30 rounding errors of 2e-16 of the traces, a few times as large as the distance
    assert frechet._distance_by_elements(a, b) == pytest.approx(by_covariances, rel=1e-11)
    assert frechet._distance_by_elements(b, a) == pytest.approx(by_covariances, rel=1e-11)
    assert frechet.frechet_distance_of_sets(a, b) == pytest.approx(by_covariances, rel=1e-11)


def test_by_elements_it_agrees_with_scipys_square_root():
    a, b = (
        np.random.default_rng(0).normal(size=(60, 10)),
        np.random.default_rng(1).normal(0.5, 2, (90, 10)),
    )
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + np.trace(cov_a + cov_b - 2 * root)
    assert frechet._distance_by_elements(a, b) == pytest.approx(expected, rel=1e-11)


def test_by_elements_it_has_a_closed_form_for_two_elements_each():
    """x_0 ± u and y_0 ± v have the covariances 2 u uᵀ and 2 v vᵀ.

    |x_0 - y_0|² + 2 (|u|² + |v|² - 2 |u·v|).
    """
    x, u, y, v = np.random.default_rng(RNG_SEED).normal(size=(4, 100_000))
    distance = frechet.frechet_distance_of_sets(np.stack([x + u, x - u]), np.stack([y + v, y - v]))
    expected = (x - y) @ (x - y) + 2 * (u @ u + v @ v - 2 * abs(u @ v))
    assert distance == pytest.approx(expected, rel=1e-12)


def test_a_set_of_fewer_elements_than_dimensions_is_at_distance_zero_from_itself():
    features = _features(10, 200, 0)
    assert frechet.frechet_distance_of_sets(features, features[::-1]) == pytest.approx(
        0.0, abs=1e-12
    )


@pytest.mark.parametrize(
    ("num_a", "num_b", "dims", "by_elements"),
    [
        (300, 1497, 64, False),  # the digits
        (300, 50_000, 3072, True),  # CIFAR-10
        (50_000, 50_000, 3072, False),
        (300, 30_000, 196_608, True),  # CelebA-HQ at 256x256
        (5000, 30_000, 196_608, True),
    ],
)
def test_the_way_is_the_one_of_fewer_operations(num_a, num_b, dims, by_elements):
    assert frechet.prefers_elements(num_a, num_b, dims) == by_elements
    assert frechet.prefers_elements(num_b, num_a, dims) == by_elements
    # D x D of the last two would be 288 GiB
    assert frechet.memory_needed(num_a, num_b, dims) < 8 * 2**30


@pytest.mark.full
@pytest.mark.parametrize(
    ("num_a", "num_b", "dims", "by_elements"),
    [(200, 1500, 300, True), (200, 1500, 300, False), (60, 70, 50_000, True), (60, 70, 500, False)],
)
def test_the_memory_needed_is_no_less_than_what_is_taken(
    monkeypatch, num_a, num_b, dims, by_elements
):
    monkeypatch.setattr(frechet, "BUFFER", 2**20)
    monkeypatch.setattr(frechet, "prefers_elements", lambda *sizes: by_elements)
    rng = np.random.default_rng(RNG_SEED)
    a, b = (rng.integers(0, 256, (count, dims), dtype=np.uint8) for count in (num_a, num_b))
    tracemalloc.start()
    frechet.frechet_distance_of_sets(a, b)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken <= frechet.memory_needed(num_a, num_b, dims) < 3 * taken


def test_what_does_not_fit_is_refused_with_what_it_needs_and_what_there_is(monkeypatch):
    monkeypatch.setattr(host_memory, "available", lambda: 2**30)
    message = (
        r"between 40,000 and 30,000 examples of 196,608 numbers needs 9\.3 GiB .* "
        r"1\.0 GiB are available: compare sm"
    )
    with pytest.raises(UsageError, match=message):
        frechet.check_sets(40_000, 30_000, 196_608)
    frechet.check_sets(300, 30_000, 196_608)


def _split(count, size=4):
    return ArraySource(np.zeros((count, size, size, 1), np.uint8), np.zeros(count, np.int32), 0, "")


def test_training_images_are_compared_with_evenly_and_held_out_ones_as_many_as_samples():
    train, held_out = pixel_frechet.check_pixel_sets(
        _split(10), _split(7), num_samples=5, num_reference=4
    )
    assert (train.tolist(), held_out.tolist()) == ([0, 3, 6, 9], [0, 1, 2, 3, 4])
    train, held_out = pixel_frechet.check_pixel_sets(_split(10), _split(7), num_samples=9)
    assert (train.tolist(), held_out.tolist()) == (list(range(10)), list(range(7)))


def test_sets_that_cannot_be_compared_are_refused_before_they_are_read(monkeypatch):
    with pytest.raises(UsageError, match="There are 1 held-out images"):
        pixel_frechet.check_pixel_sets(_split(10), _split(1), num_samples=5)
    monkeypatch.setattr(host_memory, "available", lambda: 2**20)
    with pytest.raises(
        UsageError,
        match=r"lower num_samples, or compare with fewer training images by num_reference",
    ):
        pixel_frechet.check_pixel_sets(_split(10), _split(7), num_samples=5)


def test_sets_of_different_image_shapes_are_refused():
    with pytest.raises(UsageError, match=r"\(8, 8, 1\) with images of shape \(32, 32, 3\)"):
        pixel_frechet.pixel_frechet_distance(
            np.zeros((2, 8, 8, 1), np.uint8), np.zeros((2, 32, 32, 3), np.uint8)
        )


def test_an_empty_set_is_refused():
    with pytest.raises(UsageError, match="at least 2 samples, got 0"):
        pixel_frechet.pixel_frechet_distance(
            np.zeros((0, 8, 8, 1), np.uint8), np.zeros((5, 8, 8, 1), np.uint8)
        )
