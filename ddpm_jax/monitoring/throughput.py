"""Speed of training, and how long the device waits for data."""

import contextlib
import math
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax


class _Watch:
    """A thread that waits for each result, and so knows since when the device has been idle."""

    def __init__(self, clock: Callable[[], float]):
        # how many have arrived, and when the last did
        self._results, self._arrived = queue.SimpleQueue(), [(0, -math.inf)]
        self._given = 0
        # A daemon: the end of the program does not wait for a device that hangs.
        work = (self._results, self._arrived, clock)
        threading.Thread(target=_note_arrivals, args=work, name="watch", daemon=True).start()
        weakref.finalize(self, self._results.put, None)

    def give(self, result: Any) -> None:
        """Watch for a result still on the device, after those given before."""
        self._given += 1
        self._results.put((result,))

    def idle_since(self) -> float | None:
        """Return when the last result arrived, or None if it is still being computed.

        Without any result it is long ago.
        """
        count, when = self._arrived[0]
        return when if count == self._given else None


def _note_arrivals(
    results: queue.SimpleQueue, arrived: list[tuple[int, float]], clock: Callable[[], float]
) -> None:
    while (item := results.get()) is not None:
        # the loop meets the same error when it reads this result
        with contextlib.suppress(Exception):
            jax.block_until_ready(item)
        arrived[0] = arrived[0][0] + 1, clock()


class Throughput:
    """Images per second, and the share of the time that the device waited for a batch."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        """Start counting; `clock` returns seconds."""
        self._clock, self._watch = clock, _Watch(clock)
        self._restart()

    def _restart(self) -> None:
        self._start = self._clock()
        self._images = 0
        self._waiting = 0.0
        self._paused = 0.0

    def add(self, images: int, result: Any = None) -> None:
        """Count the images of one call, over all devices and hosts; `result` is its output."""
        self._images += images
        self._watch.give(result)

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Time its body, which fetches a batch.

        Time after the last result arrived counts as waiting.
        """
        start = self._clock()
        try:
            yield
        finally:
            end, idle_since = self._clock(), self._watch.idle_since()
            if idle_since is not None:
                self._waiting += max(0.0, end - max(start, idle_since))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave its body out of both figures: compiling, sampling a grid, saving."""
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start

    def read(self) -> dict[str, float]:
        """Return `images_per_second` and `data_wait` in [0, 1], and start over.

        {} if no time was spent training.
        """
        seconds = self._clock() - self._start - self._paused
        images, waiting = self._images, self._waiting
        self._restart()
        if seconds <= 0:
            return {}
        return {"images_per_second": images / seconds, "data_wait": waiting / seconds}
