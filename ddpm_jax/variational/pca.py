"""Probabilistic principal components (Tipping and Bishop 1999): every quantity in closed form.

    p(z) = N(0, I),  p(x|z) = N(W z + μ, σ² I)
    p(x)   = N(μ, W Wᵀ + σ² I)
    p(z|x) = N(M⁻¹ Wᵀ (x - μ), σ² M⁻¹),                   M = Wᵀ W + σ² I

A linear Gaussian variational autoencoder is this model, which is therefore the oracle for its
bounds. The columns of W are orthogonal here, as those of the maximum likelihood are: M is diagonal,
and an encoder with a diagonal covariance can represent the posterior. Functions compute in the
dtype of their arguments.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.variational.observation import gaussian_log_density
from ddpm_jax.variational.posterior import DiagonalGaussian


class PrincipalComponents(NamedTuple):
    """The parameters of the model; a pytree."""

    weights: chex.Array  # [D, L], W, its columns orthogonal
    mean: chex.Array  # [D], μ
    variance: chex.Array  # scalar, σ²


def fit(x: np.ndarray, num_components: int) -> PrincipalComponents:
    """Return the maximum likelihood model of data (eqs. 14, 15, in closed form; R = I), in float64.

    Args:
      x: [N, D].
      num_components: L, the dimension of z, in 1..D-1.

    Raises:
      UsageError: num_components is out of its range, or the data spans so few dimensions that σ²
        would be 0.
    """
    x = np.asarray(x, np.float64)
    most = x.shape[1] - 1
    if not 1 <= num_components <= most:
        raise UsageError(
            f"num_components is {num_components}: for {most + 1} dimensions it is 1 to {most}."
        )
    mean = x.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    # eigenvalues in descending order; σ² is the mean of those left out (eq. 15)
    values, vectors = values[::-1], vectors[:, ::-1]
    variance = values[num_components:].mean()
    if not variance > np.finfo(np.float64).eps * values[0]:
        raise UsageError(
            f"The data has no more than {num_components} dimensions: use fewer components."
        )
    weights = vectors[:, :num_components] * np.sqrt(values[:num_components] - variance)
    return PrincipalComponents(weights, mean, np.float64(variance))


def log_prob(model: PrincipalComponents, x: chex.Array) -> chex.Array:
    """log p(x) in nats: x [B, D] -> [B]."""
    covariance = model.weights @ model.weights.T + model.variance * jnp.eye(
        len(model.mean), dtype=x.dtype
    )
    return jax.vmap(
        lambda x: jax.scipy.stats.multivariate_normal.logpdf(x, model.mean, covariance)
    )(x)


def posterior(model: PrincipalComponents, x: chex.Array) -> DiagonalGaussian:
    """p(z|x), exact: x [B, D] -> fields [B, L]."""
    precision = jnp.sum(jnp.square(model.weights), axis=0) + model.variance
    mean = (x - model.mean[None]) @ model.weights / precision[None]
    return DiagonalGaussian(
        mean, jnp.broadcast_to(jnp.log(model.variance / precision)[None], mean.shape)
    )


def log_likelihood(model: PrincipalComponents, x: chex.Array, z: chex.Array) -> chex.Array:
    """log p(x|z) in nats: x [B, D], z [B, L] -> [B]."""
    located = z @ model.weights.T + model.mean[None]
    return jnp.sum(gaussian_log_density(x, located, 0.5 * jnp.log(model.variance)), axis=-1)
