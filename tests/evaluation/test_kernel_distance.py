"""KID and CMMD against loops over pairs and closed forms; their errors against the spread."""

import math

import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation import pairwise
from ddpm_jax.evaluation.kernel_distance import (
    clip_mmd,
    kernel_inception_distance,
    kernel_inception_distance_of_subsets,
)


def _normal(count, dims, seed, *, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(shift, scale, (count, dims))


A, B = _normal(11, 4, 0), _normal(8, 4, 1, shift=0.5)


def _cubic(x, y):
    return (sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3


def _gaussian(x, y):
    return math.exp(-sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / (2 * 10**2))


def _loop(a, b, kernel, *, biased):
    """MMD² by definition, pair by pair."""

    def within(x):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if biased or i != j]
        return sum(kernel(x[i], x[j]) for i, j in pairs) / len(pairs)

    between = sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))
    return within(a) + within(b) - 2 * between


def _jackknife(a, b, kernel, *, biased):
    """The error by leaving out one element after another."""
    variance = 0.0
    for without in (
        [_loop(np.delete(a, i, 0), b, kernel, biased=biased) for i in range(len(a))],
        [_loop(a, np.delete(b, i, 0), kernel, biased=biased) for i in range(len(b))],
    ):
        variance += (len(without) - 1) * np.var(without)
    return math.sqrt(variance)


@pytest.fixture(params=[None, 3], ids=["whole", "tiles"])
def tiles(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(pairwise, "BUFFER", 8 * 4 * request.param)


def test_kid_is_the_loop_over_pairs(tiles):
    found = kernel_inception_distance(A, B)
    assert found.value == pytest.approx(_loop(A, B, _cubic, biased=False), rel=1e-12)
    assert found.standard_error == pytest.approx(_jackknife(A, B, _cubic, biased=False), rel=1e-10)
    assert kernel_inception_distance(B, A) == pytest.approx(found, rel=1e-12)


def test_cmmd_is_the_loop_over_pairs(tiles):
    found = clip_mmd(A, B)
    assert found.value == pytest.approx(1000 * _loop(A, B, _gaussian, biased=True), rel=1e-10)
    expected = 1000 * _jackknife(A, B, _gaussian, biased=True)
    assert found.standard_error == pytest.approx(expected, rel=1e-8)


def test_subsets_are_drawn_from_one_generator_first_set_first():
    random, distances = np.random.RandomState(2020), []
    for _ in range(3):
        chosen_a = random.choice(11, 6, replace=False)
        chosen_b = random.choice(8, 6, replace=False)
        distances.append(_loop(A[chosen_a], B[chosen_b], _cubic, biased=False))
    found = kernel_inception_distance_of_subsets(A, B, subsets=3, size=6)
    assert found == pytest.approx((np.mean(distances), np.std(distances)), rel=1e-12)


def test_of_whole_sets_the_subsets_have_the_distance_of_all_pairs():
    b = _normal(11, 4, 2)
    found = kernel_inception_distance_of_subsets(A, b, subsets=2, size=11)
    assert found.value == pytest.approx(kernel_inception_distance(A, b).value, rel=1e-12)
    assert found.deviation == pytest.approx(0, abs=1e-15)


def test_kid_of_gaussians_is_unbiased():
    """With x ~ N(0, 1), y ~ N(m, 1) in one dimension every moment is known.

    E (x x' + 1)³ = Σ C(3, r) (E xʳ)², and between the sets the product of both.
    """
    shift, count, repeats = 0.6, 5, 4000
    moments_x = [1, 0, 1, 0]
    moments_y = [1, shift, 1 + shift**2, shift**3 + 3 * shift]
    expected = sum(
        math.comb(3, r) * (x - y) ** 2
        for r, (x, y) in enumerate(zip(moments_x, moments_y, strict=True))
    )
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (repeats, count, 1))
    y = rng.normal(shift, 1, (repeats, count, 1))
    values = [kernel_inception_distance(*pair).value for pair in zip(x, y, strict=True)]
    # of 5 elements a set, a biased estimate lies above by more than (E(x² + 1)³ - 4) / 5 = 4.8
    assert np.mean(values) == pytest.approx(expected, abs=4 * np.std(values) / math.sqrt(repeats))
    assert np.std(values) / math.sqrt(repeats) < 0.5


def test_cmmd_of_gaussians_has_a_closed_form_and_the_stated_bias():
    """E exp(-|x - y|²/2σ²) of normal x - y with mean m and variance v: (s exp(-m²/2(σ²+v)))^D."""
    dims, shift, sigma2, n, m, repeats = 3, 0.5, 100.0, 20, 30, 200

    def mean_kernel(shift):
        return (
            math.sqrt(sigma2 / (sigma2 + 2)) * math.exp(-(shift**2) / (2 * (sigma2 + 2)))
        ) ** dims

    bias = (1 - mean_kernel(0)) * (1 / n + 1 / m)
    expected = 1000 * (2 * mean_kernel(0) - 2 * mean_kernel(shift) + bias)
    values = [
        clip_mmd(_normal(n, dims, seed), _normal(m, dims, 10_000 + seed, shift=shift)).value
        for seed in range(repeats)
    ]
    error = np.std(values) / math.sqrt(repeats)
    assert np.mean(values) == pytest.approx(expected, abs=4 * error)
    assert error < 1000 * bias / 4, "the bias is seen"


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 1.0, 1.5), (1.0, 0.9, 1.15)])
def test_the_error_is_the_spread_over_sets_and_never_less(shift, low, high):
    """Of equal distributions up to √2 as large, otherwise equal; 300 repeats know it to 4 %."""
    found = [
        kernel_inception_distance(_normal(40, 3, seed), _normal(60, 3, 10_000 + seed, shift=shift))
        for seed in range(300)
    ]
    spread = np.std([each.value for each in found])
    mean_error = math.sqrt(np.mean([each.standard_error**2 for each in found]))
    assert low < mean_error / spread < high


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(UsageError, match="kernel distance needs at least 3 examples"):
        kernel_inception_distance(A, B[:2])
    with pytest.raises(UsageError, match=r"subsets of 9 elements needs at least 9 .* got 8"):
        kernel_inception_distance_of_subsets(A, B, size=9)
    with pytest.raises(UsageError, match="0 subsets of 9"):
        kernel_inception_distance_of_subsets(A, B, subsets=0, size=9)
    with pytest.raises(UsageError, match="A CMMD: a feature is not-a-number"):
        clip_mmd(A, B * np.nan)
