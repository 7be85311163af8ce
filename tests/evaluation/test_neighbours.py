"""Precision, recall, density, coverage against loops, sklearn, and what chance gives."""

import math

import numpy as np
import pytest
import sklearn.neighbors

from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation import pairwise
from ddpm_jax.evaluation.neighbours import (
    expected_coverage,
    neighbour_distances,
    neighbour_measures,
)


def _normal(count, dims, seed, *, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1, (count, dims))


SAMPLES, REAL = _normal(31, 6, 0, shift=0.8), _normal(24, 6, 1)


def _loop(samples, real, k, k_density):
    """The four by their definitions, ball by ball."""

    def radius(points, i, k):
        return sorted(math.dist(points[i], p) for j, p in enumerate(points) if j != i)[k - 1]

    r, s = ([radius(x, i, k) for i in range(len(x))] for x in (real, samples))
    wide = [radius(real, i, k_density) for i in range(len(real))]
    d = [[math.dist(x, y) for y in real] for x in samples]
    n, m = range(len(real)), range(len(samples))
    return (
        sum(any(d[i][j] <= r[j] for j in n) for i in m) / len(samples),
        sum(any(d[i][j] <= s[i] for i in m) for j in n) / len(real),
        sum(d[i][j] <= wide[j] for i in m for j in n) / (k_density * len(samples)),
        sum(any(d[i][j] <= wide[j] for i in m) for j in n) / len(real),
    )


@pytest.fixture(params=[None, 5], ids=["whole", "tiles"])
def tiles(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(pairwise, "BUFFER", 8 * 6 * request.param)


@pytest.mark.parametrize(("k", "k_density"), [(3, 5), (4, 1)])
def test_they_are_the_loops_over_balls(tiles, k, k_density):
    found = neighbour_measures(SAMPLES, REAL, k=k, k_density=k_density)
    expected = _loop(SAMPLES, REAL, k, k_density)
    assert [share.value for share in found] == pytest.approx(expected, abs=1e-15)
    assert 0.1 < found.precision.value < 0.9
    assert 0.1 < found.recall.value < 0.9


def test_distances_are_sklearns(tiles):
    by_tree = sklearn.neighbors.NearestNeighbors(n_neighbors=5, algorithm="kd_tree").fit(SAMPLES)
    expected = by_tree.kneighbors()[0]  # without arguments: of the points to the others
    np.testing.assert_allclose(np.sqrt(neighbour_distances(SAMPLES, 5)), expected, rtol=1e-12)


def test_a_copy_is_a_neighbour_and_the_element_itself_is_none(tiles):
    points = np.array([[0.0] * 6, [3.0, 4] + [0] * 4, [0.0] * 6, [1.0] + [0] * 5])
    np.testing.assert_array_equal(
        neighbour_distances(points, 2), [[0, 1], [20, 25], [0, 1], [1, 1]]
    )


def test_a_point_on_a_sphere_is_inside_whatever_the_tiles(monkeypatch):
    """Real images are at distance 1.2 of their neighbours; the samples are real images."""
    line = np.arange(8.0)[:, None] * 1.2 * np.full((1, 70), 1 / math.sqrt(70)) + 0.1
    for buffer in (2**26, 8 * 70 * 3):
        monkeypatch.setattr(pairwise, "BUFFER", buffer)
        found = neighbour_measures(line, line, k=1, k_density=1)
        assert [share.value for share in found[:2]] == [1, 1]
        # each of the 6 inner ones lies in 3 balls, the outer ones in 2
        assert found.density.value == pytest.approx((6 * 3 + 2 * 2) / 8)


def test_of_one_distribution_density_and_coverage_are_known():
    """P(a sample is among the k nearest of N points to a real one) = k / N, however distributed."""
    found = [
        neighbour_measures(_normal(30, 2, seed) ** 3, _normal(20, 2, 10_000 + seed) ** 3)
        for seed in range(200)
    ]
    for name, expected in (("density", 1.0), ("coverage", expected_coverage(30, 20))):
        values = [getattr(each, name).value for each in found]
        assert np.mean(values) == pytest.approx(expected, abs=4 * np.std(values) / math.sqrt(200))
    assert expected_coverage(10**6, 10**6) == pytest.approx(1 - 0.5**5, abs=1e-5)


def test_far_away_nothing_lies_in_anything_and_one_mode_has_no_recall():
    far = neighbour_measures(SAMPLES + 100, REAL)
    assert [share.value for share in far] == [0, 0, 0, 0]
    modes = np.concatenate([_normal(40, 3, 0), _normal(40, 3, 1, shift=50)])
    found = neighbour_measures(_normal(80, 3, 2), modes)
    assert found.precision.value > 0.7
    assert 0.2 < found.recall.value <= 0.5
    assert 0.3 < found.coverage.value <= 0.5


def test_the_error_is_that_of_a_share():
    found = neighbour_measures(SAMPLES, REAL)
    for share, count in ((found.precision, 31), (found.recall, 24), (found.coverage, 24)):
        expected = math.sqrt(share.value * (1 - share.value) / (count - 1))
        assert share.standard_error == pytest.approx(expected, rel=1e-12)


def test_sets_too_small_are_refused():
    with pytest.raises(UsageError, match=r"of 5 neighbours needs at least 6 examples .* got 5"):
        neighbour_measures(SAMPLES, REAL[:5])
    with pytest.raises(UsageError, match="k is 0"):
        neighbour_measures(SAMPLES, REAL, k=0)
