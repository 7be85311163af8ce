"""Levels that are learned: monotone whatever their parameters, and a process like any other."""

import math

import jax
import numpy as np
import pytest

from ddpm_jax.diffusion.chain import continuous_chain
from ddpm_jax.diffusion.learned_levels import (
    FIRST,
    FLOOR,
    LAST,
    gamma,
    gamma_ends,
    initial_levels,
    learned,
)
from ddpm_jax.errors import UsageError

TIMES = np.linspace(0, 1, 201)


def drawn(seed, scale=1.0):
    """Levels whose parameters, but for the ends, have moved by so much."""
    rng = np.random.default_rng(seed)
    levels = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), initial_levels())
    moved = jax.tree.map(lambda leaf: leaf + scale * rng.normal(size=leaf.shape), levels)
    return {"ends": levels["ends"], "interior": moved["interior"]}


def softplus(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0) + FLOOR


def by_the_paper(levels, time):
    """γ(τ) as the formulas have it, one unit after the other."""
    l1, l2, l3 = (levels["interior"][name] for name in ("l1", "l2", "l3"))

    def rising(time):
        h = softplus(l1["kernel"]) * time + l1["bias"]
        units = zip(l2["kernel"], l2["bias"], l3["kernel"], strict=True)
        terms = [softplus(w) / (1 + math.exp(-(softplus(k) * h + b))) for k, b, w in units]
        return h + sum(terms) / len(terms)

    first, span = levels["ends"]["first"], softplus(levels["ends"]["span"])
    low, high = rising(0.0), rising(1.0)
    return first + span * (rising(time) - low) / (high - low)


def test_gamma_is_the_papers_network_between_its_two_ends():
    levels = drawn(0)
    for time in (0.0, 0.03, 0.5, 1.0):
        found = gamma(levels, np.float64(time))
        assert found == pytest.approx(by_the_paper(levels, time), abs=1e-10)
    np.testing.assert_allclose(gamma(levels, np.array([0.0, 1.0])), gamma_ends(levels), atol=1e-12)


def test_untrained_levels_run_from_the_given_first_to_the_last_nearly_on_a_line():
    levels = initial_levels()
    np.testing.assert_allclose(gamma_ends(levels), (FIRST, LAST), rtol=1e-6)
    line = FIRST + (LAST - FIRST) * TIMES
    assert np.abs(np.asarray(gamma(levels, jax.numpy.asarray(TIMES))) - line).max() < 0.3


@pytest.mark.parametrize("scale", [0.1, 3, 30])
def test_gamma_rises_whatever_the_parameters(scale):
    for seed in range(5):
        levels = drawn(seed, scale)
        levels["ends"] = {"first": np.float64(scale), "span": np.float64(-scale)}
        assert np.all(np.diff(gamma(levels, TIMES)) > 0)


def test_learned_levels_make_a_variance_preserving_process_whose_times_are_their_inverse():
    levels = drawn(1)
    process = learned(levels)
    a, s = process.coefficients(TIMES)
    np.testing.assert_allclose(a**2 + s**2, 1, rtol=1e-12)
    # the signal-to-noise ratio is exp(-γ)
    np.testing.assert_allclose(np.log(s**2 / a**2), gamma(levels, TIMES), atol=1e-9)
    np.testing.assert_allclose(process.time(gamma(levels, TIMES) / 2), TIMES, atol=1e-9)
    single = process.time(jax.numpy.asarray(gamma(levels, TIMES) / 2, jax.numpy.float32))
    np.testing.assert_allclose(single, TIMES, atol=1e-5)
    # what the network gets depends on the level alone, and not on what has been learned
    np.testing.assert_allclose(process.network_time(np.array([FIRST, LAST]) / 2), [0, 1000])


@pytest.mark.parametrize("last", [1.0, 1.0005, 1000.0])
def test_ends_that_no_levels_have_are_named(last):
    with pytest.raises(UsageError, match=f"gamma runs from 1 to {last:g} at first"):
        initial_levels(1.0, last)


def test_numbered_levels_are_even_in_the_time_that_is_learned():
    levels = drawn(2)
    first, last = (math.exp(end / 2) for end in gamma_ends(levels))
    chain = continuous_chain(learned(levels), 11, sigma_min=first, sigma_max=last)
    wanted = gamma(levels, np.linspace(0, 1, 11)) / 2
    np.testing.assert_allclose(chain.log_sigmas, wanted, atol=1e-9)
    np.testing.assert_allclose(chain.times_from_sigmas(np.exp(wanted)), np.arange(11), atol=1e-8)
