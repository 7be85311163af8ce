"""`sample` walks a sampler's table with one `lax.scan`, `begin`, `advance`, `finish` in segments.

The sampler defines the rows and the step (`ancestral` and the other modules); the denoiser defines
the meaning of the network's output, clipping and guidance. Batches, devices and files are in
`generation.generating`, the length of a segment in `generation.dispatch`.
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
    """What a sampler carries from row to row: a pytree of the current images and any history."""

    x_t: chex.Array  # [B, H, W, C]


class Noise(NamedTuple):
    """The standard normal noise of one row, drawn with keys or given; a pytree."""

    keys: chex.PRNGKey | None  # [B], fresh ones for this row and each image
    given: chex.Array | None  # [draws, B, ...]

    def draw(self, x: chex.Array, number: int = 0) -> chex.Array:
        """Return noise of the shape and dtype of x; a row's draws are numbered from 0."""
        if self.given is not None:
            return self.given[number].astype(x.dtype)
        if self.keys is None:  # the sampler multiplies it by 0
            return jnp.zeros_like(x)
        keys = randomness.row_keys(self.keys, number) if number else self.keys
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        return randomness.normal(keys, x.shape[1:], dtype=dtype).astype(x.dtype)


class Sampler(NamedTuple):
    """A table of N rows and a pure step, the same for all rows.

    `rows` is a pytree of [N, ...] arrays in the order of the walk, noisiest first. `init` turns x_T
    [B, H, W, C] into the state before the first row. `step(denoiser, state, row, noise)` computes
    one row: `row` is `rows` without its leading axis, `noise` that of this row; it returns the next
    state and the `Prediction` made from state.x_t. `schedule` has the noise levels at which the
    step evaluates the denoiser, t being its row: the denoiser is built on it. `evaluations` is the
    number of evaluations in a whole chain, `draws` the number of draws of noise in a row: 0 for a
    deterministic sampler. Where a chain starts from noise alone, x_T is `start_scale` times
    standard normal noise: 1 except with diffusers' levels.

    Rows and schedule are data: a program compiled with them as arguments serves every sampler of
    the same kind and N.
    """

    schedule: Schedule
    rows: Any
    init: Callable[[chex.Array], State]
    step: Callable[[Denoiser, State, Any, Noise], tuple[State, Prediction]]
    evaluations: int
    draws: int = 1
    start_scale: float = 1.0

    @property
    def num_rows(self) -> int:
        """N: one row per step of most samplers, two where a step takes two evaluations."""
        return len(jax.tree.leaves(self.rows)[0])


class Samples(NamedTuple):
    """The ends of B chains, and K evenly spaced of the N+1 moments of each.

    The first moment is x_T, the last the sample.
    """

    x_0: chex.Array  # [B, H, W, C]
    frames_x_t: chex.Array | None  # [K, B, H, W, C]; None for K = 0
    # [K, B, H, W, C]: the x_0 predicted from the x_t of the same frame; None for K = 0
    frames_x_0: chex.Array | None


class Walk(NamedTuple):
    """B chains under way: all that one segment passes to the next."""

    state: State
    # x_t and x_0, [K, B, H, W, C] each, filled so far; None for K = 0
    frames: tuple[chex.Array, chex.Array] | None


