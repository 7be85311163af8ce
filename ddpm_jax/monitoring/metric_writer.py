"""What the training loop reports: averages between log lines, throughput, the writers, a bar on the
terminal.

Host side only: everything here takes numbers that have already left the device. Which metrics exist
is decided by the train step and the loop; where they go is in `records`, `tensorboard` and
`weights_and_biases`; drawing them belongs to `plotting`.
"""

import contextlib
import math
import os
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TextIO

import jax
import numpy as np
import tqdm

from ddpm_jax.errors import UsageError, visible
from ddpm_jax.monitoring.progress import Counter
from ddpm_jax.monitoring.records import RECORDS, Record, Records, read
from ddpm_jax.monitoring.tensorboard import Events
from ddpm_jax.schema import Malformed, Number, Table, check
from ddpm_jax.training.objective import ByTime

__all__ = [
    "RECORDS",
    "Averages",
    "Histogram",
    "MetricWriter",
    "Progress",
    "Record",
    "Throughput",
    "Viewer",
    "read",
]


class Histogram(NamedTuple):
    """Bars."""

    edges: np.ndarray  # [K + 1], increasing
    values: np.ndarray  # [K], not negative


class Viewer(Protocol):
    """A program that a person watches a run with."""

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def image(self, step: int, name: str, image: np.ndarray) -> None: ...

    def histogram(self, step: int, name: str, edges: np.ndarray, values: np.ndarray) -> None: ...

    def close(self) -> None: ...


