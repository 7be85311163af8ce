"""The variational bound as a function of the noise levels γ, for which it has a gradient.

    -log p(x) <= prior + decoder + diffusion

(Kingma et al. 2021, Variational Diffusion Models, eq. 11), each term here averaged over dimensions
and in bits. The diffusion term is the expectation over τ of ½ γ'(τ) ‖ε - ε̂‖² (eq. 17), or over T
steps of T/2 (exp(γ_t - γ_s) - 1) ‖ε - ε̂‖² (eq. 14), and depends on the ends of γ alone where T is
infinite. The bound of a chain whose levels are given is in `likelihood`; its first term has a
network's prediction as the mean, and here it has none.
"""

import math

import chex
import jax
import jax.numpy as jnp

from ddpm_jax.diffusion import likelihood
from ddpm_jax.diffusion.schedules import single_levels

LEVELS = 256  # of 8-bit data


def prior_term(last: chex.Array, x_0: chex.Array) -> chex.Array:
    """KL(q(z_1|x) || N(0, I)) in bits/dim, float32 [B].

    Args:
      last: γ_1, scalar.
      x_0: [B, H, W, C].
    """
    return likelihood.prior_term(single_levels(-last[None] / 2, jnp.zeros(1)), x_0)


def decoder_term(first: chex.Array, x_0: chex.Array, eps: chex.Array) -> chex.Array:
    """-log p(x|z_0) in bits/dim, float32 [B], p(x_i|z_0) ∝ q(z_0,i|x_i) over the 256 values.

    With z_0 / α_0 = x + e^(γ_0/2) ε it is ½ ε² + log Σ_v exp(-½ (ε + e^(-γ_0/2) (x - v))²).

    Args:
      first: γ_0, scalar.
      x_0: [B, H, W, C], 8-bit data scaled to [-1, 1].
      eps: standard normal, of the shape of x_0.
    """
    values = jnp.linspace(-1, 1, LEVELS).reshape((1,) * (x_0.ndim - 1) + (LEVELS,))

    # An image at a time, since the values are 256 times an image.
    @jax.checkpoint
    def nats(x, eps):
        away = eps[..., None] + jnp.exp(-0.5 * first) * (x[..., None] - values)
        normalizer = jax.nn.logsumexp(-0.5 * jnp.square(away), axis=-1)
        return jnp.mean(0.5 * jnp.square(eps) + normalizer)

    return jax.lax.map(lambda pair: nats(*pair), (x_0, eps)) / math.log(2)


def continuous_weight(rate: chex.Array) -> chex.Array:
    """½ γ'(τ) / log 2, by which the mean square of ε - ε̂ is bits/dim; of the shape of `rate`."""
    return rate / (2 * math.log(2))


def discrete_weight(gamma_t: chex.Array, gamma_s: chex.Array, steps: int) -> chex.Array:
    """T/2 (exp(γ_t - γ_s) - 1) / log 2, likewise, with s = t - 1/T; of the shape of `gamma_t`."""
    return steps / (2 * math.log(2)) * jnp.expm1(gamma_t - gamma_s)
