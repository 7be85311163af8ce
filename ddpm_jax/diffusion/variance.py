"""The variance of the reverse step: fixed, or predicted by the second half of the channels.

x_t is [B, H, W, C]; t int [B], 0-based.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.gaussian import extract
from ddpm_jax.diffusion.parameterization import own_step
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import choose

TINY = float(np.finfo(np.float32).tiny)  # keeps a logarithm finite


class Variance(NamedTuple):
    """A choice of log Σ in p(x_{t-1}|x_t) = N(μ, Σ)."""

    name: str
    learned: bool
    # (schedule, x_t, t, second half of the network's channels or None) -> log-variance that
    # broadcasts against x_t
    log_variance: Callable[[Schedule, chex.Array, chex.Array, chex.Array | None], chex.Array]

    def output_channels(self, image_channels: int) -> int:
        """Return the output channels: twice those of the image where the variance is learned."""
        return 2 * image_channels if self.learned else image_channels


def _fixed_small(schedule: Schedule, x_t: chex.Array, t: chex.Array, _: None) -> chex.Array:
    """log β̃_t: exact for data that is one point (Ho et al. 2020, section 3.2)."""
    return extract(schedule.posterior_log_variance_clipped, t, x_t)


def _fixed_large(schedule: Schedule, x_t: chex.Array, t: chex.Array, _: None) -> chex.Array:
    """log β_t: exact for data of unit variance (Ho et al. 2020, section 3.2)."""
    return extract(schedule.fixed_large_log_variance, t, x_t)


def _posterior(schedule: Schedule, x_t: chex.Array, t: chex.Array, _: None) -> chex.Array:
    """log β̃_t, and of the decoder log β_0: the noise of its own level.

    The other choices give the decoder β̃_1, which is as small as the step is short, and so too
    small where T is large and the levels of t = 0 and 1 are nearly one.
    """
    small, log_betas = _fixed_small(schedule, x_t, t, _), extract(schedule.log_betas, t, x_t)
    return jnp.where(t.reshape(small.shape) == 0, log_betas, small)


def _learned(schedule: Schedule, x_t: chex.Array, t: chex.Array, output: chex.Array) -> chex.Array:
    """Turn the log Σ of the trained step, which the network predicts, into that of the walked step.

    Given x_0 both steps are Gaussian, with mean c_1 x_0 + c_2 x_t and variance β̃ (Ho et al. 2020,
    eq. 7). With x_0 unknown, and the trained step's numbers on the left, the walked one's on the
    right,

        Σ = β̃ + c_1² Var(x_0|x_t),    Σ' = β̃' + c_1'² Var(x_0|x_t)

    which is exact: Σ' is the variance of the walked step whatever q(x_0|x_t) is, by the law of
    total variance.

    At most t, Var(x_0|x_t) is a small difference of large numbers, and an error of 1 % in Σ can
    give it any value. It is therefore clipped to 0..1, its range for data in [-1, 1]; latents are
    scaled to variance 1. Where the walked step is the trained one, the network's prediction is left
    as it is.
    """
    own = extract(own_step(schedule), t, x_t)
    log_trained = extract(jnp.log(jnp.maximum(schedule.trained_posterior_variance, TINY)), t, x_t)
    # Both branches of the `where` below stay finite: its gradient would be 0 times infinity.
    log_variance = jnp.where(own, log_trained, output)
    # Σ - β̃ without cancelling.
    excess = -jnp.exp(log_variance) * jnp.expm1(jnp.minimum(log_trained - log_variance, 0))
    x_0_coef = jnp.maximum(extract(schedule.trained_mean_coef1, t, x_t), TINY)
    x_0_variance = jnp.minimum(excess / x_0_coef / x_0_coef, 1)
    x_0_coef = extract(schedule.posterior_mean_coef1, t, x_t)
    walked = extract(schedule.posterior_variance, t, x_t) + jnp.square(x_0_coef) * x_0_variance
    return jnp.where(own, output, jnp.log(jnp.maximum(walked, TINY)))


def _learned_range(schedule: Schedule, x_t: chex.Array, t: chex.Array, v: chex.Array) -> chex.Array:
    """log Σ = u log β_t + (1-u) log β̃_t, u = (v+1)/2 (Nichol & Dhariwal 2021, eq. 15).

    v in [-1, 1] spans the range.

    In a respaced chain the range is that of the respaced chain, as the paper defines it (section 4)
    and evaluates its models. Unlike `_learned` this is an approximation; docs/samplers.md has its
    error.
    """
    u = (v + 1) / 2
    return u * extract(schedule.log_betas, t, x_t) + (1 - u) * extract(
        schedule.posterior_log_variance_clipped, t, x_t
    )


VARIANCES = {
    choice.name: choice
    for choice in (
        Variance("fixed_small", False, _fixed_small),
        Variance("fixed_large", False, _fixed_large),
        Variance("posterior", False, _posterior),
        Variance("learned", True, _learned),
        Variance("learned_range", True, _learned_range),
    )
}


def output_channels(image_channels: int, variance: str) -> int:
    """Return the output channels of a network for a variance by name: `Variance.output_channels`.

    Raises:
      UsageError: an unknown variance.
    """
    return choose("variance", variance, VARIANCES).output_channels(image_channels)
