"""The step that most samplers share: the next x is a weighted sum of x, of predictions, and of noise.

    x_{i+1} = a x_i + Σ_j b_j x_0[i-j] + Σ_j c_j ε[i-j] + d z,      j = 0 the newest prediction

A sampler of this kind is its weights (`ddim`, `adams`, `dpm_solver`): functions of the noise levels, computed in
float64. Also here: the three numbers of a level that all their formulas are written in.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.parameterization import Denoiser, Prediction
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.samplers.loop import Sampler
from ddpm_jax.samplers.randomness import normal


class Levels(NamedTuple):
    """The levels that a chain of N steps comes through, noisiest first: float64 [N+1], the last is clean data."""

    signal: np.ndarray  # √ᾱ, 1 at the end
    noise: np.ndarray  # √(1-ᾱ), 0 at the end

    @property
    def sigma(self) -> np.ndarray:
        """σ = √(1-ᾱ) / √ᾱ, 0 at the end."""
        return self.noise / self.signal

    @property
    def half_log_snr(self) -> np.ndarray:
        """λ = -log σ (Lu et al. 2022, section 2), +inf at the end."""
        with np.errstate(divide="ignore"):
            return -np.log(self.sigma)


def levels_of(schedule: Schedule) -> Levels:
    """The levels of a table, T-1 first, and clean data after them."""
    signal, noise = (
        np.asarray(table, np.float64)[::-1] for table in (schedule.sqrt_alphas_bar, schedule.sqrt_one_minus_alphas_bar)
    )
    return Levels(np.append(signal, 1.0), np.append(noise, 0.0))


class Weights(NamedTuple):
    """The rows of a linear sampler: what each of the N steps makes of what it has; the names as in the file's formula.

    A column of predictions that no step uses is left out: x_0 [N, 0] says that x_0 is never looked at.
    """

    x: np.ndarray  # a, [N]
    x_0: np.ndarray  # b, [N, J]
    eps: np.ndarray  # c, [N, K]
    z: np.ndarray | None  # d, [N]; None for a sampler without noise


class Rows(NamedTuple):
    """`Weights` and the row of the schedule at which each step asks the denoiser, int32 [N]."""

    level: np.ndarray
    weights: Weights


class LinearState(NamedTuple):
    """The image and the predictions before the newest, those of the last step first; zeros where there is none yet."""

    x_t: chex.Array  # [B, ...]
    x_0: chex.Array  # [max(J-1, 0), B, ...]
    eps: chex.Array  # [max(K-1, 0), B, ...]


def step(denoiser: Denoiser, state: LinearState, row: Rows, keys: chex.PRNGKey) -> tuple[LinearState, Prediction]:
    """One row of the file's formula."""
    prediction = denoiser(state.x_t, jnp.broadcast_to(row.level, state.x_t.shape[:1]))
    x_0 = jnp.concatenate([prediction.x_0[None], state.x_0])
    eps = jnp.concatenate([prediction.eps[None], state.eps])
    weights = row.weights
    x = weights.x * state.x_t + _sum(weights.x_0, x_0) + _sum(weights.eps, eps)
    if weights.z is not None:
        x = add_noise(x, weights.z, keys)
    return LinearState(x, x_0[: len(state.x_0)], eps[: len(state.eps)]), prediction


def add_noise(x: chex.Array, scale: chex.Array, keys: chex.PRNGKey) -> chex.Array:
    """x + scale z, scale a scalar; nothing is drawn where it is 0."""
    return jax.lax.cond(scale > 0, lambda: x + (scale * normal(keys, x.shape[1:])).astype(x.dtype), lambda: x)


def _sum(weights: chex.Array, terms: chex.Array) -> chex.Array:
    return jnp.tensordot(weights, terms[: len(weights)], axes=1)


def linear_sampler(schedule: Schedule, weights: Weights) -> Sampler:
    """The sampler of these weights, [N, ...] for the N rows of `schedule`; computes in the dtype of the schedule."""
    dtype, num_rows = np.asarray(schedule.alphas_bar).dtype, schedule.num_timesteps
    chex.assert_tree_shape_prefix(weights, (num_rows,))
    kept = [max(history.shape[1] - 1, 0) for history in (weights.x_0, weights.eps)]

    def init(x_T: chex.Array) -> LinearState:
        return LinearState(x_T, *(jnp.zeros((count, *x_T.shape), x_T.dtype) for count in kept))

    rows = Rows(
        level=np.arange(num_rows, dtype=np.int32)[::-1], weights=jax.tree.map(lambda w: np.asarray(w, dtype), weights)
    )
    return Sampler(schedule, rows, init, step, evaluations=num_rows)
