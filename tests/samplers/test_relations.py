"""Samplers that are equal under another name, and relations of their coefficients.

To rounding, in float64.
"""

import jax
import numpy as np
import pytest
from scipy.integrate import quad

from ddpm_jax.samplers.adams import lagrange_integrals
from ddpm_jax.samplers.dpm_solver import second_order, third_order
from ddpm_jax.samplers.langevin import corrector
from ddpm_jax.samplers.linear import levels_from_schedule
from ddpm_jax.samplers.registry import SAMPLERS
from ddpm_jax.samplers.spacing import space

every_spacing = pytest.mark.parametrize("spacing", ["linspace", "leading", "karras"])


def build_sampler(oracle, name, spacing="linspace", steps=12, **options):
    times = space(oracle.chain, spacing, steps)
    return SAMPLERS[name](oracle.chain, times, **options, dtype=np.float64)


def batch_x_0(oracle, name, spacing, **options):
    with jax.enable_x64(True):
        sampler = build_sampler(oracle, name, spacing, **options)
        return np.asarray(oracle.run(sampler, *oracle.start(8), dtype=np.float64).x_0)


@pytest.mark.full
@every_spacing
@pytest.mark.parametrize(
    ("one", "other"),
    [
        # the suite's denoiser has the variance fixed_small
        (("ddim", {"eta": 1.0}), ("ancestral", {})),
        (("euler_ancestral", {}), ("ddim", {"eta": 1.0})),
        (("euler_ancestral", {"eta": 0.0}), ("euler", {})),
        (("euler", {}), ("ddim", {})),
        (("lms", {"order": 1}), ("euler", {})),
        (("edm", {}), ("heun", {})),
        (("edm", {"s_churn": 9.0, "s_min": 1e3}), ("heun", {})),
        (("dpmpp_2m_sde", {"eta": 0.0}), ("dpmpp_2m", {})),
        (("dpmpp_3m_sde", {"eta": 0.0}), ("dpmpp_3m", {})),
        (("predictor_corrector", {"corrector_steps": 0}), ("ancestral", {})),
    ],
)
def test_two_names_of_one_sampler(oracle, one, other, spacing):
    found, expected = (
        batch_x_0(oracle, name, spacing, **options) for name, options in (one, other)
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ddim", {"eta": 1.0}), ("ddim", {})),
        (("lms", {"order": 2}), ("euler", {})),
        (("dpmpp_2m_sde", {}), ("dpmpp_2m", {})),
        (("dpmpp_3m", {}), ("dpmpp_2m", {})),
        (("unipc", {}), ("dpmpp_2m", {})),
        (("unipc", {"variant": "bh1"}), ("unipc", {})),
        (("plms", {}), ("pndm", {})),
        (("heun", {}), ("dpm2", {})),
        (("dpmpp_2m_sde", {}), ("ddim", {"eta": 1.0})),
    ],
)
def test_two_that_differ(oracle, one, other):
    """So that the tests of equality can fail."""
    found, expected = (
        batch_x_0(oracle, name, "linspace", **options) for name, options in (one, other)
    )
    assert np.abs(found - expected).max() > 1e-4


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_first_step_of_dpm_solver_is_ddim(oracle, eta):
    """With one prediction the solver is DDIM, and the one with η = 1 DDIM with η = 1.

    Lu et al. 2022b, section 4.
    """
    solver = build_sampler(oracle, "dpmpp_2m_sde", eta=eta)
    ddim = build_sampler(oracle, "ddim", eta=eta)
    levels = levels_from_schedule(solver.schedule)
    x, x_0 = np.array([0.7, -1.2]), np.array([0.3, 0.4])
    eps = (x - levels.signal[0] * x_0) / levels.noise[0]
    first = jax.tree.map(lambda row: row[0], solver.rows.weights)
    expected = jax.tree.map(lambda row: row[0], ddim.rows.weights)
    np.testing.assert_allclose(
        first.x * x + first.x_0[0] * x_0, expected.x_0[0] * x_0 + expected.eps[0] * eps, rtol=1e-12
    )
    np.testing.assert_allclose(first.z, expected.z, rtol=1e-12)


@pytest.mark.parametrize(
    "name",
    [
        "ddim",
        "lms",
        "plms",
        "pndm",
        "dpmpp_2m",
        "dpmpp_3m",
        "unipc",
        "heun",
        "dpm2",
        "dpmpp_3m_sde",
    ],
)
def test_a_constant_prediction_is_followed_exactly(oracle, name):
    """Data that are one point: x_t = √ᾱ x_0 + √(1-ᾱ) ε with the same x_0 throughout.

    ε is the same throughout, or fresh.
    """
    sampler = build_sampler(
        oracle, name, "karras", **({"eta": 0.0} if name.endswith("sde") else {})
    )
    weights = sampler.rows.weights
    signal, noise = (
        np.append(np.asarray(table)[sampler.rows.level], end)
        for table, end in (
            (sampler.schedule.sqrt_alphas_bar, 1),
            (sampler.schedule.sqrt_one_minus_alphas_bar, 0),
        )
    )
    # Of x_0 and of ε in what a row makes.
    np.testing.assert_allclose(weights.x * signal[:-1] + weights.x_0.sum(1), signal[1:], atol=1e-12)
    np.testing.assert_allclose(weights.x * noise[:-1] + weights.eps.sum(1), noise[1:], atol=1e-12)


