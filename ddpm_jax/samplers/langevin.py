"""Predictor-corrector sampling (Song et al. 2021, algorithm 5): ancestral and Langevin steps.

Each ancestral step is followed by Langevin steps.

The corrector stays at its noise level and moves the distribution of x towards q(x_t). Both kinds of
step are rows of one table; a row evaluates the denoiser once.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.chain import Chain, check_chain
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.parameterization import Prediction
from ddpm_jax.errors import UsageError
from ddpm_jax.samplers.ancestral import AncestralState, p_sample
from ddpm_jax.samplers.loop import Noise, Sampler


class Rows(NamedTuple):
    """The N rows, each an ancestral or a Langevin step."""

    level: np.ndarray  # the row of the schedule, int32 [N]
    # bool [N]: True for a Langevin step at this level, False for an ancestral one to the next
    corrects: np.ndarray
    noise: np.ndarray  # √(1-ᾱ), [N]
    size: np.ndarray  # 2 α r² of a corrector, [N]


def corrector(
    x: chex.Array, eps: chex.Array, z: chex.Array, noise: chex.Array, size: chex.Array
) -> chex.Array:
    """x + δ s + √(2δ) z, δ = 2 α (r ‖z‖/‖s‖)², s = -ε / √(1-ᾱ) (Song et al. 2021, algorithm 5).

    s is the score. The norms are those of one image. The paper's code averages them over the batch,
    which would make an image depend on the others.

    Args:
      x: [B, ...], at the level.
      eps: ε predicted there, of the shape of x.
      z: standard normal noise of the same shape.
      noise: √(1-ᾱ), scalar.
      size: 2 α r², scalar.
    """
    axes = tuple(range(1, x.ndim))
    score = -eps / noise
    delta = size * jnp.sum(z**2, axes, keepdims=True) / jnp.sum(score**2, axes, keepdims=True)
    return x + delta * score + jnp.sqrt(2 * delta) * z


def step(
    denoiser: Denoiser, state: AncestralState, row: Rows, noise: Noise
) -> tuple[AncestralState, Prediction]:
    """Compute one row, of either kind."""
    x_t = state.x_t
    t = jnp.broadcast_to(row.level, x_t.shape[:1])
    prediction = denoiser(x_t, t)
    z = noise.draw(x_t)
    x = jax.lax.cond(
        row.corrects,
        lambda: corrector(x_t, prediction.eps, z, row.noise, row.size),
        lambda: p_sample(prediction, t, z),
    )
    return AncestralState(x), prediction


def predictor_corrector(
    chain: Chain,
    times: np.ndarray,
    *,
    snr: float = 0.16,
    corrector_steps: int = 1,
    dtype=np.float32,
) -> Sampler:
    """An ancestral step to every level, then `corrector_steps` Langevin steps at it.

    The ancestral steps have the denoiser's variance. There are no Langevin steps at the first
    level, where x_T is noise, nor at clean data: N + (N-1) corrector_steps evaluations.

    Args:
      chain: the process.
      times: the levels to visit, [N]. α is that of the chain of these levels.
      snr: r, the size of a Langevin step: the ratio of the norms of its score part and its noise.
        Positive.
      corrector_steps: at each level, not negative; 0 is `ancestral`.
      dtype: of the tables.

    Raises:
      UsageError: a number out of range.
    """
    if not 0 < snr < np.inf:
        raise UsageError(
            f"snr is {snr}: the ratio of signal to noise of a Langevin step is positive, say 0.16."
        )
    if corrector_steps < 0 or corrector_steps != int(corrector_steps):
        raise UsageError(
            f"corrector_steps is {corrector_steps}: choose a whole number, 0 for none."
        )
    check_chain(chain)
    schedule, precise = (chain.at(times, dtype=of) for of in (dtype, np.float64))
    num_steps = schedule.num_timesteps
    # One ancestral row, then for each further level its Langevin rows and an ancestral row.
    corrects = np.array([False] + ([True] * int(corrector_steps) + [False]) * (num_steps - 1))
    # An ancestral row starts at N less the ancestral rows up to it; a Langevin row stays at the
    # level that the last of them reached, one below.
    level = num_steps - np.cumsum(~corrects)
    level = np.where(corrects, level - 1, level).astype(np.int32)
    rows = Rows(
        level=level,
        corrects=corrects,
        noise=precise.sqrt_one_minus_alphas_bar[level].astype(dtype),
        size=(2 * (1 - precise.betas[level]) * snr**2).astype(dtype),
    )
    return Sampler(schedule, rows, init=AncestralState, step=step, evaluations=len(level))
