"""Averages made after training: profiles, inner products, sums, against brute force, quadrature,
direct averages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from ddpm_jax.errors import UsageError
from ddpm_jax.training import ema
from ddpm_jax.training.ema import Average
from ddpm_jax.training.ema_profiles import (
    Profile,
    fit,
    gamma_from_sigma_rel,
    inner_product,
    sigma_rel_from_gamma,
    step_weights,
)

STEPS = 2000
WIDTHS = (0.05, 0.1)


def _density(profile, tau):
    return (
        (profile.gamma + 1)
        * tau**profile.gamma
        / profile.t ** (profile.gamma + 1)
        * (tau <= profile.t)
    )


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_gamma_of_a_width_gives_a_profile_of_that_standard_deviation(width):
    profile = Profile(gamma_from_sigma_rel(width), 1.0)
    moments = [
        integrate.quad(lambda tau, k=k: tau**k * _density(profile, tau), 0, 1, epsabs=1e-12)[0]
        for k in range(3)
    ]
    assert moments[0] == pytest.approx(1, abs=1e-10)
    assert np.sqrt(moments[2] - moments[1] ** 2) == pytest.approx(width, rel=1e-8)
    assert sigma_rel_from_gamma(profile.gamma) == pytest.approx(width, rel=1e-10)


def test_the_papers_pair_of_exponents():
    # Karras et al. 2024, section 3.2: gammas of 16.97 and 6.94 for widths of 0.05 and 0.10
    assert gamma_from_sigma_rel(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_from_sigma_rel(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("width", [0.0, -0.1, 12**-0.5, 1.0])
def test_a_width_that_no_profile_has_is_refused(width):
    with pytest.raises(UsageError, match=r"above 0 and below 0\.2887"):
        gamma_from_sigma_rel(width)


def test_step_weights_are_those_of_the_recursion():
    for width in (0.05, 0.2):
        profile, weights = Profile(gamma_from_sigma_rel(width), 300), np.zeros(300)
        for n in range(300):
            decay = (1 - 1 / (n + 1)) ** (profile.gamma + 1)
            weights *= decay
            weights[n] = 1 - decay
        np.testing.assert_allclose(step_weights(profile), weights, rtol=1e-10, atol=1e-30)
        assert weights.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("ts", [(1.0, 1.0), (0.3, 1.0), (1.0, 0.45), (250.0, 1000.0)])
@pytest.mark.parametrize("gammas", [(16.97, 6.94), (6.94, 16.97), (0.2, 3.0), (6.94, 6.94)])
def test_inner_products_are_the_integrals(gammas, ts):
    a, b = map(Profile, gammas, ts)
    expected, _ = integrate.quad(
        lambda tau: _density(a, tau) * _density(b, tau), 0, min(ts), epsabs=0, epsrel=1e-10
    )
    assert inner_product(a, b) == pytest.approx(expected, rel=1e-8)
    assert inner_product(b, a) == pytest.approx(expected, rel=1e-8)


def test_a_saved_profile_is_its_own_best_fit():
    saved = [Profile(gamma_from_sigma_rel(width), t) for width in WIDTHS for t in (500, 1000, 1500)]
    found = fit(saved[4], saved)
    np.testing.assert_allclose(found.coefficients, np.eye(6)[4], atol=1e-9)
    assert found.error < 1e-6


@pytest.mark.parametrize("width", [0.07, 0.15, 0.25])
def test_the_fit_is_the_least_squares_of_densities_on_a_grid(width):
    saved = [Profile(gamma_from_sigma_rel(w), t) for w in WIDTHS for t in np.linspace(0.2, 1, 5)]
    wanted = Profile(gamma_from_sigma_rel(width), 1.0)
    tau = (np.arange(200_000) + 0.5) / 200_000
    columns = np.stack([_density(profile, tau) for profile in saved], axis=1)
    found, target = fit(wanted, saved), _density(wanted, tau)
    assert found.coefficients.sum() == pytest.approx(1, abs=1e-10)
    # The constraint by elimination: c_last = 1 - the others.
    free, *_ = np.linalg.lstsq(
        columns[:, :-1] - columns[:, -1:], target - columns[:, -1], rcond=None
    )
    brute = np.append(free, 1 - free.sum())
    # The grid's sums are off by 1e-5 at the jumps of the densities.
    np.testing.assert_allclose(found.coefficients, brute, atol=2e-3)
    error = np.linalg.norm(target - columns @ brute) / np.linalg.norm(target)
    assert found.error == pytest.approx(error, rel=1e-2)


@pytest.fixture(scope="module")
def trajectory():
    """Weights that drift and jitter, float64 [STEPS, 4], as they do while a network is trained."""
    rng = np.random.default_rng(0)
    drift = np.sqrt(np.linspace(0, 1, STEPS))[:, None] * rng.normal(size=4)
    return (
        drift
        + 0.1 * np.cumsum(rng.normal(size=(STEPS, 4)), axis=0) / np.sqrt(STEPS)
        + 0.05 * rng.normal(size=(STEPS, 4))
    )


@pytest.fixture(scope="module")
def snapshots(trajectory):
    """What `ema.update` made of the trajectory every fortieth of the run: {width: float32 [40,
    4]}."""
    averages = [Average(sigma_rel=width) for width in WIDTHS]

    @jax.jit
    def run(path):
        def update(kept, inputs):
            step, new = inputs
            kept = tuple(
                ema.update(k, new, ema.rate_at(step, a))
                for k, a in zip(kept, averages, strict=True)
            )
            return kept, kept

        _, history = jax.lax.scan(update, (path[0],) * 2, (jnp.arange(STEPS), path))
        return history

    every = STEPS // 40
    return {
        width: np.asarray(h)[every - 1 :: every]
        for width, h in zip(WIDTHS, run(jnp.float32(trajectory)), strict=True)
    }


@pytest.mark.parametrize("steps", [STEPS, STEPS // 2])
@pytest.mark.parametrize("width", [0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25])
def test_an_average_of_any_width_is_reconstructed_from_two(trajectory, snapshots, width, steps):
    times = np.arange(STEPS // 40, steps + 1, STEPS // 40)
    saved = [Profile(gamma_from_sigma_rel(w), t) for w in WIDTHS for t in times]
    wanted = Profile(gamma_from_sigma_rel(width), steps)
    found = fit(wanted, saved)
    made = found.coefficients @ np.concatenate(
        [np.float64(snapshots[w])[: len(times)] for w in WIDTHS]
    )
    direct = step_weights(wanted) @ trajectory[:steps]
    # An error of weights that sums to 0 and is `error` long acts on what varies: the jitter, 0.05,
    # and the drift.
    scale = np.linalg.norm(step_weights(wanted)) * np.linalg.norm(
        trajectory[:steps] - direct, axis=0
    )
    assert np.all(np.abs(made - direct) < found.error * scale + 1e-5)
    assert found.error < 0.07  # of the widest, from the 20 snapshots of half the run
    others = [
        step_weights(Profile(gamma_from_sigma_rel(w), steps)) @ trajectory[:steps]
        for w in WIDTHS
        if w != width
    ]
    assert np.abs(made - direct).max() < 0.1 * min(np.abs(other - direct).max() for other in others)


def test_nothing_saved_is_refused():
    with pytest.raises(UsageError, match="no saved averages"):
        fit(Profile(1.0, 1.0), [])