@pytest.mark.full
@pytest.mark.parametrize("name", ["ddim", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde"])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_fresh_noise_makes_up_for_the_old(oracle, name, eta):
    """From x_t = √ᾱ x_0 + √(1-ᾱ) z, with x_0 known, the next x has the noise √(1-ᾱ').

    Old and fresh noise add in squares.
    """
    sampler = build_sampler(oracle, name, "karras", eta=eta)
    weights, levels = sampler.rows.weights, levels_from_schedule(sampler.schedule)
    old = weights.x * levels.noise[:-1] + weights.eps.sum(1)
    np.testing.assert_allclose(old**2 + weights.z**2, levels.noise[1:] ** 2, atol=1e-12)
    assert (weights.z[:-1] > 0).all()


@pytest.mark.full
def test_churn_raises_the_noise_to_the_level_that_is_asked(oracle):
    sampler = build_sampler(oracle, "edm", "karras", s_churn=4.0, s_min=0.1, s_max=2.0, s_noise=1.0)
    sigma = levels_from_schedule(build_sampler(oracle, "heun", "karras").schedule).sigma
    evaluated = np.asarray(sampler.schedule.sqrt_recipm1_alphas_bar)[sampler.rows.level]
    plain = np.asarray(build_sampler(oracle, "heun", "karras").schedule.sqrt_recipm1_alphas_bar)
    plain = plain[build_sampler(oracle, "heun", "karras").rows.level]
    inside = (plain[2::2] >= 0.1) & (plain[2::2] <= 2.0)
    assert 0 < inside.sum() < len(inside)
    np.testing.assert_allclose(
        evaluated[2::2], plain[2::2] * np.where(inside, 1 + 4 / 12, 1), rtol=1e-10
    )
    np.testing.assert_allclose(evaluated[1::2], plain[1::2], rtol=1e-12)
    signal = np.asarray(sampler.schedule.sqrt_alphas_bar)[sampler.rows.level]
    z = sampler.rows.weights.z[1::2] / signal[2::2]
    np.testing.assert_allclose(z**2, evaluated[2::2] ** 2 - evaluated[1::2] ** 2, atol=1e-12)
    np.testing.assert_allclose(sigma[0], evaluated[0], rtol=1e-12)


def test_churn_does_not_leave_the_chain(oracle):
    """At the second level of a dense table σ̂ would lie beyond the noise the network has seen."""
    sampler = build_sampler(oracle, "edm", "exponential", steps=100, s_churn=1e9)
    assert sampler.schedule.num_timesteps == 199
    assert np.max(sampler.schedule.sqrt_recipm1_alphas_bar) <= np.exp(
        oracle.chain.log_sigmas[-1]
    ) * (1 + 1e-12)


@pytest.mark.parametrize("rate", [0.0, 1.7])
def test_the_integrals_of_the_interpolating_polynomials_are_scipys(rate):
    nodes, start, end = np.array([1.0, 0.2, -0.9]), 1.0, 2.3

    def integrand(u, j):
        others = np.delete(nodes, j)
        return np.exp(-rate * (end - u)) * np.prod((u - others) / (nodes[j] - others))

    found = lagrange_integrals(nodes, start, end, lambda u: np.exp(-rate * (end - u)))
    np.testing.assert_allclose(
        found, [quad(integrand, start, end, args=j)[0] for j in range(3)], rtol=1e-10
    )


@pytest.mark.parametrize("rate", [1.0, 2.0])
@pytest.mark.parametrize("power", range(4))
def test_the_third_order_solver_is_exact_for_parabolas_and_the_second_order_one_for_constants(
    rate, power
):
    """∫ rate e^(-rate (λ'-u)) x_0(u) du by quadrature. Half the second difference would not do."""
    half_log_snr = np.array([-2.0, -1.3, -0.9, 0.1])
    start, end = half_log_snr[2:]
    exact = quad(lambda u: rate * np.exp(-rate * (end - u)) * u**power, start, end)[0]
    third = third_order(half_log_snr, 2, rate) @ half_log_snr[2::-1] ** power
    second = second_order(half_log_snr, 2, rate) @ half_log_snr[2:0:-1] ** power
    assert (third == pytest.approx(exact, rel=1e-10)) == (power <= 2)
    assert (second == pytest.approx(exact, rel=1e-10)) == (power == 0)


def test_the_corrector_is_the_papers_line_for_each_image():
    """Song et al. 2021, algorithm 5.

    ε = 2 α (r ‖z‖/‖g‖)², x + ε g + √(2ε) z, written out for every image by itself.
    """
    rng = np.random.default_rng(0)
    x, eps, z = rng.standard_normal((3, 4, 5, 5, 2))
    noise, alpha, r = 0.6, 0.97, 0.16
    found = corrector(x, eps, z, noise, 2 * alpha * r**2)
    for i in range(4):
        g = -eps[i] / noise
        size = 2 * alpha * (r * np.linalg.norm(z[i]) / np.linalg.norm(g)) ** 2
        # Float32.
        np.testing.assert_allclose(
            found[i], x[i] + size * g + np.sqrt(2 * size) * z[i], rtol=0, atol=1e-5
        )


def test_corrector_steps_stand_at_the_level_that_the_predictor_reached(oracle):
    sampler = SAMPLERS["predictor_corrector"](oracle.chain, np.arange(4), corrector_steps=2)
    assert sampler.rows.level.tolist() == [3, 2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert sampler.rows.corrects.tolist() == [False] + [True, True, False] * 3
