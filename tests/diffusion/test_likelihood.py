"""The terms of the bound against quadrature, the exact CDF and known likelihoods."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from ddpm_jax.diffusion import gaussian, likelihood, parameterization, schedules
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.process import make_process

LEVELS = (np.arange(256) / 127.5 - 1).astype(np.float32)

log_likelihood = jax.jit(likelihood.discretized_gaussian_log_likelihood)
kl = jax.jit(likelihood.normal_kl)


@pytest.mark.parametrize(
    ("mean_1", "log_variance_1", "mean_2", "log_variance_2"),
    [(0.3, -1.0, -0.2, 0.5), (0.0, 0.0, 1.0, 0.0), (2.0, 1.0, 2.0, -1.0), (0.01, -9.0, 0.02, -8.5)],
)
def test_kl_is_the_integral_of_its_definition(mean_1, log_variance_1, mean_2, log_variance_2):
    p = stats.norm(mean_1, np.exp(log_variance_1 / 2))
    q = stats.norm(mean_2, np.exp(log_variance_2 / 2))
    low, high = mean_1 - 12 * p.std(), mean_1 + 12 * p.std()
    expected, _ = integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), low, high)
    result = kl(*(jnp.float32(a) for a in (mean_1, log_variance_1, mean_2, log_variance_2)))
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_kl_of_equal_gaussians_is_zero():
    mean, log_variance = jnp.linspace(-3, 3, 7), jnp.linspace(-12, 2, 7)
    assert np.all(kl(mean, log_variance, mean, log_variance) == 0)


def test_kl_of_nearly_equal_gaussians_keeps_its_digits():
    """d²/4 to leading order in the log-ratio d.

    There e^d - 1 - d in float32 would be noise of 1e-7.
    """
    d = jnp.float32([1e-3, -1e-3, 1e-4, -1e-4])
    exact = 0.5 * np.float64(d) ** 2 * (0.5 + np.float64(d) / 6)
    np.testing.assert_allclose(kl(0.0, d, 0.0, jnp.zeros(4)), exact, rtol=2e-3)


def test_approximate_cdf_is_within_its_stated_error():
    x = np.linspace(-8, 8, 100_001)
    error = np.abs(
        np.asarray(likelihood.approx_standard_normal_cdf(x.astype(np.float32))) - stats.norm.cdf(x)
    )
    assert 1e-4 < error.max() < 3e-4


@pytest.mark.parametrize("scale", [0.003, 0.05, 0.5, 3.0])
@pytest.mark.parametrize("mean", [-1.3, -0.4, 0.0, 0.999, 2.0])
def test_probabilities_of_all_levels_sum_to_one(mean, scale):
    log_p = log_likelihood(
        LEVELS, jnp.full(256, mean, jnp.float32), jnp.full(256, np.log(scale), jnp.float32)
    )
    # 256 bins floored at 1e-12 and 256 roundings of at most 1
    assert np.sum(np.exp(np.asarray(log_p, np.float64))) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("scale", [0.02, 0.3])
def test_probability_of_a_level_is_the_normals_mass_in_its_bin(scale):
    mean = 0.2
    log_p = log_likelihood(
        LEVELS, jnp.full(256, mean, jnp.float32), jnp.full(256, np.log(scale), jnp.float32)
    )
    edges = np.concatenate([[-np.inf], (LEVELS[:-1] + LEVELS[1:]) / 2, [np.inf]])
    mass = np.diff(stats.norm(mean, scale).cdf(edges))
    # the approximate CDF at two edges
    np.testing.assert_allclose(np.exp(log_p), mass, rtol=0, atol=2 * 3e-4)


def test_bins_above_the_mean_are_as_exact_as_those_below():
    """Mirrored data and mean give the same probability.

    Down to bins below 1e-9 next to a float32 1.
    """
    x = LEVELS[40:150]
    mean, log_scale = jnp.full(x.shape, -0.3), jnp.full(x.shape, -2.5)
    above = log_likelihood(x, mean, log_scale)
    below = log_likelihood(-x, -mean, log_scale)
    np.testing.assert_array_equal(above, below)
    assert np.min(above) > np.log(likelihood.MIN_PROBABILITY)
    assert np.min(above) < np.log(1e-9)


def test_impossible_data_costs_a_finite_number_of_bits():
    x = jnp.float32([-1.0, 0.0, 1.0])
    log_p = log_likelihood(x, jnp.full(3, 90.0), jnp.full(3, -6.0))
    np.testing.assert_allclose(log_p, [np.log(1e-12), np.log(1e-12), 0.0], rtol=1e-6)


def test_prior_term_is_the_divergence_of_the_last_step():
    """Also where the chain destroys the signal completely: 0 bits, never negative."""
    x_0 = jnp.linspace(-1, 1, 24).reshape(2, 2, 2, 3)
    for name in ("linear", "cosine", "jsd"):
        betas = schedules.make_betas(name, 25)
        alpha_bar = np.prod(1 - betas)
        divergence = 0.5 * (-np.log1p(-alpha_bar) - alpha_bar + alpha_bar * np.float64(x_0) ** 2)
        result = likelihood.prior_term(schedules.make_schedule(betas), x_0)
        np.testing.assert_allclose(result, divergence.mean(axis=(1, 2, 3)) / np.log(2), rtol=1e-5)
        assert np.all(result >= 0)


@pytest.mark.parametrize(
    ("name", "num_timesteps"), [("linear", 100), ("linear", 1000), ("scaled_linear", 1000)]
)
def test_prior_term_of_unit_data_is_the_prior_term_of_data_of_mean_square_one(name, num_timesteps):
    schedule = schedules.make_schedule(schedules.make_betas(name, num_timesteps))
    x_0 = np.array([-1, 1, 1, -1], np.float32).reshape(1, 2, 2, 1)
    expected = float(likelihood.prior_term(schedule, x_0)[0])
    assert likelihood.prior_term_of_unit_data(schedule) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", schedules.BETA_SCHEDULES)
def test_published_schedules_end_in_noise(name):
    assert (
        likelihood.prior_warning(schedules.make_schedule(schedules.make_betas(name, 1000))) is None
    )


def test_a_chain_that_ends_too_early_is_said_with_its_numbers_until_its_betas_are_scaled():
    """ᾱ_T = 0.364 at 100 steps, -½ log2(1 - 0.364) = 0.327."""
    short = schedules.make_schedule(schedules.make_betas("linear", 100))
    message = likelihood.prior_warning(short)
    for words in ("100 steps", "alphas_bar_T = 0.36", "L_T is 0.33 bits/dim", "set scale_betas"):
        assert words in message
    scaled = schedules.make_schedule(schedules.make_betas("linear", 100, scale_betas=True))
    assert likelihood.prior_warning(scaled) is None


def test_bound_term_is_the_decoder_at_the_first_step_and_the_divergence_after():
    schedule = schedules.make_schedule(schedules.make_betas("linear", 10))
    x_0 = jnp.asarray(LEVELS[:24].reshape(2, 2, 2, 3))
    x_t = x_0 + 0.1
    prediction = parameterization.Prediction(
        x_0, x_0, mean=x_0 + 0.02, log_variance=jnp.full_like(x_0, -7.0)
    )
    first, later = likelihood.bound_term(schedule, prediction, x_0, x_t, jnp.array([0, 4]))
    log_p = log_likelihood(x_0, prediction.mean, jnp.full_like(x_0, -3.5))
    np.testing.assert_allclose(first, -np.mean(log_p[0]) / np.log(2), rtol=1e-5)
    q = gaussian.q_posterior(schedule, x_0[1:], x_t[1:], jnp.array([4]))
    divergence = kl(q.mean, q.log_variance, prediction.mean[1:], -7.0)
    np.testing.assert_allclose(later, np.mean(divergence) / np.log(2), rtol=1e-5)


MEAN, STD = 0.1, 0.3  # of the data x_0 ~ N(MEAN, STD²), whose best denoiser is linear
NOISE, WEIGHT = np.polynomial.hermite_e.hermegauss(12)


def bits_of_gaussian_data():
    """-log2 of the exact probability of each level, [256]; the outer bins reach to infinity."""
    edges = np.concatenate([[-np.inf], (LEVELS[:-1] + LEVELS[1:]) / 2, [np.inf]])
    normal = stats.norm(MEAN, STD)
    mass = np.where(edges[1:] < MEAN, np.diff(normal.cdf(edges)), -np.diff(normal.sf(edges)))
    return -np.log2(mass)


def bound_on_gaussian_data(num_timesteps, variance):
    """Return the whole bound for each level, [256], with the exact E[x_0|x_t].

    Over x_t by Gauss-Hermite quadrature.
    """
    schedule = schedules.make_schedule(schedules.make_betas("cosine", num_timesteps))
    alphas_bar = schedule.alphas_bar.astype(np.float64)
    gain = np.sqrt(alphas_bar) * STD**2 / (alphas_bar * STD**2 + 1 - alphas_bar)
    remaining = STD**2 * (1 - alphas_bar) / (alphas_bar * STD**2 + 1 - alphas_bar)
    # of p(x_{t-1}|x_t): the posterior's variance and what x_0 still adds to it
    exact = np.log(schedule.posterior_variance + schedule.posterior_mean_coef1**2 * remaining)

    def network(x_t, time):
        gain_t, mean_t, exact_t = (
            jnp.float32(table)[time.astype(int)].reshape(-1, 1, 1, 1)
            for table in (gain, np.sqrt(alphas_bar) * MEAN, exact)
        )
        x_0 = MEAN + gain_t * (x_t - mean_t)
        return (
            jnp.concatenate([x_0, jnp.broadcast_to(exact_t, x_0.shape)], -1)
            if variance == "learned"
            else x_0
        )

    denoiser = make_process(
        Chain(schedules.make_betas("cosine", num_timesteps)), "x_0", variance
    ).denoiser(network, schedule, clip="none")

    @jax.jit
    def all_terms():
        t, eps, x_0 = (
            jnp.ravel(a)
            for a in jnp.meshgrid(
                jnp.arange(num_timesteps), jnp.float32(NOISE), LEVELS, indexing="ij"
            )
        )
        eps, x_0 = eps.reshape(-1, 1, 1, 1), x_0.reshape(-1, 1, 1, 1)
        x_t = gaussian.q_sample(schedule, x_0, t, eps)
        terms = likelihood.bound_term(schedule, denoiser(x_t, t), x_0, x_t, t)
        return terms.reshape(num_timesteps, NOISE.size, 256), likelihood.prior_term(
            schedule, x_0[:256]
        )

    terms, prior = (np.asarray(a, np.float64) for a in all_terms())
    return np.einsum("tnl,n->l", terms, WEIGHT / WEIGHT.sum()) + prior


def gap_to_entropy(num_timesteps, variance):
    """Return the bits above the entropy of the data, on average over its levels.

    No code, and so no bound, is below 0.
    """
    bits = bits_of_gaussian_data()
    return np.exp2(-bits) @ (bound_on_gaussian_data(num_timesteps, variance) - bits)


@pytest.mark.parametrize("num_timesteps", [8, 32, 128])
def test_bound_with_the_exact_reverse_process_is_the_entropy(num_timesteps):
    """It is, at any T, for a continuous Gaussian.

    Levels 1/128 apart and the approximate CDF cost 0.003 of 5 bits.
    """
    assert 0 < gap_to_entropy(num_timesteps, "learned") < 0.003


@pytest.mark.parametrize("num_timesteps", [8, 128])
def test_bound_with_a_fixed_variance_is_above_the_entropy(num_timesteps):
    """β̃ and β are the exact variances of data without and with unit variance.

    For this data neither is.
    """
    assert gap_to_entropy(num_timesteps, "fixed_small") > 0.1
    assert gap_to_entropy(num_timesteps, "fixed_large") > 0.1