class MetricWriter:
    """Appends metrics to `workdir/metrics.jsonl`, and shows them in TensorBoard and in what other
    viewers there are.

    One process of a run, the first, writes. The methods raise FailureError: the disk is full, or
    the folder cannot be written.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        resume_step: int | None = None,
        viewers: Sequence[Viewer] = (),
    ):
        """Opens the records of a run.

        Args:
          workdir: the folder of the run; created when the first record is written.
          resume_step: number of updates in the checkpoint that training continues from; see
            `records.Records`.
          viewers: to be told all that TensorBoard is told; closed with this.

        Raises:
          FailureError: the file of records cannot be read or repaired.
        """
        self._records = Records(workdir, resume_step=resume_step)
        self._events = Events(workdir, resume_step=resume_step)
        self._viewers = [self._events, *viewers]

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the metrics of `step`, the number of updates done."""
        metrics = {name: float(value) for name, value in metrics.items()}
        self._records.append(step, metrics)
        for viewer in self._viewers:
            viewer.scalars(step, metrics)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Shows uint8 [H, W, C], C = 1 or 3, under `name`; the PNG on disk is the caller's to
        write."""
        for viewer in self._viewers:
            viewer.image(step, name, image)

    def histogram(self, step: int, name: str, histogram: Histogram) -> None:
        """Shows bars under `name`; the records hold numbers only."""
        for viewer in self._viewers:
            viewer.histogram(step, name, *histogram)

    def flush(self) -> None:
        """What was written is there to stay after this; in a bucket it was not before."""
        self._records.flush()
        self._events.flush()

    def close(self) -> None:
        """Writes what waits and closes the viewers; harmless when repeated or when nothing was
        written."""
        with contextlib.ExitStack() as stack:
            for viewer in self._viewers:
                stack.callback(viewer.close)
            stack.callback(self._records.flush)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()


_BARS = Table({"sum": None, "count": None})
_AVERAGES = Table(
    {},
    {
        "sums": Table(others=Number()),
        "counts": Table(others=Number()),
        "by_time": Table(others=_BARS),
    },
)


class Averages:
    """Means of per-step metrics since they were last asked for.

    A metric is a number, or a pair (sum, count) for a mean over some of the examples only. Either
    may be a vector [K], which stands for K metrics named `name1` ... `nameK`: the loss by quartile
    of t is the pair of two [4] vectors.

      averages.add({"loss": 0.5, "loss_q": (sums, counts)})
      averages.means()  # {"loss": 0.5, "loss_q1": ..., "loss_q4": ...}, without the quartiles that
      no t fell into

    A pair that is an `objective.ByTime` becomes a histogram instead.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}
        self._by_time: dict[str, ByTime] = {}

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Takes in the metrics of one step: numbers, [K] vectors, or tuples (sum, count) of either,
        count >= 0."""
        for name, value in metrics.items():
            if isinstance(value, ByTime):
                total, count = (np.asarray(part, np.float64) for part in value)
                before = self._by_time.get(name, ByTime(0.0, 0.0))
                self._by_time[name] = ByTime(before.sum + total, before.count + count)
                continue
            total, count = value if isinstance(value, tuple) else (value, np.ones(np.shape(value)))
            total, count = np.broadcast_arrays(
                np.asarray(total, np.float64), np.asarray(count, np.float64)
            )
            names = [name] if total.ndim == 0 else [f"{name}{i}" for i in range(1, len(total) + 1)]
            for key, addend, weight in zip(
                names, total.reshape(-1), count.reshape(-1), strict=True
            ):
                self._sums[key] = self._sums.get(key, 0.0) + float(addend)
                self._counts[key] = self._counts.get(key, 0.0) + float(weight)

    def get_state(self) -> dict[str, Any]:
        """What was added since the means were last asked for, JSON-able; {} for nothing, or a sum
        that is no number."""
        numbers = [
            *self._sums.values(),
            *(x for pair in self._by_time.values() for part in pair for x in part),
        ]
        if not self._counts or not np.all(np.isfinite(numbers)):
            return {}
        by_time = {
            name: {"sum": list(s), "count": list(c)} for name, (s, c) in self._by_time.items()
        }
        return {"sums": dict(self._sums), "counts": dict(self._counts), "by_time": by_time}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `get_state` returned.

        Raises:
          UsageError: it is none.
        """
        try:
            check(state, _AVERAGES)
            by_time = {
                name: ByTime(*(np.array(part[field], np.float64) for field in ("sum", "count")))
                for name, part in state.get("by_time", {}).items()
            }
        except (Malformed, ValueError, TypeError) as error:
            raise UsageError(f"The averages in the checkpoint are malformed: {error}.") from error
        self._sums, self._counts = dict(state.get("sums", {})), dict(state.get("counts", {}))
        self._by_time = by_time

    def means(self) -> dict[str, float]:
        """Returns the means and starts over; a metric whose counts are all 0 is left out."""
        means = {
            name: total / self._counts[name]
            for name, total in self._sums.items()
            if self._counts[name] > 0
        }
        self._sums, self._counts = {}, {}
        return means

    def histograms(self) -> dict[str, Histogram]:
        """Returns the means over each part of 0 <= t/T < 1 and starts over; 0 where no t fell."""
        by_time, self._by_time = self._by_time, {}
        return {
            name: Histogram(np.linspace(0.0, 1.0, len(total) + 1), total / np.maximum(count, 1))
            for name, (total, count) in by_time.items()
        }


