"""The encoder's posterior q(z|x), a Gaussian of diagonal covariance, beside the prior N(0, I)
(Kingma, Welling 2014).

Natural logarithms, elements not summed: what belongs to one latent variable, one channel or one
image is the caller's.
"""

import math
from typing import NamedTuple

import chex
import jax.numpy as jnp

from ddpm_jax.diffusion.likelihood import normal_kl

# where it is clipped, as latent diffusion's code does: no overflow, no infinite KL
LOG_VARIANCE = (-30.0, 20.0)


class DiagonalGaussian(NamedTuple):
    """N(mean, diag(exp(log_variance))); a pytree."""

    mean: chex.Array  # [..., C]
    log_variance: chex.Array  # [..., C]


def from_moments(moments: chex.Array) -> DiagonalGaussian:
    """Read an encoder's output [..., 2 C]: means in the first C channels, log variances, clipped,
    in the others."""
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return DiagonalGaussian(mean, jnp.clip(log_variance, *LOG_VARIANCE))


def reparameterize(posterior: DiagonalGaussian, eps: chex.Array) -> chex.Array:
    """z = mean + σ ε: a draw from the posterior for ε ~ N(0, I) of its shape, differentiable in its
    moments (eq. 4)."""
    return posterior.mean + jnp.exp(0.5 * posterior.log_variance) * eps


def kl_to_prior(posterior: DiagonalGaussian) -> chex.Array:
    """KL(q(z|x) || N(0, I)) in nats per element, [..., C] (appendix B)."""
    zeros = jnp.zeros_like(posterior.mean)
    return normal_kl(posterior.mean, posterior.log_variance, zeros, zeros)


def log_density(posterior: DiagonalGaussian, z: chex.Array) -> chex.Array:
    """log q(z|x) in nats per element, the shape of z; the posterior's fields broadcast against
    it."""
    scaled = (z - posterior.mean) * jnp.exp(-0.5 * posterior.log_variance)
    return -0.5 * (jnp.square(scaled) + posterior.log_variance + math.log(2 * math.pi))


def prior_log_density(z: chex.Array) -> chex.Array:
    """log N(z; 0, 1) in nats per element, the shape of z."""
    return -0.5 * (jnp.square(z) + math.log(2 * math.pi))