def sample(
    denoiser: Denoiser,
    sampler: Sampler,
    x_T: chex.Array,
    keys: chex.PRNGKey | None = None,
    *,
    step_noise: chex.Array | None = None,
    num_frames: int = 0,
    trajectory: bool = False,
) -> Samples:
    """Run the reverse chains of a batch from noise to images.

    Args:
      denoiser: built on `sampler.schedule`.
      sampler: the table to walk and its step.
      x_T: [B, H, W, C], standard normal: `randomness.initial_noise`, or any noise, times
        `sampler.start_scale`; of the dtype of the sampler's tables.
      keys: [B], one for each image: `randomness.image_keys`. None where nothing is drawn.
      step_noise: [N, B, H, W, C], standard normal, the noise of each row in place of the keys'
        draws: with it a chain can be compared with other implementations. [N, draws, B, H, W, C]
        for a sampler with more than one draw a row.
      num_frames: K, 0 or 2..N+1; only the K frames are kept in memory, never all N.
      trajectory: keep all N+1 moments of the chains, in place of `num_frames`.

    Returns:
      `Samples` of the dtype of x_T; values lie near [-1, 1] and are not clipped here.

    Raises:
      UsageError: a denoiser on another schedule than the sampler's; no noise for a sampler that
        draws; an array of another shape or dtype than above; `num_frames` that is 1, negative or
        more than the chain has.
    """
    check_same_schedule(denoiser, sampler.schedule, "the sampler")
    if trajectory:
        if num_frames:
            raise UsageError("trajectory keeps every moment of the chain: leave num_frames out.")
        num_frames = sampler.num_rows + 1
    walk = begin(sampler, x_T, num_frames=num_frames)
    given = _given_noise(sampler, x_T, keys, step_noise)

    def body(walk, scanned):
        row, countdown, slot, noise = scanned
        return _walk_row(denoiser, sampler, walk, keys, row, countdown, slot, noise), None

    slots = _frame_slots(sampler.num_rows, num_frames)[:-1]
    walk, _ = jax.lax.scan(body, walk, (sampler.rows, _countdown(sampler), slots, given))
    return finish(sampler, walk)


def begin(sampler: Sampler, x_T: chex.Array, *, num_frames: int = 0) -> Walk:
    """Return the chains before their first row; arguments and errors are those of `sample`."""
    x_T = jnp.asarray(x_T)
    _check_x_T(sampler, x_T)
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
    keys: chex.PRNGKey | None,
    first: chex.Array,
    last: chex.Array,
    *,
    step_noise: chex.Array | None = None,
) -> Walk:
    """Walk the rows first..last-1 of the table.

    Walking 0 to N in any number of segments equals `sample`.

    The length of a `scan` is compiled in. Here the bounds are arguments, so that one program serves
    segments of every length, and where a chain is cut cannot change a bit of it.

    Args:
      denoiser: as for `sample`.
      sampler: as for `sample`.
      walk: of `begin`, or of the segment before; its buffers may be donated.
      keys: as for `sample`, the same for every segment.
      first: int32 scalar, may be traced.
      last: int32 scalar, may be traced; at most N.
      step_noise: as for `sample`, that of all N rows.
    """
    check_same_schedule(denoiser, sampler.schedule, "the sampler")
    given = _given_noise(sampler, walk.state.x_t, keys, step_noise)
    tables = (sampler.rows, _countdown(sampler), _walk_slots(sampler, walk)[:-1], given)

    def body(i, walk):
        scanned = jax.tree.map(
            lambda table: jax.lax.dynamic_index_in_dim(table, i, keepdims=False), tables
        )
        return _walk_row(denoiser, sampler, walk, keys, *scanned)

    return jax.lax.fori_loop(first, last, body, walk)


def finish(sampler: Sampler, walk: Walk) -> Samples:
    """Return the samples of chains that have walked all rows."""
    x_0 = walk.state.x_t
    frames_x_t, frames_x_0 = _keep(walk.frames, _walk_slots(sampler, walk)[-1], x_0, x_0) or (
        None,
        None,
    )
    return Samples(x_0, frames_x_t, frames_x_0)


def _walk_row(
    denoiser: Denoiser,
    sampler: Sampler,
    walk: Walk,
    keys: chex.PRNGKey | None,
    row: Any,
    countdown: chex.Array,
    slot: chex.Array,
    given: chex.Array | None,
) -> Walk:
    """Compute one row of the table; `slot` is the frame that x_t fills before it."""
    noise = Noise(None if keys is None else randomness.row_keys(keys, countdown), given)
    state, prediction = sampler.step(denoiser, walk.state, row, noise)
    return Walk(state, _keep(walk.frames, slot, walk.state.x_t, prediction.x_0))


