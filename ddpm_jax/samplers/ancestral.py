"""Ancestral sampling: the model's own reverse process, one draw from p(x_{t-1}|x_t) after another.

Algorithm 2 of Ho et al. 2020, in the paper's order and names:

    1: x_T ~ N(0, I)                                       randomness.initial_noise
    2: for t = T, ..., 1 do                                loop.sample
    3:     z ~ N(0, I) if t > 1, else z = 0                step
    4:     x_{t-1} = μ_θ(x_t, t) + σ_t z                   p_sample
    5: return x_0

The paper counts t from 1, the code from 0: its last step is t = 0. In line 4 the paper writes the
mean of a network that predicts ε: μ_θ = 1/√α_t (x_t - β_t/√(1-ᾱ_t) ε_θ(x_t, t)), eq. 11. Here the
denoiser supplies it, whatever its network predicts, and with it σ_t and the clipping of x_0. σ_t² =
β_t (fixed_large) is exact for data of unit variance, σ_t² = β̃_t (fixed_small) for data that is a
single point (section 3.2).

A sampler is a table, a state and a step. Fewer steps are a shorter table, from a respaced schedule:

    process = make_process(chain, parameterization="eps", variance="fixed_large")
    sampler = ancestral(chain.at(spaced_timesteps(1000, 100)))
    denoiser = process.denoiser(network, sampler.schedule, clip="static")
    samples = sample(denoiser, sampler, initial_noise(keys, (32, 32, 3)), keys)
"""

from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.gaussian import over
from ddpm_jax.diffusion.parameterization import Prediction
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import UsageError
from ddpm_jax.samplers.loop import Noise, Sampler


class AncestralState(NamedTuple):
    """The state of a Markov chain: the images only."""

    x_t: chex.Array  # float32 [B, H, W, C]


def p_sample(prediction: Prediction, t: chex.Array, z: chex.Array) -> chex.Array:
    """x_{t-1} = μ_θ(x_t, t) + σ_t z, and μ_θ itself at t = 0 (Ho et al. 2020, algorithm 2, line 4).

    Args:
      prediction: the model at (x_t, t).
      t: int [B] in 0..T-1.
      z: standard normal noise of the shape of x_t.

    Returns:
      x_{t-1}, the shape of x_t; at t = 0 the sample.
    """
    chex.assert_equal_shape([prediction.mean, z])
    sigma = jnp.exp(0.5 * prediction.log_variance)
    noisy = over(t > 0, z)
    return prediction.mean + jnp.where(noisy, sigma * z, 0.0)


def step(
    denoiser: Denoiser, state: AncestralState, t: chex.Array, noise: Noise
) -> tuple[AncestralState, Prediction]:
    """Step every image of the batch from x_t to x_{t-1}; `t` is an int scalar."""
    t = jnp.broadcast_to(t, state.x_t.shape[:1])
    prediction = denoiser(state.x_t, t)
    return AncestralState(p_sample(prediction, t, noise.draw(state.x_t))), prediction


def ancestral(schedule: Schedule) -> Sampler:
    """Return the sampler that walks every row of `schedule`, t = T-1 .. 0.

    Of a respaced schedule these are the rows that were kept.
    """
    if not isinstance(schedule, Schedule):
        raise UsageError(
            f"ancestral walks a Schedule, not a {type(schedule).__name__}: of a chain it is "
            "chain.at(), or chain.at(times) for fewer steps."
        )
    rows = np.arange(schedule.num_timesteps, dtype=np.int32)[::-1]
    return Sampler(schedule, rows, init=AncestralState, step=step, evaluations=len(rows))
