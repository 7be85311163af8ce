"""Families of the decoder's distribution p(x|z), whose parameters the network predicts.

Images are on the 256 levels of [-1, 1], 2/255 apart. A `Family` is a log-likelihood per element and
the mean image. Where its scale comes from (fixed, learned, from the network) is not decided here.

`gaussian` is a density on [-1, 1], in nats: for a number of bits, data must be dequantised first.
`discretized_logistic` (Salimans et al. 2017, eq. 2) and `bernoulli` are probabilities.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.likelihood import EDGE, HALF_BIN


class Family(NamedTuple):
    """A distribution of images given z; both functions work element by element."""

    meaning: str
    # (x, location, log scale) -> nats
    log_likelihood: Callable[[chex.Array, chex.Array, chex.Array], chex.Array]
    mean: Callable[[chex.Array], chex.Array]  # location -> the image that is shown, on [-1, 1]
    discrete: bool  # a probability over the 256 levels: its negative logarithm is a code length
    scaled: bool  # whether the log scale is used


def gaussian_log_density(x: chex.Array, mean: chex.Array, log_scale: chex.Array) -> chex.Array:
    """log N(x; mean, exp(log_scale)²) in nats per element; the arguments broadcast."""
    return (
        -0.5 * jnp.square((x - mean) * jnp.exp(-log_scale))
        - log_scale
        - 0.5 * math.log(2 * math.pi)
    )


def discretized_logistic_log_likelihood(
    x: chex.Array, mean: chex.Array, log_scale: chex.Array
) -> chex.Array:
    """log(σ(b) - σ(a)), in nats per element, where [a, b] is the bin of x.

    Args:
      x: data on the 256 levels of [-1, 1].
      mean: of the logistic distribution.
      log_scale: log of its scale s; its standard deviation is s π/√3.

    Returns:
      The log-probability of 8-bit data under a logistic distribution: a and b are the ends of the
      bin of x, relative to the mean and in units of s; the outer bins extend to ±∞.

    With σ(b) - σ(a) = σ(b) σ(-a) (1 - e^{a-b}) no nearly equal numbers are subtracted, and b - a is
    known exactly: no probability is too small (Salimans et al. 2017, eq. 2, need a floor and an
    approximation).
    """
    inverse_scale = jnp.exp(-log_scale)
    upper, lower = ((x - mean + side) * inverse_scale for side in (HALF_BIN, -HALF_BIN))
    below, above = jax.nn.log_sigmoid(upper), jax.nn.log_sigmoid(-lower)
    inside = below + above + jnp.log(-jnp.expm1(-2 * HALF_BIN * inverse_scale))
    return jnp.where(x < -EDGE, below, jnp.where(x > EDGE, above, inside))


def bernoulli_log_likelihood(x: chex.Array, logit: chex.Array, log_scale: chex.Array) -> chex.Array:
    """Expected log-probability, in nats per element, of a randomly binarised pixel.

    Args:
      x: on [-1, 1]; a pixel is white with probability (x + 1) / 2.
      logit: of the probability of white.
      log_scale: ignored.

    Returns:
      The expectation of log Bernoulli over the pixel's colour: the negative cross-entropy. For x =
      ±1 it is the log-probability.
    """
    del log_scale
    white = 0.5 * (x + 1)
    return white * jax.nn.log_sigmoid(logit) + (1 - white) * jax.nn.log_sigmoid(-logit)


FAMILIES = {
    "gaussian": Family(
        "a density", gaussian_log_density, lambda mean: mean, discrete=False, scaled=True
    ),
    "discretized_logistic": Family(
        "a probability of each of the 256 levels",
        discretized_logistic_log_likelihood,
        lambda mean: mean,
        discrete=True,
        scaled=True,
    ),
    "bernoulli": Family(
        "black or white at random, as often white as the pixel is bright",
        bernoulli_log_likelihood,
        lambda logit: 2 * jax.nn.sigmoid(logit) - 1,
        discrete=False,
        scaled=False,
    ),
}
