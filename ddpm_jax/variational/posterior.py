"""The encoder's posterior q(z|x), a diagonal Gaussian, and the prior N(0, I).

Kingma and Welling (2014). Values are in nats per element: the caller sums over channels, positions
or images.
"""

import math
from typing import NamedTuple

import chex
import jax.numpy as jnp

from ddpm_jax.diffusion.likelihood import normal_kl

# clipped as in the code of latent diffusion: no overflow, no infinite KL
LOG_VARIANCE = (-30.0, 20.0)


class DiagonalGaussian(NamedTuple):
    """N(mean, diag(exp(log_variance))); a pytree."""

    mean: chex.Array  # [..., C]
    log_variance: chex.Array  # [..., C]


def from_moments(moments: chex.Array) -> DiagonalGaussian:
    """Read an encoder's output [..., 2 C]: C means, then C log variances, which are clipped."""
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return DiagonalGaussian(mean, jnp.clip(log_variance, *LOG_VARIANCE))


def reparameterize(posterior: DiagonalGaussian, eps: chex.Array) -> chex.Array:
    """z = mean + σ ε (eq. 4), a sample of the posterior if ε ~ N(0, I), of its shape."""
    return posterior.mean + jnp.exp(0.5 * posterior.log_variance) * eps


def kl_to_prior(posterior: DiagonalGaussian) -> chex.Array:
    """KL(q(z|x) || N(0, I)) in nats per element, [..., C] (appendix B)."""
    zeros = jnp.zeros_like(posterior.mean)
    return normal_kl(posterior.mean, posterior.log_variance, zeros, zeros)


def log_density(posterior: DiagonalGaussian, z: chex.Array) -> chex.Array:
    """log q(z|x) in nats per element, the shape of z; the fields broadcast against z."""
    scaled = (z - posterior.mean) * jnp.exp(-0.5 * posterior.log_variance)
    return -0.5 * (jnp.square(scaled) + posterior.log_variance + math.log(2 * math.pi))


def prior_log_density(z: chex.Array) -> chex.Array:
    """log N(z; 0, 1) in nats per element, the shape of z."""
    return -0.5 * (jnp.square(z) + math.log(2 * math.pi))
