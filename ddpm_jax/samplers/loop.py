"""`sample`: walks a sampler's table with one `lax.scan`, the only loop that walks a chain.

What a row holds and what a step does is the sampler's affair (`ancestral`, and its neighbours); what the network's
output means, clipping and guidance are the denoiser's. Batches, devices and files are `evaluation.generation`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.parameterization import Denoiser, Prediction
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import UsageError
from ddpm_jax.samplers import randomness

REPORTS = 64  # per chain: a bar moves every 1.6 %, and the host is disturbed no oftener


class State(Protocol):
    """What a sampler carries from row to row: a pytree with the current images, and its history if it has one."""

    x_t: chex.Array  # [B, H, W, C]


class Sampler(NamedTuple):
    """A table of N rows and a pure step. The number of rows is a property of the table, the step is the same for all.

    `rows` is a pytree of [N, ...] arrays in the order of the walk, noisiest first. `init` turns x_T [B, H, W, C] into
    the state before the first row. `step(denoiser, state, row, keys)` does one row: `row` is `rows` without its leading
    axis, `keys` [B] are fresh ones for this row and each image; it returns the next state and the `Prediction` that was
    made from state.x_t. `schedule` has the noise levels at which the step asks the denoiser, t being its row: the
    denoiser is built on it. `evaluations` counts how often a whole chain asks.

    Rows and schedule are data: a program compiled with them as arguments serves every sampler of the same kind and N.
    """

    schedule: Schedule
    rows: Any
    init: Callable[[chex.Array], State]
    step: Callable[[Denoiser, State, Any, chex.PRNGKey], tuple[State, Prediction]]
    evaluations: int

    @property
    def num_rows(self) -> int:
        """N: one row for each step of most samplers, two for those that ask the denoiser twice a step."""
        return len(jax.tree.leaves(self.rows)[0])


class Samples(NamedTuple):
    """The ends of B chains, and K of the N+1 moments of each, evenly spaced: the first is x_T, the last the sample."""

    x_0: chex.Array  # [B, H, W, C]
    frames_x_t: chex.Array | None  # [K, B, H, W, C]; None for K = 0
    frames_x_0: chex.Array | None  # [K, B, H, W, C]: the x_0 predicted from the x_t of the same frame; None for K = 0


def sample(
    denoiser: Denoiser,
    sampler: Sampler,
    x_T: chex.Array,
    keys: chex.PRNGKey,
    *,
    num_frames: int = 0,
    on_progress: Callable[[int], None] | None = None,
    reports: chex.Array | bool = True,
) -> Samples:
    """Runs the reverse chains of a batch from noise to images.

    Args:
      denoiser: (x_t [B, H, W, C], t int [B]) -> `Prediction`.
      sampler: the table that is walked and its step.
      x_T: float32 [B, H, W, C], standard normal: `randomness.initial_noise`.
      keys: [B], one for each image: `randomness.image_keys`.
      num_frames: K, 0 or 2..N+1; only the K frames are kept in memory, never all N.
      on_progress: host function, called with the number of rows reached: increasing, at most 64 times, N last. It does
        not change the result; None leaves no trace in the compiled program. Calls may still be under way when the
        samples are there: `jax.effects_barrier()` waits for them.
      reports: bool scalar, may be traced: whether this call is one that reports. Of several devices let one do it.

    Returns:
      `Samples`, float32; values lie near [-1, 1] and are not clipped here.

    Raises:
      UsageError: `num_frames` is 1, negative or more than the chain has.
    """
    chex.assert_rank(keys, 1)
    chex.assert_equal_shape_prefix([x_T, keys], 1)
    num_rows = sampler.num_rows
    slots = _frame_slots(num_rows, num_frames)
    frames = tuple(jnp.zeros((num_frames, *x_T.shape), x_T.dtype) for _ in range(2)) if num_frames else None

    def body(carry, scanned):
        state, frames = carry
        row, t, slot = scanned
        if on_progress is not None:
            _report(on_progress, num_rows - t, num_rows, reports)
        next_state, prediction = sampler.step(denoiser, state, row, randomness.row_keys(keys, t))
        return (next_state, _keep(frames, slot, state.x_t, prediction.x_0)), None

    countdown = np.arange(num_rows, dtype=np.int32)[::-1]
    (state, frames), _ = jax.lax.scan(body, (sampler.init(x_T), frames), (sampler.rows, countdown, slots[:-1]))
    frames_x_t, frames_x_0 = _keep(frames, slots[-1], state.x_t, state.x_t) or (None, None)
    return Samples(state.x_t, frames_x_t, frames_x_0)


def _frame_slots(num_rows: int, num_frames: int) -> np.ndarray:
    """The frame that each of the chain's N+1 moments fills, int32 [N+1]; K, which is past the end, for no frame."""
    if num_frames and not 2 <= num_frames <= num_rows + 1:
        raise UsageError(
            f"num_frames is {num_frames}: a chain of {num_rows} rows shows 2 to {num_rows + 1} frames; 0 is for none."
        )
    slots = np.full(num_rows + 1, num_frames, np.int32)
    slots[np.round(np.linspace(0, num_rows, num_frames)).astype(int)] = np.arange(num_frames)
    return slots


def _keep(frames: tuple | None, slot: chex.Array, *images: chex.Array) -> tuple | None:
    """Writes images into their frame buffers at `slot`; a slot past the end is dropped."""
    if frames is None:
        return None
    return tuple(buffer.at[slot].set(image, mode="drop") for buffer, image in zip(frames, images, strict=True))


def _report(on_progress: Callable[[int], None], reached: chex.Array, num_rows: int, reports: chex.Array | bool) -> None:
    """Tells the host, now and then, which row the chain has come to."""
    due = (reached % math.ceil(num_rows / REPORTS) == 0) | (reached == num_rows)
    jax.lax.cond(
        due & reports,
        lambda: jax.debug.callback(lambda reached: on_progress(int(reached)), reached),
        lambda: None,
    )
