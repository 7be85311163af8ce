"""`sample` walks a sampler's table with one `lax.scan`; `begin`, `advance` and `finish` do so in
segments.

What a row holds and what a step does is the sampler's affair (`ancestral`, and its neighbours);
what the network's output means, clipping and guidance are the denoiser's. Batches, devices and
files are `generation.generating`, and how long a segment is, `generation.dispatch`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import randomness
from ddpm_jax.diffusion.denoiser import Denoiser, check_same_schedule
from ddpm_jax.diffusion.parameterization import Prediction
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import UsageError


class State(Protocol):
    """What a sampler carries from row to row: a pytree with the current images, and its history if
    it has one."""

    x_t: chex.Array  # [B, H, W, C]


class Sampler(NamedTuple):
    """A table of N rows and a pure step. The number of rows is a property of the table, the step is
    the same for all.

    `rows` is a pytree of [N, ...] arrays in the order of the walk, noisiest first. `init` turns x_T
    [B, H, W, C] into the state before the first row. `step(denoiser, state, row, keys)` does one
    row: `row` is `rows` without its leading axis, `keys` [B] are fresh ones for this row and each
    image; it returns the next state and the `Prediction` that was made from state.x_t. `schedule`
    has the noise levels at which the step asks the denoiser, t being its row: the denoiser is built
    on it. `evaluations` counts how often a whole chain asks.

    Rows and schedule are data: a program compiled with them as arguments serves every sampler of
    the same kind and N.
    """

    schedule: Schedule
    rows: Any
    init: Callable[[chex.Array], State]
    step: Callable[[Denoiser, State, Any, chex.PRNGKey], tuple[State, Prediction]]
    evaluations: int

    @property
    def num_rows(self) -> int:
        """N: one row for each step of most samplers, two for those that ask the denoiser twice a
        step."""
        return len(jax.tree.leaves(self.rows)[0])


class Samples(NamedTuple):
    """The ends of B chains, and K of the N+1 moments of each, evenly spaced: the first is x_T, the
    last the sample."""

    x_0: chex.Array  # [B, H, W, C]
    frames_x_t: chex.Array | None  # [K, B, H, W, C]; None for K = 0
    # [K, B, H, W, C]: the x_0 predicted from the x_t of the same frame; None for K = 0
    frames_x_0: chex.Array | None


class Walk(NamedTuple):
    """B chains under way: all that one segment hands on to the next."""

    state: State
    # x_t and x_0, [K, B, H, W, C] each, filled so far; None for K = 0
    frames: tuple[chex.Array, chex.Array] | None


def sample(
    denoiser: Denoiser,
    sampler: Sampler,
    x_T: chex.Array,
    keys: chex.PRNGKey,
    *,
    num_frames: int = 0,
) -> Samples:
    """Runs the reverse chains of a batch from noise to images.

    Args:
      denoiser: built on `sampler.schedule`.
      sampler: the table that is walked and its step.
      x_T: float32 [B, H, W, C], standard normal: `randomness.initial_noise`.
      keys: [B], one for each image: `randomness.image_keys`.
      num_frames: K, 0 or 2..N+1; only the K frames are kept in memory, never all N.

    Returns:
      `Samples`, float32; values lie near [-1, 1] and are not clipped here.

    Raises:
      UsageError: a denoiser on another schedule than the sampler's; `num_frames` is 1, negative or
        more than the chain has.
    """
    check_same_schedule(denoiser, sampler.schedule, "the sampler")
    chex.assert_equal_shape_prefix([x_T, keys], 1)
    walk = begin(sampler, x_T, num_frames=num_frames)

    def body(walk, scanned):
        row, countdown, slot = scanned
        return _walk_row(denoiser, sampler, walk, keys, row, countdown, slot), None

    table = (sampler.rows, _countdown(sampler), _frame_slots(sampler.num_rows, num_frames)[:-1])
    walk, _ = jax.lax.scan(body, walk, table)
    return finish(sampler, walk)


def begin(sampler: Sampler, x_T: chex.Array, *, num_frames: int = 0) -> Walk:
    """The chains before their first row; arguments and errors are those of `sample`."""
    _frame_slots(sampler.num_rows, num_frames)
    frames = (
        tuple(jnp.zeros((num_frames, *x_T.shape), x_T.dtype) for _ in range(2))
        if num_frames
        else None
    )
    return Walk(sampler.init(x_T), frames)


def advance(
    denoiser: Denoiser,
    sampler: Sampler,
    walk: Walk,
    keys: chex.PRNGKey,
    first: chex.Array,
    last: chex.Array,
) -> Walk:
    """Walks the rows first..last-1 of the table; from 0 to N in any number of segments it is what
    `sample` does.

    The length of a `scan` is compiled in. Here the bounds are arguments, so that one program serves
    segments of every length, and where a chain is cut cannot change a bit of it.

    Args:
      denoiser: as for `sample`.
      sampler: as for `sample`.
      walk: of `begin`, or of the segment before; its buffers may be donated.
      keys: [B], the same for every segment.
      first: int32 scalar, may be traced.
      last: int32 scalar, may be traced; at most N.
    """
    check_same_schedule(denoiser, sampler.schedule, "the sampler")
    chex.assert_rank(keys, 1)
    tables = (sampler.rows, _countdown(sampler), _slots_of(sampler, walk)[:-1])

    def body(i, walk):
        of_row = jax.tree.map(
            lambda table: jax.lax.dynamic_index_in_dim(table, i, keepdims=False), tables
        )
        return _walk_row(denoiser, sampler, walk, keys, *of_row)

    return jax.lax.fori_loop(first, last, body, walk)


def finish(sampler: Sampler, walk: Walk) -> Samples:
    """The samples of chains that have walked all rows."""
    x_0 = walk.state.x_t
    frames_x_t, frames_x_0 = _keep(walk.frames, _slots_of(sampler, walk)[-1], x_0, x_0) or (
        None,
        None,
    )
    return Samples(x_0, frames_x_t, frames_x_0)


def _walk_row(
    denoiser: Denoiser,
    sampler: Sampler,
    walk: Walk,
    keys: chex.PRNGKey,
    row: Any,
    countdown: chex.Array,
    slot: chex.Array,
) -> Walk:
    """One row of the table; `slot` is the frame that x_t fills before it."""
    state, prediction = sampler.step(
        denoiser, walk.state, row, randomness.row_keys(keys, countdown)
    )
    return Walk(state, _keep(walk.frames, slot, walk.state.x_t, prediction.x_0))


def _countdown(sampler: Sampler) -> np.ndarray:
    """What each row folds into the keys, int32 [N]: N-1, ..., 0."""
    return np.arange(sampler.num_rows, dtype=np.int32)[::-1]


def _slots_of(sampler: Sampler, walk: Walk) -> np.ndarray:
    return _frame_slots(sampler.num_rows, 0 if walk.frames is None else len(walk.frames[0]))


def _frame_slots(num_rows: int, num_frames: int) -> np.ndarray:
    """The frame that each of the chain's N+1 moments fills, int32 [N+1]; K, which is past the end,
    for no frame."""
    if num_frames and not 2 <= num_frames <= num_rows + 1:
        raise UsageError(
            f"num_frames is {num_frames}: a chain of {num_rows} rows shows 2 to {num_rows + 1} "
            "frames; 0 is for none."
        )
    slots = np.full(num_rows + 1, num_frames, np.int32)
    slots[np.round(np.linspace(0, num_rows, num_frames)).astype(int)] = np.arange(num_frames)
    return slots


def _keep(frames: tuple | None, slot: chex.Array, *images: chex.Array) -> tuple | None:
    """Writes images into their frame buffers at `slot`; a slot past the end is dropped."""
    if frames is None:
        return None
    return tuple(
        buffer.at[slot].set(image, mode="drop")
        for buffer, image in zip(frames, images, strict=True)
    )
