"""Long computations in dispatches of bounded time, between which the host looks at signals, time
limits and progress.

A chain of a thousand network evaluations as one program keeps the host waiting for minutes, deaf to
Ctrl-C. Here such a computation is a program that does the rows first..last-1 of it, its bounds
being arguments; how many rows a dispatch does is measured, so that it takes about `SECONDS` on any
device. What a row is, is the caller's: a row of a sampler's table, a timestep of the bound, a step
of an ODE's solver.
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
# at most, from one dispatch to the next: the first is one row, of a time that nobody knows
GROWTH = 4
PARTS = 250  # dispatches of processes that must all make as many, whatever the time they take


class Watch(Protocol):
    """Called between dispatches with the rows that are done, of how many: for a bar."""

    def __call__(self, done: int, total: int) -> None: ...


def unwatched(done: int, total: int) -> None:
    """Looks at nothing."""


class Pace:
    """How many rows the next dispatch does: as many as take `SECONDS`, by the time of those
    before."""

    def __init__(self) -> None:
        self.rows = 1

    def learn(self, rows: int, seconds: float) -> None:
        """A dispatch of so many rows kept the device busy for so long."""
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
    """`samplers.loop.sample` of one batch on one device, in dispatches; `params` are those of
    `make_denoiser`.

    Raises:
      UsageError: `num_frames` not of this chain.
      Stopped: see `walk`.
    """
    segment = jax.jit(
        lambda params, chains, keys, first, last: (
            loop.advance(make_denoiser(params), sampler, chains, keys, first, last),
            last == sampler.num_rows,
        )
    )
    chains = walk(
        lambda chains, first, last: segment(params, chains, keys, first, last),
        jax.jit(lambda x_T: loop.begin(sampler, x_T, num_frames=num_frames))(x_T),
        sampler.num_rows,
        pace=Pace(),
    )
    return jax.jit(lambda chains: loop.finish(sampler, chains))(chains)


def walk(
    advance: Callable[[Any, np.int32, np.int32], tuple[Any, Any]],
    carry: Any,
    total: int,
    *,
    pace: Pace,
    watch: Watch = unwatched,
    together: bool = False,
) -> Any:
    """Does the rows 0..total-1 in dispatches, or fewer; returns the last carry, which may still be
    on its way.

    Args:
      advance: (carry, first, last) -> (the carry after these rows, bool [...]: whether nothing is
        left to do, which on all devices ends the walk before the last row). It dispatches and
        returns; the carry's buffers may be donated.
      carry: before the first row.
      total: at least 1.
      pace: kept by the caller, so that the next computation of the kind begins as fast as this one
        ended.
      watch: see `Watch`.
      together: all processes of a run walk alike and stop alike: they make the same dispatches.

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
