"""The step that most samplers share: a weighted sum of x, of predictions and of noise.

    x_{i+1} = a x_i + Σ_j b_j x_0[i-j] + Σ_j c_j ε[i-j] + d z,      j = 0 the newest prediction

A sampler of this kind is its weights (`ddim`, `adams`, `pndm`, `dpm_solver`, `unipc`,
`runge_kutta`): functions of the noise levels, computed in float64. A row evaluates the denoiser
once. A method with two evaluations a step is two rows: the second subtracts what the first added
for the older prediction and adds the sum over both. So the network appears once in the compiled
program, and the last step, which has no second half, is one row. Also here: the quantities of a
level that the formulas are written in.

Most formulas are those of the probability flow in x̄ = x / √ᾱ, where dx̄/dσ = ε (Song et al. 2020,
eq. 14): see `flow_weights`.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ddpm_jax.diffusion.chain import Chain, GivenLevels, check_chain
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.parameterization import Prediction
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.samplers.loop import Noise, Sampler


class Levels(NamedTuple):
    """The levels that a chain of N steps visits, noisiest first, clean data last: float64 [N+1].

    Differences between levels are taken in λ, which keeps the digits that nearly equal ᾱ lose.
    """

    signal: np.ndarray  # √ᾱ, 1 at the end
    noise: np.ndarray  # √(1-ᾱ), 0 at the end
    half_log_snr: np.ndarray  # λ = -log σ (Lu et al. 2022, section 2), +inf at the end
    # λ of the level that each step leads to, [N]; None: the next one
    leads_to: np.ndarray | None = None

    @property
    def sigma(self) -> np.ndarray:
        """σ = √(1-ᾱ) / √ᾱ, 0 at the end."""
        return np.exp(-self.half_log_snr)

    @property
    def after(self) -> "Levels":
        """Return the levels at the ends of the steps, [N]."""
        if self.leads_to is None:
            return Levels(self.signal[1:], self.noise[1:], self.half_log_snr[1:])
        return levels_from_lambdas(self.leads_to)

    @property
    def steps(self) -> np.ndarray:
        """h = λ' - λ, [N]: 0 for a step within a level, inf to clean data or from pure noise."""
        before, after = self.half_log_snr[:-1], self.after.half_log_snr
        return np.subtract(after, before, out=np.zeros(before.shape), where=before != after)


def levels_from_lambdas(half_log_snr: np.ndarray) -> Levels:
    """Return the levels of these λ, float64 of any shape; inf is clean data."""
    signal, noise = (np.exp(-0.5 * np.logaddexp(0, sign * 2 * half_log_snr)) for sign in (-1, 1))
    return Levels(signal, noise, half_log_snr)


def levels_from_schedule(schedule: Schedule, rows: np.ndarray | None = None) -> Levels:
    """Return the levels of a table, and clean data after them.

    Build the table in float64, as `levels_at` does.

    Args:
      schedule: the table.
      rows: the rows to take, in the order of the walk, int [N]; None: all, T-1 first.
    """
    rows = np.arange(schedule.num_timesteps)[::-1] if rows is None else rows
    tables = schedule.sqrt_alphas_bar, schedule.sqrt_one_minus_alphas_bar, schedule.half_log_snr
    clean = 1.0, 0.0, np.inf
    return Levels(
        *(
            np.append(np.asarray(t, np.float64)[rows], end)
            for t, end in zip(tables, clean, strict=True)
        )
    )


def levels_at(chain: Chain, times: np.ndarray) -> Levels:
    """Return the chain's levels at increasing `times` [N], from which weights are computed."""
    levels = levels_from_schedule(chain.at(times, dtype=np.float64))
    return levels._replace(leads_to=_strides(chain, times[::-1]))


def _strides(chain: Chain, times: np.ndarray) -> np.ndarray | None:
    """Return λ one stride below each of `times`; None for a chain without a stride."""
    return (
        chain.below[times] if isinstance(chain, GivenLevels) and chain.below is not None else None
    )


def visited(chain: Chain, times: np.ndarray, dtype: DTypeLike) -> tuple[Schedule, Levels]:
    """Return the table of a sampler that evaluates once at each of `times`, and its float64 levels.

    Raises:
      UsageError: not a chain, or times outside it.
    """
    check_chain(chain)
    return chain.at(times, dtype=dtype), levels_at(chain, times)


class Weights(NamedTuple):
    """The rows of a linear sampler, in the names of the module's formula.

    A column of predictions that no step uses is left out: x_0 [N, 0] means that x_0 is never used.
    """

    x: np.ndarray  # a, [N]
    x_0: np.ndarray  # b, [N, J]
    eps: np.ndarray  # c, [N, K]
    z: np.ndarray | None  # d, [N]; None for a sampler without noise


class Rows(NamedTuple):
    """`Weights`, and the schedule's row at which each step evaluates the denoiser, int32 [N]."""

    level: np.ndarray
    weights: Weights


def flow_weights(
    signal: np.ndarray,
    eps: np.ndarray,
    z: np.ndarray | None = None,
    *,
    after: np.ndarray | None = None,
) -> Weights:
    """The weights of x̄_{i+1} = x̄_i + Σ_j c_j ε[i-j] + d z, x̄ = x / √ᾱ.

    Args:
      signal: √ᾱ of the level of x before every row and after the last, [N+1].
      eps: c, [N, K].
      z: d, [N], or None.
      after: √ᾱ of the level after each row, [N], where it is not that before the next.
    """
    before, after = signal[:-1], signal[1:] if after is None else after
    return Weights(
        x=after / before,
        x_0=np.zeros((len(eps), 0)),
        eps=after[:, None] * eps,
        z=None if z is None else after * z,
    )