class _Watch:
    """Knows since when the device has had nothing to do: a thread of its own waits for each
    result."""

    def __init__(self, clock: Callable[[], float]):
        # the number of the last, and when
        self._results, self._arrived = queue.SimpleQueue(), [(0, -math.inf)]
        self._given = 0
        # A daemon: the end of the program does not wait for a device that hangs.
        work = (self._results, self._arrived, clock)
        threading.Thread(target=_note_arrivals, args=work, name="watch", daemon=True).start()
        weakref.finalize(self, self._results.put, None)

    def give(self, result: Any) -> None:
        """Takes a result still on the device, after those given before."""
        self._given += 1
        self._results.put((result,))

    def idle_since(self) -> float | None:
        """When the last result arrived, None while it has not; long ago where none was given."""
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
    """Images per second, and the share of the time that the device had nothing to do for want of a
    batch."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        """Starts counting; `clock` returns seconds."""
        self._clock, self._watch = clock, _Watch(clock)
        self._restart()

    def _restart(self) -> None:
        self._start = self._clock()
        self._images = 0
        self._waiting = 0.0
        self._paused = 0.0

    def add(self, images: int, result: Any = None) -> None:
        """Counts the images, over all devices and hosts, of one call; `result` is what that will
        return."""
        self._images += images
        self._watch.give(result)

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Its body fetches the next batch. Only what it takes after the last call's result has
        arrived is waiting."""
        start = self._clock()
        try:
            yield
        finally:
            end, idle_since = self._clock(), self._watch.idle_since()
            if idle_since is not None:
                self._waiting += max(0.0, end - max(start, idle_since))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Its body is no training: compiling, sampling a grid, saving. That time counts in neither
        figure."""
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start

    def read(self) -> dict[str, float]:
        """Returns `images_per_second` and `data_wait` in [0, 1], and starts over; {} if no time was
        spent training."""
        seconds = self._clock() - self._start - self._paused
        images, waiting = self._images, self._waiting
        self._restart()
        if seconds <= 0:
            return {}
        return {"images_per_second": images / seconds, "data_wait": waiting / seconds}


# More would push the bar off the line.
_IN_BAR = ("loss", "grad_norm", "images_per_second", "data_wait")
_LABELS = {"images_per_second": "images/s", "data_wait": "data wait"}


class Progress:
    """A bar on a terminal, plain lines elsewhere: in a log file a bar is one line of control
    characters."""

    def __init__(self, total_steps: int, *, start_step: int = 0, file: TextIO | None = None):
        """Starts at `start_step` updates of `total_steps`; writes to `file`, by default standard
        error."""
        self._total = total_steps
        self._file = sys.stderr if file is None else file
        self._bar = self._drawn = None
        if self._file.isatty():
            self._bar = tqdm.tqdm(
                total=total_steps,
                initial=start_step,
                unit="step",
                file=self._file,
                dynamic_ncols=True,
            )

    def update(self, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Reports that `step` updates are done; without metrics only a bar moves, and no line is
        printed."""
        if self._bar is not None:
            if metrics is not None:
                shown = {name: metrics[name] for name in _IN_BAR if name in metrics}
                self._bar.set_postfix_str(self._format(shown), refresh=False)
            self._bar.update(step - self._bar.n)
        elif metrics is not None:
            print(f"step {step}/{self._total} {self._format(metrics)}", file=self._file, flush=True)

    def drawing(self, what: str, done: int, total: int) -> None:
        """Reports that the part done/total of a picture is drawn: in the bar, or by a line now and
        then."""
        if self._bar is not None:
            self._bar.set_description_str(
                f"drawing {what}, {done / total:.0%}" if done < total else ""
            )
            return
        if self._drawn is None:
            self._drawn = Counter(f"drawing {what}", total, unit="row", file=self._file)
        self._drawn.add(done - self._drawn.done)
        if done == total:
            self._drawn = None

    def say(self, line: str) -> None:
        """Prints a line above the bar, or after the lines so far."""
        line = visible(line)
        if self._bar is not None:
            self._bar.write(line, file=self._file)
        else:
            print(line, file=self._file, flush=True)

    def close(self) -> None:
        """Leaves the cursor on a fresh line; harmless when repeated."""
        if self._bar is not None:
            self._bar.close()

    def _format(self, metrics: Mapping[str, float]) -> str:
        return " ".join(
            f"{_LABELS.get(name, name)} {_short(name, value)}" for name, value in metrics.items()
        )


def _short(name: str, value: float) -> str:
    """Four significant digits, large numbers in full, a share in per cent: 0.0432, 2e-05, 12345,
    3.1%."""
    if name == "data_wait":
        return f"{value:.1%}"
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
