"""The Gaussians of the process: q(x_t|x_0), q(x_t|x_{t-1}), q(x_{t-1}|x_t,x_0) and p(x_{t-1}|x_t).

Equations of Ho et al. 2020. x is float32 [B, H, W, C], data in [-1, 1]; t is int [B], 0-based. The
meaning of a network's output is in `parameterization`, the cost of the Gaussians in bits in
`likelihood`.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax.numpy as jnp

from ddpm_jax.diffusion.schedules import Schedule


class Gaussian(NamedTuple):
    """A diagonal Gaussian. Arrays that broadcast against x [B, H, W, C]."""

    mean: chex.Array
    variance: chex.Array
    log_variance: chex.Array


def over(values: chex.Array, x: chex.Array) -> chex.Array:
    """Return values [B] as [B, 1, ..., 1] with the rank of `x` [B, ...], to broadcast with it."""
    return values.reshape(values.shape + (1,) * (x.ndim - 1))


def extract(table: chex.Array, t: chex.Array, x: chex.Array) -> chex.Array:
    """Return table[t] as [B, 1, ..., 1] with the rank of `x`.

    `table` is [T], `t` int [B].
    """
    chex.assert_rank([table, t], 1)
    chex.assert_equal_shape_prefix([t, x], 1)
    return over(jnp.asarray(table)[t], x)


def alpha(schedule: Schedule, t: chex.Array) -> chex.Array:
    """α_t = 1 - β_t, [B], to all digits of the table.

    It is ᾱ_t / ᾱ_{t-1}, since 1 - β_t cancels where β_t is near 1.

    At the end of a long chain ᾱ_t is too small for the table, and ᾱ_t / ᾱ_{t-1} would be 0/0; 1 -
    β_t is taken there.
    """
    alphas_bar, alphas_bar_prev, betas = (
        jnp.asarray(table)[t]
        for table in (schedule.alphas_bar, schedule.alphas_bar_prev, schedule.betas)
    )
    kept = alphas_bar >= jnp.finfo(alphas_bar.dtype).tiny
    return jnp.where(kept, alphas_bar / jnp.where(kept, alphas_bar_prev, 1), 1 - betas)


def q_sample(schedule: Schedule, x_0: chex.Array, t: chex.Array, eps: chex.Array) -> chex.Array:
    """Diffuse x_0 to step t in one jump: x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε (Ho et al. 2020, eq. 4).

    Args:
      schedule: tables.
      x_0: [B, ...], data in [-1, 1].
      t: int [B] in 0..T-1.
      eps: standard normal noise of the shape of x_0.

    Returns:
      x_t, float32, shape of x_0.
    """
    chex.assert_equal_shape([x_0, eps])
    return (
        extract(schedule.sqrt_alphas_bar, t, x_0) * x_0
        + extract(schedule.sqrt_one_minus_alphas_bar, t, x_0) * eps
    )


def q_mean_variance(schedule: Schedule, x_0: chex.Array, t: chex.Array) -> Gaussian:
    """q(x_t|x_0) = N(√ᾱ_t x_0, (1-ᾱ_t) I) (Ho et al. 2020, eq. 4).

    Variances are [B, 1, ..., 1].
    """
    return Gaussian(
        mean=extract(schedule.sqrt_alphas_bar, t, x_0) * x_0,
        # 1 - ᾱ_t would cancel in float32
        variance=jnp.square(extract(schedule.sqrt_one_minus_alphas_bar, t, x_0)),
        log_variance=extract(schedule.log_one_minus_alphas_bar, t, x_0),
    )


def q_step(schedule: Schedule, x_prev: chex.Array, t: chex.Array) -> Gaussian:
    """q(x_t|x_{t-1}) = N(√(1-β_t) x_{t-1}, β_t I) (Ho et al. 2020, eq. 2), with x_{-1} the data."""
    scale = over(jnp.sqrt(alpha(schedule, t)), x_prev)
    return Gaussian(
        scale * x_prev, extract(schedule.betas, t, x_prev), extract(schedule.log_betas, t, x_prev)
    )


def q_posterior(schedule: Schedule, x_0: chex.Array, x_t: chex.Array, t: chex.Array) -> Gaussian:
    """q(x_{t-1}|x_t, x_0), Gaussian by Bayes' rule (Ho et al. 2020, eq. 6 and 7).

    At t = 0 its variance is 0; the log-variance takes the value of t = 1 there, as in the original
    code (other libraries use log(1e-20), which changes L_0).
    """
    chex.assert_equal_shape([x_0, x_t])
    mean = (
        extract(schedule.posterior_mean_coef1, t, x_t) * x_0
        + extract(schedule.posterior_mean_coef2, t, x_t) * x_t
    )
    return Gaussian(
        mean=mean,
        variance=extract(schedule.posterior_variance, t, x_t),
        log_variance=extract(schedule.posterior_log_variance_clipped, t, x_t),
    )


def p_mean_variance(denoiser: Callable, x_t: chex.Array, t: chex.Array) -> Gaussian:
    """The model's reverse step p(x_{t-1}|x_t) = N(μ_θ(x_t, t), σ_t²) (Ho et al. 2020, eq. 1).

    Args:
      denoiser: (x_t, t) -> `parameterization.Prediction`; the choice of variance and any clipping
        of x_0 are in it.
      x_t: [B, ...].
      t: int [B] in 0..T-1.

    Returns:
      Mean, variance and log-variance, each of the shape of x_t.
    """
    prediction = denoiser(x_t, t)
    return Gaussian(prediction.mean, jnp.exp(prediction.log_variance), prediction.log_variance)