class LinearState(NamedTuple):
    """The image and the predictions before the newest, the latest of them first.

    Zeros where there are none yet.
    """

    x_t: chex.Array  # [B, ...]
    x_0: chex.Array  # [max(J-1, 0), B, ...]
    eps: chex.Array  # [max(K-1, 0), B, ...]


def step(
    denoiser: Denoiser, state: LinearState, row: Rows, noise: Noise
) -> tuple[LinearState, Prediction]:
    """Compute one row of the module's formula."""
    prediction = denoiser(state.x_t, jnp.broadcast_to(row.level, state.x_t.shape[:1]))
    # The newest first, as the columns of the weights.
    x_0 = jnp.concatenate([prediction.x_0[None], state.x_0])
    eps = jnp.concatenate([prediction.eps[None], state.eps])
    weights = row.weights
    x = weights.x * state.x_t + _sum(weights.x_0, x_0) + _sum(weights.eps, eps)
    if weights.z is not None:
        x = add_noise(x, weights.z, noise)
    return LinearState(x, x_0[: len(state.x_0)], eps[: len(state.eps)]), prediction


def add_noise(x: chex.Array, scale: chex.Array, noise: Noise) -> chex.Array:
    """x + scale z, scale a scalar; nothing is drawn where it is 0."""
    return jax.lax.cond(scale > 0, lambda: x + (scale * noise.draw(x)).astype(x.dtype), lambda: x)


def _sum(weights: chex.Array, terms: chex.Array) -> chex.Array:
    """Return Σ_j weights[j] terms[j], not as a product of matrices.

    Accelerators round the factors of a product.
    """
    return jnp.sum(weights.reshape(-1, *(1,) * (terms.ndim - 1)) * terms[: len(weights)], axis=0)


class _Init(NamedTuple):
    """x_T -> the state before the first row.

    Equal for equal counts, so that one program serves every sampler with these counts.
    """

    x_0: int  # predictions kept besides the newest
    eps: int

    def __call__(self, x_T: chex.Array) -> LinearState:
        return LinearState(x_T, *(jnp.zeros((count, *x_T.shape), x_T.dtype) for count in self))


def linear_sampler(
    schedule: Schedule, weights: Weights, level: np.ndarray | None = None
) -> Sampler:
    """Return the sampler with these weights; it computes in the dtype of the schedule.

    Args:
      schedule: the levels at which it evaluates the denoiser.
      weights: [N, ...].
      level: the row of `schedule` at which each step evaluates, int [N]; None: each row once, the
        noisiest first.
    """
    if level is None:
        level = np.arange(schedule.num_timesteps)[::-1]
    chex.assert_tree_shape_prefix(weights, (len(level),))
    dtype = np.asarray(schedule.alphas_bar).dtype
    rows = Rows(np.asarray(level, np.int32), jax.tree.map(lambda w: np.asarray(w, dtype), weights))
    init = _Init(*(max(history.shape[1] - 1, 0) for history in (weights.x_0, weights.eps)))
    draws = int(weights.z is not None and np.any(weights.z))
    return Sampler(schedule, rows, init, step, evaluations=len(level), draws=draws)


def from_pure_noise(chain: Chain, times: np.ndarray, rest: Sampler) -> Sampler:
    """Return a sampler of the lower levels with a step before it, from a level without signal.

    There x_t is ε, and σ and λ are infinite, but the flow is not: to the next level it is a' x_0 +
    s' ε, as DDIM has it.

    Args:
      chain: the process.
      times: the levels, the last without signal, [N], N > 1.
      rest: a linear sampler over the others.
    """
    before, first = chain.at(times[-2:], dtype=np.float64), chain.at(times)
    schedule = jax.tree.map(
        lambda table, whole: np.append(table, whole[-1:].astype(table.dtype)),
        rest.schedule,
        first,
    )
    weights = rest.rows.weights
    columns = [np.zeros((1, history.shape[1])) for history in (weights.x_0, weights.eps)]
    if not weights.x_0.shape[1]:
        weights = weights._replace(x_0=np.zeros((len(weights.x), 1)))
        columns[0] = np.zeros((1, 1))
    columns[0][0, 0] = before.sqrt_alphas_bar[0]
    step_down = Weights(
        x=before.sqrt_one_minus_alphas_bar[:1],
        x_0=columns[0],
        eps=columns[1],
        z=None if weights.z is None else np.zeros(1),
    )
    both = jax.tree.map(lambda *parts: np.concatenate(parts), step_down, weights)
    level = np.append(len(rest.schedule.alphas_bar), rest.rows.level)
    return linear_sampler(schedule, both, level)


def evaluated_at(
    chain: Chain, times: np.ndarray, dtype: DTypeLike
) -> tuple[Schedule, np.ndarray, Levels]:
    """Return the table of a sampler that evaluates at `times`, between its steps or repeatedly.

    Only x_0 and ε of a prediction are meaningful with it: its mean and variance lead to the next
    row of the table, which is not the next level of this sampler.

    Args:
      chain: the process.
      times: where the rows evaluate, in the order of the walk, [N]; a time may repeat.
      dtype: of the tables.

    Returns:
      The table, N rows of increasing time; its row at which each step evaluates, int [N]; their
      levels in the order of the walk, and clean data after them.
    """
    check_chain(chain)
    # The chain's table needs distinct times; repeated ones are copied rows, in the order of time.
    distinct, which = np.unique(times, return_inverse=True)
    order = np.argsort(times, kind="stable")
    schedule = jax.tree.map(lambda table: table[which[order]], chain.at(distinct, dtype=dtype))
    return (
        schedule,
        np.argsort(order),
        levels_from_schedule(chain.at(distinct, dtype=np.float64), which),
    )
