"""Step halving: the x_0 with which one DDIM step leads where two steps of a teacher lead.

A student that predicts this x_0 walks its teacher's chain of 2N steps in N (Salimans & Ho 2022,
Progressive Distillation for Fast Sampling of Diffusion Models). Levels are rows of a `Schedule`;
row -1 is clean data, where every chain ends.
"""

import chex
import jax.numpy as jnp

from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.gaussian import over
from ddpm_jax.diffusion.parameterization import Prediction
from ddpm_jax.diffusion.schedules import Schedule


def _signal_and_noise(
    schedule: Schedule, row: chex.Array, x: chex.Array
) -> tuple[chex.Array, chex.Array]:
    """Return √ᾱ and √(1-ᾱ) at rows [B], [B, 1, ..., 1] each; 1 and 0 at row -1."""
    tables = (schedule.sqrt_alphas_bar, 1.0), (schedule.sqrt_one_minus_alphas_bar, 0.0)
    return tuple(
        over(jnp.where(row < 0, clean, jnp.asarray(table)[jnp.maximum(row, 0)]), x)
        for table, clean in tables
    )


def ddim_step(schedule: Schedule, prediction: Prediction, row: chex.Array) -> chex.Array:
    """x' = √ᾱ' x_0 + √(1-ᾱ') ε: one DDIM step with η = 0 (Song et al. 2020, eq. 12).

    Args:
      schedule: the levels.
      prediction: x_0 and ε at the level before, [B, ...].
      row: that the step leads to, int [B]; -1 for clean data.
    """
    signal, noise = _signal_and_noise(schedule, row, prediction.x_0)
    return signal * prediction.x_0 + noise * prediction.eps


def halved_x_0(
    teacher: Denoiser, x_t: chex.Array, row: chex.Array, middle: chex.Array, last: chex.Array
) -> chex.Array:
    """Return the x_0 whose DDIM step from `row` to `last` equals two steps of the teacher.

      x_0 = (x'' - (s''/s) x_t) / (a'' - (s''/s) a),    a = √ᾱ, s = √(1-ᾱ)

    with x'' = the teacher's DDIM from x_t by way of `middle`. To clean data it is x'' itself.

    Args:
      teacher: on a schedule of all these levels; it is evaluated twice.
      x_t: [B, ...], at `row`.
      row: int [B].
      middle: a lower level, int [B].
      last: a level below that, int [B], or -1 for clean data.

    Returns:
      Of the shape of x_t; an average of the two x_0 of the teacher where each fits its ε.

    Source: Salimans & Ho 2022, algorithm 2 and appendix G.
    """
    schedule = teacher.schedule
    x_middle = ddim_step(schedule, teacher(x_t, row), middle)
    x_last = ddim_step(schedule, teacher(x_middle, middle), last)
    signal, noise = _signal_and_noise(schedule, row, x_t)
    signal_last, noise_last = _signal_and_noise(schedule, last, x_t)
    kept = noise_last / noise
    return (x_last - kept * x_t) / (signal_last - kept * signal)


def truncated_snr(schedule: Schedule, row: chex.Array) -> chex.Array:
    """max(SNR, 1), [B]: the weight of the squared error of x_0 (Salimans & Ho 2022, section 4).

    It is the larger of the errors of x_0 and of ε, so that the noisiest level, from which samples
    begin and where ε says nothing of x_0, counts too.
    """
    return jnp.maximum(jnp.asarray(schedule.snr)[row], 1.0)
