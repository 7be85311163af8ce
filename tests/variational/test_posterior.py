"""The diagonal Gaussian posterior against quadrature and SciPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from ddpm_jax.variational import posterior
from ddpm_jax.variational.posterior import DiagonalGaussian


@pytest.mark.parametrize(
    ("mean", "log_variance"), [(0.0, 0.0), (1.5, -2.0), (-0.3, 1.0), (0.0, -9.0)]
)
def test_kl_to_the_prior_is_the_integral_of_its_definition(mean, log_variance):
    q, p = stats.norm(mean, np.exp(log_variance / 2)), stats.norm(0, 1)
    ends = mean - 12 * q.std(), mean + 12 * q.std()
    expected, _ = integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), *ends)
    found = posterior.kl_to_prior(
        DiagonalGaussian(jnp.float32([mean]), jnp.float32([log_variance]))
    )
    np.testing.assert_allclose(found, [expected], rtol=1e-5, atol=1e-7)


def test_densities_are_those_of_scipy():
    mean, log_variance, z = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    expected = stats.norm(mean, np.exp(log_variance / 2)).logpdf(z)
    found = posterior.log_density(DiagonalGaussian(mean, log_variance), z)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(posterior.prior_log_density(z), stats.norm.logpdf(z), rtol=1e-5)


def test_a_draw_has_the_posteriors_moments():
    eps = np.random.default_rng(0).normal(size=(100_000, 2)).astype(np.float32)
    q = DiagonalGaussian(
        jnp.full(eps.shape, 2.0), jnp.broadcast_to(jnp.log(jnp.float32([[0.25, 4.0]])), eps.shape)
    )
    z = np.asarray(posterior.reparameterize(q, eps), np.float64)
    np.testing.assert_allclose(z.mean(0), 2, atol=0.03)  # 4.5 standard errors of the wider
    np.testing.assert_allclose(z.var(0), [0.25, 4], rtol=0.02)


def test_moments_are_the_two_halves_of_the_channels_the_log_variance_clipped():
    q = posterior.from_moments(jnp.float32([[1, 2, -40, 30], [3, 4, 0, 1]]))
    np.testing.assert_array_equal(q.mean, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(q.log_variance, [[-30, 20], [0, 1]])
