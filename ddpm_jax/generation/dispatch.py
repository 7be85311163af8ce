"""Long computations in dispatches of bounded time.

Between dispatches the host checks signals and time limits and reports progress.

A chain of a thousand network evaluations as one program blocks the host for minutes, Ctrl-C
included. Here the program computes the rows first..last-1, its bounds being arguments; the number
of rows of a dispatch follows from measured times, so that it takes about `SECONDS` on any device.
The caller defines a row: one of a sampler's table, a timestep of the bound, a step of an ODE
solver.
"""

import collections
import time
from collections.abc import Callable
from typing import Any, Protocol

import chex
import jax
import numpy as np

from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.distributed import interrupt
from ddpm_jax.samplers import loop
from ddpm_jax.samplers.loop import Sampler

SECONDS = 0.5  # of a dispatch, about; two are in flight, so that a signal is seen within a second
AHEAD = 2  # dispatches in flight: the device never waits for the host
# at most, from one dispatch to the next: the first is one row, of unknown time
GROWTH = 4
PARTS = 250  # dispatches of processes that must all make the same number, whatever their time


class Watch(Protocol):
    """A callback between dispatches, with the number of finished rows and their total."""

    def __call__(self, done: int, total: int) -> None: ...


def unwatched(done: int, total: int) -> None:
    """Do nothing, as a `Watch`."""


class Pace:
    """The number of rows of the next dispatch, which should take `SECONDS`, from past times."""

    def __init__(self) -> None:
        self.rows = 1

    def learn(self, rows: int, seconds: float) -> None:
        """Update the number of rows from a dispatch of `rows` rows that took `seconds`."""
        fitting = SECONDS * rows / max(seconds, 1e-9)
        self.rows = int(max(1, min(fitting, GROWTH * rows)))


def sample(
    make_denoiser: Callable[[Any], Denoiser],
    sampler: Sampler,
    params: Any,
    x_T: chex.Array,
    keys: chex.PRNGKey | None = None,
    *,
    num_frames: int = 0,
) -> loop.Samples:
    """Run `samplers.loop.sample` for one batch on one device, in dispatches; see `make_sample`."""
    return make_sample(make_denoiser, sampler, num_frames=num_frames)(params, x_T, keys)


def make_sample(
    make_denoiser: Callable[[Any], Denoiser], sampler: Sampler, *, num_frames: int = 0
) -> Callable[..., loop.Samples]:
    """Return run(params, x_T, keys=None) -> `Samples`, compiled once for a shape of x_T.

    `params` are those of `make_denoiser`.

    Run raises:
      UsageError: `num_frames` that this chain does not have.
      Stopped: see `walk`.
    """
    begin = jax.jit(lambda x_T: loop.begin(sampler, x_T, num_frames=num_frames))
    finish = jax.jit(lambda chains: loop.finish(sampler, chains))
    segment = jax.jit(
        lambda params, chains, keys, first, last: (
            loop.advance(make_denoiser(params), sampler, chains, keys, first, last),
            last == sampler.num_rows,
        )
    )
    pace = Pace()

    def run(params: Any, x_T: chex.Array, keys: chex.PRNGKey | None = None) -> loop.Samples:
        chains = walk(
            lambda chains, first, last: segment(params, chains, keys, first, last),
            begin(x_T),
            sampler.num_rows,
            pace=pace,
        )
        return finish(chains)

    return run


def walk(
    advance: Callable[[Any, np.int32, np.int32], tuple[Any, Any]],
    carry: Any,
    total: int,
    *,
    pace: Pace,
    watch: Watch = unwatched,
    together: bool = False,
) -> Any:
    """Compute the rows 0..total-1 in dispatches and return the last carry.

    Fewer rows where `advance` reports the end. The carry may still be under computation.

    Args:
      advance: (carry, first, last) -> (the carry after these rows, bool [...]: whether nothing is
        left to compute, which, if true on all devices, ends the walk before the last row). It
        dispatches and returns; the carry's buffers may be donated.
      carry: before the first row.
      total: at least 1.
      pace: kept by the caller, so that the next computation of this kind starts with the dispatches
        of this one's end.
      watch: see `Watch`.
      together: whether all processes of a run make the same dispatches and stop after the same one.

    Raises:
      Stopped: by a signal or the time limit of an `Interrupt` that is entered.
    """
    in_flight: collections.deque[tuple[int, int, Any]] = collections.deque()
    done = first = 0
    fixed = -(-total // PARTS) if together and jax.process_count() > 1 else None
    since = None
    while done < total:
        if first < total:
            last = min(total, first + (fixed or pace.rows))
            carry, ready = advance(carry, np.int32(first), np.int32(last))
            in_flight.append((first, last, ready))
            first = last
            since = time.perf_counter() if since is None else since  # after compiling
        if first == total or len(in_flight) == AHEAD:
            before, done, ready = in_flight.popleft()
            finished = np.all(np.asarray(ready))  # waits for it
            now = time.perf_counter()
            pace.learn(done - before, now - since)
            since = now
            watch(done, total)
            if finished:
                break
            if done < total:
                interrupt.check(together=together)
    return carry
