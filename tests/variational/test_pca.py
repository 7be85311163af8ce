"""Probabilistic principal components, and the bounds of the VAE that is one, in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.decomposition import PCA

from ddpm_jax.errors import UsageError
from ddpm_jax.variational import evidence, pca
from ddpm_jax.variational.posterior import (
    DiagonalGaussian,
    kl_to_prior,
    log_density,
    prior_log_density,
    reparameterize,
)

D, L = 6, 2
DATA = (
    np.random.default_rng(0).normal(size=(200, D)) @ np.random.default_rng(1).normal(size=(D, D))
    + 3
)


@pytest.fixture(scope="module")
def model():
    return jax.tree.map(np.float32, pca.fit(DATA, L))


@pytest.fixture(scope="module")
def x():
    return DATA[:50].astype(np.float32)


def test_fit_is_that_of_scikit_learn():
    theirs, ours = PCA(L).fit(DATA), pca.fit(DATA, L)
    factor = (len(DATA) - 1) / len(DATA)  # theirs divides by N - 1
    covariance = ours.weights @ ours.weights.T + ours.variance * np.eye(D)
    np.testing.assert_allclose(covariance, factor * theirs.get_covariance(), rtol=1e-10)
    np.testing.assert_allclose(ours.mean, theirs.mean_)


def test_log_prob_is_the_normal_density(model, x):
    covariance = np.float64(model.weights) @ model.weights.T + model.variance * np.eye(D)
    expected = stats.multivariate_normal(model.mean, covariance).logpdf(x)
    np.testing.assert_allclose(pca.log_prob(model, x), expected, rtol=1e-4)


def test_posterior_is_bayes_rule(model, x):
    """log p(x|z) + log p(z) - log p(z|x) is log p(x), whatever z."""
    z = jax.random.normal(jax.random.key(0), (len(x), L))
    joint = pca.log_likelihood(model, x, z) + jnp.sum(prior_log_density(z), axis=-1)
    found = joint - jnp.sum(log_density(pca.posterior(model, x), z), axis=-1)
    np.testing.assert_allclose(found, pca.log_prob(model, x), rtol=1e-4)


@pytest.mark.parametrize(("components", "words"), [(0, "1 to 5"), (6, "1 to 5")])
def test_a_number_of_components_out_of_range_is_refused(components, words):
    with pytest.raises(UsageError, match=words):
        pca.fit(DATA, components)


def test_data_of_fewer_dimensions_is_refused():
    with pytest.raises(UsageError, match="no more than 2 dimensions"):
        pca.fit(DATA[:, :2] @ np.ones((2, 4)), 2)


def _log_weights(model, q, x, num_draws, key):
    eps = jax.random.normal(key, (num_draws, *q.mean.shape))

    def one(eps):
        z = reparameterize(q, eps)
        return pca.log_likelihood(model, x, z) + jnp.sum(
            prior_log_density(z) - log_density(q, z), axis=-1
        )

    return jax.lax.map(one, eps)


def _elbo(model, q, x):
    """Return the bound without noise: E_q log p(x|z) at the mean, less the variance's part."""
    spread = (
        jnp.sum(jnp.exp(q.log_variance) * jnp.sum(model.weights**2, axis=0)[None], axis=-1)
        / model.variance
    )
    return pca.log_likelihood(model, x, q.mean) - 0.5 * spread - jnp.sum(kl_to_prior(q), axis=-1)


def _wrong(q):
    return DiagonalGaussian(q.mean + 0.3, q.log_variance + 0.5)


def test_with_the_exact_posterior_the_bound_is_the_likelihood(model, x):
    q = pca.posterior(model, x)
    np.testing.assert_allclose(_elbo(model, q, x), pca.log_prob(model, x), rtol=1e-4)
    # and without any noise: every weight is p(x)
    draws = _log_weights(model, q, x, 5, jax.random.key(0))
    np.testing.assert_allclose(
        draws, np.broadcast_to(pca.log_prob(model, x), draws.shape), rtol=1e-4
    )


def test_otherwise_the_gap_is_the_divergence_to_it(model, x):
    exact = pca.posterior(model, x)
    q = _wrong(exact)
    variances = jnp.exp(q.log_variance), jnp.exp(exact.log_variance)
    divergence = 0.5 * jnp.sum(
        variances[0] / variances[1]
        + 0.3**2 / variances[1]
        - 1
        - jnp.log(variances[0] / variances[1]),
        axis=-1,
    )
    gap = pca.log_prob(model, x) - _elbo(model, q, x)
    np.testing.assert_allclose(gap, divergence, rtol=1e-3)
    draws = np.asarray(_log_weights(model, q, x, 20_000, jax.random.key(1)), np.float64)
    errors = draws.std(0) / np.sqrt(len(draws))
    assert np.all(np.abs(draws.mean(0) - _elbo(model, q, x)) < 4.5 * errors)


@pytest.mark.full
def test_the_importance_weighted_bound_rises_to_the_likelihood(model, x):
    q = _wrong(pca.posterior(model, x))
    draws = _log_weights(model, q, x, 64 * 500, jax.random.key(2))
    bounds = [
        float(jnp.mean(jax.vmap(evidence.importance_weighted)(draws.reshape(-1, k, len(x)))))
        for k in (1, 4, 16, 64)
    ]
    true = float(jnp.mean(pca.log_prob(model, x)))
    assert bounds == sorted(bounds)
    gaps = true - np.array(bounds)
    assert np.all(gaps > 0)
    assert gaps[-1] < 0.05 * gaps[0]


@pytest.mark.full
def test_the_gradient_through_the_sample_is_the_score_functions(model, x):
    """d/dθ E_q f(z) by reparameterisation and by f(z) ∇ log q(z), both averaged over many draws."""
    mean, log_variance = jnp.float32([0.2, -0.4]), jnp.float32([-0.5, 0.3])
    eps = jax.random.normal(jax.random.key(3), (400_000, L))

    def f(z):
        return -pca.log_likelihood(model, jnp.broadcast_to(x[:1], (len(z), D)), z)

    q = DiagonalGaussian(mean, log_variance)

    def through(fields, eps):
        return f(reparameterize(DiagonalGaussian(*fields), eps)[None])[0]

    def score(fields, eps):
        z = jax.lax.stop_gradient(reparameterize(q, eps))
        return f(z[None])[0] * jnp.sum(log_density(DiagonalGaussian(*fields), z))

    fields = (mean, log_variance)
    per_draw = [jax.vmap(jax.grad(g), (None, 0))(fields, eps) for g in (through, score)]
    a, b = (np.concatenate(gradients, axis=-1, dtype=np.float64) for gradients in per_draw)
    errors = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
    assert np.all(np.abs(a.mean(0) - b.mean(0)) < 4 * errors)
    assert np.all(errors < 0.1 * np.abs(a.mean(0)))  # the test has power
