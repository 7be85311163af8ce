"""DDIM inversion: the probability flow from a picture up to the x_T that DDIM maps back to it.

In x̄ = x_t / √ᾱ_t and σ the flow is dx̄/dσ = ε(x_t, t), which can be followed in either direction:
Euler's step from one level to the next higher is DDIM inversion (Song et al. 2020, section 4.3).
Both directions are deterministic.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.parameterization import Prediction
from ddpm_jax.errors import UsageError
from ddpm_jax.samplers.ddim import ddim
from ddpm_jax.samplers.linear import visited
from ddpm_jax.samplers.loop import Noise, Sampler, Samples, sample


class UpwardRows(NamedTuple):
    """A step from one level to the next higher, x' = a x + c ε; [N] each, clean data first."""

    # int32: the row of the schedule for the level where the step starts; 0 for clean data, without
    # one
    level: np.ndarray
    above: np.ndarray  # int32: the row for the level where it ends
    x: np.ndarray  # a
    eps: np.ndarray  # c


class UpwardState(NamedTuple):
    """The images on their way up."""

    x_t: chex.Array  # [B, H, W, C]


def invert(chain: Chain, times: np.ndarray, *, corrections: int = 0, dtype=np.float32) -> Sampler:
    """Return the sampler that walks from x_0 up to x_T: x̄' = x̄ + (σ' - σ) ε, first order.

    ε is evaluated where the step starts, while DDIM on the way back evaluates it where this step
    ends. Each correction evaluates ε there, at the current estimate, and repeats the step: x' = a x
    + c ε(x'), solved by iteration as in Pan et al. 2023 (AIDI). Where it converges, DDIM leads back
    to the same x_0 in any number of steps.

    Clean data has no row in the schedule: the step to the first level uses the ε of that level. For
    `loop.sample`, the argument x_T is x_0, and the x_0 it returns is x_T. Use a denoiser that clips
    nothing.

    Args:
      chain: the process.
      times: the levels to visit, [N], as on the way back.
      corrections: per step; each costs one evaluation.
      dtype: of the tables; float64 serves tests.

    Raises:
      UsageError: a negative number of corrections.
    """
    if corrections < 0:
        raise UsageError(f"corrections is {corrections}: choose 0 (Euler's step) or more.")
    schedule, levels = visited(chain, times, dtype)
    signal = levels.signal[-2::-1]
    first = signal[0]
    # `init` has brought clean data to the first level's scale
    a = signal / np.append(first, signal[:-1])
    c = (levels.noise[:-1] * -np.expm1(-levels.steps))[::-1]  # √ᾱ' (σ' - σ), of an infinite σ' too
    above = np.arange(len(a), dtype=np.int32)
    rows = UpwardRows(np.maximum(above - 1, 0), above, a.astype(dtype), c.astype(dtype))

    def init(x_0: chex.Array) -> UpwardState:
        return UpwardState((first * x_0).astype(x_0.dtype))

    def step(
        denoiser: Denoiser, state: UpwardState, row: UpwardRows, noise: Noise
    ) -> tuple[UpwardState, Prediction]:
        x, batch = state.x_t, state.x_t.shape[:1]
        prediction = denoiser(x, jnp.broadcast_to(row.level, batch))
        above = row.x * x + row.eps * prediction.eps
        for _ in range(corrections):
            above = row.x * x + row.eps * denoiser(above, jnp.broadcast_to(row.above, batch)).eps
        return UpwardState(above), prediction

    return Sampler(schedule, rows, init, step, evaluations=len(a) * (1 + corrections), draws=0)


class Reconstruction(NamedTuple):
    """The latent of a picture, and the picture that DDIM maps it to."""

    x_T: chex.Array  # [B, H, W, C]
    x_0: chex.Array  # [B, H, W, C]
    # [B]: root mean squared error of x_0 over the image's values, in units of [-1, 1]
    rmse: chex.Array


def reconstruct(
    denoiser: Denoiser,
    chain: Chain,
    times: np.ndarray,
    x_0: chex.Array,
    *,
    corrections: int = 0,
    dtype=np.float32,
    walk: Callable[[Denoiser, Sampler, chex.Array], Samples] = sample,
) -> Reconstruction:
    """Apply `invert`, then DDIM with η = 0 over the same times.

    Args:
      denoiser: built on `chain.at(times)`, clipping nothing.
      chain: the process.
      times: [N].
      x_0: [B, H, W, C] in [-1, 1].
      corrections: of `invert`.
      dtype: of the tables.
      walk: the function that walks the chains: `sample`, or its equivalent in dispatches.
    """
    x_T = walk(denoiser, invert(chain, times, corrections=corrections, dtype=dtype), x_0).x_0
    again = walk(denoiser, ddim(chain, times, dtype=dtype), x_T).x_0
    return Reconstruction(
        x_T, again, jnp.sqrt(jnp.mean(jnp.square(again - x_0), axis=tuple(range(1, x_0.ndim))))
    )