def _check_x_T(sampler: Sampler, x_T: chex.Array) -> None:
    """Refuse an x_T in which the chain cannot compute, and tables that JAX cannot hold."""
    tables = sampler.schedule.alphas_bar.dtype
    randomness.check_precision(tables, "The sampler's table")
    if x_T.ndim < 2:
        raise UsageError(f"x_T has shape {x_T.shape}: its first axis must be that of the batch.")
    if jnp.promote_types(x_T.dtype, tables) != x_T.dtype:
        raise UsageError(
            f"x_T is {x_T.dtype}, but the sampler's tables are {tables}: give x_T of this dtype, "
            "or make the sampler with another."
        )


def _given_noise(
    sampler: Sampler,
    x: chex.Array,
    keys: chex.PRNGKey | None,
    step_noise: chex.Array | None,
) -> chex.Array | None:
    """Return the given noise, [N, draws, B, ...]; None where keys draw it or there is none.

    Raises:
      UsageError: of `sample`, on keys and noise.
    """
    example_keys = f"image_keys(base_key(seed), jnp.arange({len(x)}))"
    if keys is not None and _key_shape(keys) != (len(x),):
        raise UsageError(
            f"keys has shape {_key_shape(keys)}, but each of the {len(x)} images needs a key of "
            f"its own: {example_keys} of ddpm_jax.randomness."
        )
    if step_noise is None:
        if keys is None and sampler.draws:
            raise UsageError(
                f"This sampler draws noise in its steps: give keys, {example_keys} of "
                "ddpm_jax.randomness, or the noise itself as step_noise."
            )
        return None
    if not sampler.draws:
        raise UsageError("This sampler draws no noise in its steps: leave step_noise out.")
    wanted = (sampler.num_rows, *([sampler.draws] if sampler.draws > 1 else []), *x.shape)
    if step_noise.shape != wanted:
        raise UsageError(
            f"step_noise has shape {step_noise.shape}: this chain of {sampler.num_rows} rows needs "
            f"{wanted}."
        )
    return step_noise.reshape(sampler.num_rows, sampler.draws, *x.shape)


def _key_shape(keys: Any) -> tuple[int, ...]:
    """Return the shape of an array of keys, typed or of the older kind (two numbers each)."""
    shape = np.shape(keys) if not hasattr(keys, "shape") else keys.shape
    typed = hasattr(keys, "dtype") and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    return shape if typed else shape[:-1]


def _countdown(sampler: Sampler) -> np.ndarray:
    """Return what each row folds into the keys, int32 [N]: N-1, ..., 0."""
    return np.arange(sampler.num_rows, dtype=np.int32)[::-1]


def _walk_slots(sampler: Sampler, walk: Walk) -> np.ndarray:
    return _frame_slots(sampler.num_rows, 0 if walk.frames is None else len(walk.frames[0]))


def _frame_slots(num_rows: int, num_frames: int) -> np.ndarray:
    """Return the frame that each of the N+1 moments of a chain fills, int32 [N+1].

    K, which is past the end, stands for no frame.
    """
    if num_frames and not 2 <= num_frames <= num_rows + 1:
        raise UsageError(
            f"num_frames is {num_frames}: a chain of {num_rows} rows shows 2 to {num_rows + 1} "
            "frames; 0 is for none."
        )
    slots = np.full(num_rows + 1, num_frames, np.int32)
    slots[np.round(np.linspace(0, num_rows, num_frames)).astype(int)] = np.arange(num_frames)
    return slots


def _keep(frames: tuple | None, slot: chex.Array, *images: chex.Array) -> tuple | None:
    """Write images into their frame buffers at `slot`; a slot past the end is dropped."""
    if frames is None:
        return None
    return tuple(
        buffer.at[slot].set(image, mode="drop")
        for buffer, image in zip(frames, images, strict=True)
    )
