"""What decoders say of images, against SciPy's distributions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ddpm_jax.variational.observation import FAMILIES

LEVELS = (np.arange(256) / 127.5 - 1).astype(np.float32)
logistic = jax.jit(FAMILIES["discretized_logistic"].log_likelihood)


@pytest.mark.parametrize("scale", [0.003, 0.05, 0.5, 30.0])
@pytest.mark.parametrize("mean", [-1.3, 0.0, 0.999])
def test_logistic_probabilities_of_all_levels_sum_to_one(mean, scale):
    log_p = logistic(LEVELS, jnp.float32(mean), jnp.log(jnp.float32(scale)))
    assert np.sum(np.exp(np.asarray(log_p, np.float64))) == pytest.approx(1, abs=2e-6)


@pytest.mark.parametrize("scale", [0.002, 0.02, 0.3])
def test_logistic_probability_is_the_mass_of_the_bin_however_small(scale):
    distribution = stats.logistic(0.2, scale)
    edges = np.concatenate([[-np.inf], (np.arange(255) + 0.5) / 127.5 - 1, [np.inf]])
    lower, upper = edges[:-1], edges[1:]
    mass = np.where(
        upper < 0.2,
        distribution.cdf(upper) - distribution.cdf(lower),
        distribution.sf(lower) - distribution.sf(upper),
    )
    found = logistic(LEVELS, jnp.float32(0.2), jnp.log(jnp.float32(scale)))
    assert scale > 0.002 or mass.min() < 1e-170
    # float32 knows a level to 6e-8, which is 3e-5 of the smallest scale
    np.testing.assert_allclose(found, np.log(mass), rtol=1e-6, atol=1e-4)


def test_logistic_gradient_is_finite_where_the_probability_underflows():
    x, mean, log_scale = jnp.float32([-0.5, 0.9, -7])
    to_mean, to_log_scale = jax.grad(logistic, argnums=(1, 2))(x, mean, log_scale)
    assert to_mean == pytest.approx(-np.exp(7), rel=1e-3)
    assert np.isfinite(to_log_scale)


def test_gaussian_is_the_normal_density():
    x, mean, log_scale = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    found = FAMILIES["gaussian"].log_likelihood(x, mean, log_scale)
    np.testing.assert_allclose(
        found, stats.norm(mean, np.exp(log_scale)).logpdf(x), rtol=1e-5, atol=1e-5
    )


def test_bernoulli_is_the_expectation_over_random_black_and_white():
    white, logit = np.float64([0.0, 0.25, 0.9, 1.0]), np.float32([-3.0, 2.0, 0.5, 40.0])
    p = 1 / (1 + np.exp(-logit.astype(np.float64)))
    found = FAMILIES["bernoulli"].log_likelihood(
        (2 * white - 1).astype(np.float32), logit, jnp.float32(0)
    )
    expected = white * stats.bernoulli(p).logpmf(1) + (1 - white) * np.where(
        white < 1, -np.logaddexp(0, logit), 0
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-12)


def test_the_image_shown_is_the_mean_of_the_distribution():
    logits = np.float32([-2.0, 0.0, 3.0])
    np.testing.assert_allclose(FAMILIES["bernoulli"].mean(logits), np.tanh(logits / 2), rtol=1e-6)
    for name in ("gaussian", "discretized_logistic"):
        np.testing.assert_array_equal(FAMILIES[name].mean(logits), logits)
