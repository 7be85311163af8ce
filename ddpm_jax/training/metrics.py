"""What the training loop reports: averages between log lines, throughput, records on disk, a bar on the terminal.

Host side only: everything here takes numbers that have already left the device. Which metrics exist is decided by the
train step and the loop; drawing them belongs to `plotting`.
"""

import contextlib
import json
import math
import os
import pathlib
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO

import numpy as np
import tqdm

from ddpm_jax.errors import FailureError
from ddpm_jax.files import reporting, write_atomically

RECORDS = "metrics.jsonl"
TENSORBOARD = "tensorboard"

Record = dict[str, float]


class MetricWriter:
    """Appends metrics to `workdir/metrics.jsonl` and to TensorBoard event files in `workdir/tensorboard`.

    A record is one line, handed to the operating system before `write` returns: a kill loses at most the line being
    written. Nothing but the repair of `resume_step` touches the disk before the first write. One process of a run, the
    first, writes.
    """

    def __init__(self, workdir: str | os.PathLike, *, resume_step: int | None = None):
        """Opens the records of a run.

        Args:
          workdir: the folder of the run; created when the first record is written.
          resume_step: number of updates in the checkpoint that training continues from, 0 to start over. Records of
            later steps, written by a run that was killed after its last checkpoint, are removed, since they will be
            written again. None keeps all of them. Either way a last line cut short by a kill is removed.

        Raises:
          FailureError: the file of records cannot be read or repaired.
        """
        self._workdir = pathlib.Path(workdir)
        self._resume_step = resume_step
        self._events = None
        with reporting(self._records, "keep the metrics in"):
            _repair(self._records, math.inf if resume_step is None else resume_step)

    @property
    def _records(self) -> pathlib.Path:
        return self._workdir / RECORDS

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the metrics of `step`, the number of updates done.

        JSON has no NaN and no infinity: both are stored as null, and `read` returns NaN for them.

        Raises:
          FailureError: the disk is full, or the folder cannot be written.
        """
        metrics = {name: float(value) for name, value in metrics.items()}
        stored = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = json.dumps({"step": int(step), **stored}, allow_nan=False) + "\n"
        with reporting(self._records, "keep the metrics in"):
            self._workdir.mkdir(parents=True, exist_ok=True)
            with open(self._records, "ab") as file:
                file.write(line.encode())
        from tensorboardX import summary

        self._write_event(step, [summary.scalar(name, value) for name, value in metrics.items()])

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Shows uint8 [H, W, C], C = 1 or 3, under `name` in TensorBoard; the PNG on disk is the caller's to write.

        Raises:
          FailureError: as for `write`.
        """
        from tensorboardX import summary

        self._write_event(step, [summary.image(name, image, dataformats="HWC")])

    def close(self) -> None:
        """Closes the event file; harmless when repeated or when nothing was written."""
        events, self._events = self._events, None
        if events is not None:
            with reporting(self._workdir / TENSORBOARD, "keep the metrics in"):
                events.close()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _write_event(self, step: int, summaries: list) -> None:
        from tensorboardX.proto import event_pb2

        with reporting(self._workdir / TENSORBOARD, "keep the metrics in"):
            try:
                if self._events is None:
                    self._events = self._open_events()
                for item in summaries:
                    event = event_pb2.Event(wall_time=time.time(), step=int(step), summary=item)
                    self._events.write(event.SerializeToString())
                self._events.flush()
            except OSError:
                # What could not be written is still buffered: closing fails once more, but gives the file back.
                with contextlib.suppress(OSError, FailureError):
                    self.close()
                raise

    def _open_events(self):
        # tensorboardX is slow to import, hence here. Its SummaryWriter writes in a thread that dies of a full disk and
        # leaves the training waiting on a queue for ever; the writer beneath it reports the error to the caller.
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter

        folder = self._workdir / TENSORBOARD
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names, hence the time comes first.
        now = time.time()
        events = RecordWriter(str(folder / f"events.out.tfevents.{now:.6f}.{socket.gethostname()}.{os.getpid()}"))
        head = [event_pb2.Event(wall_time=now, file_version="brain.Event:2")]
        if self._resume_step is not None:
            # Makes TensorBoard forget the later events of the files before this one.
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            head.append(event_pb2.Event(wall_time=now, step=self._resume_step + 1, session_log=start))
        for event in head:
            events.write(event.SerializeToString())
        return events


def read(workdir: str | os.PathLike) -> list[Record]:
    """Returns the records of a run in the order of writing, [] if there are none yet.

    Every record has "step" (int). A line that is not a whole record, cut short by a kill, is left out.

    Raises:
      FailureError: the file exists and cannot be read.
    """
    path = pathlib.Path(workdir) / RECORDS
    with reporting(path, "keep the metrics in"):
        return [record for _, record in _parse(path)]


def _parse(path: pathlib.Path) -> Iterator[tuple[bytes, Record]]:
    """Yields the whole lines of `path`, without the newline, each with its record."""
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield line, {name: math.nan if value is None else value for name, value in record.items()}


def _repair(path: pathlib.Path, last_step: float) -> None:
    """Leaves the whole records up to `last_step`, byte for byte; does not write when there is nothing to repair."""
    if not path.exists():
        return
    repaired = b"".join(line + b"\n" for line, record in _parse(path) if record["step"] <= last_step)
    if repaired != path.read_bytes():
        write_atomically(path, repaired)


class Averages:
    """Means of per-step metrics since they were last asked for.

    A metric is a number, or a pair (sum, count) for a mean over some of the examples only. Either may be a vector [K],
    which stands for K metrics named `name1` ... `nameK`: the loss by quartile of t is the pair of two [4] vectors.

      averages.add({"loss": 0.5, "loss_q": (sums, counts)})
      averages.means()  # {"loss": 0.5, "loss_q1": ..., "loss_q4": ...}, without the quartiles that no t fell into
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}

    def add(self, metrics: Mapping[str, object]) -> None:
        """Takes in the metrics of one step: numbers, [K] vectors, or tuples (sum, count) of either, count >= 0."""
        for name, value in metrics.items():
            total, count = value if isinstance(value, tuple) else (value, np.ones(np.shape(value)))
            total, count = np.broadcast_arrays(np.asarray(total, np.float64), np.asarray(count, np.float64))
            names = [name] if total.ndim == 0 else [f"{name}{i}" for i in range(1, len(total) + 1)]
            for key, addend, weight in zip(names, total.reshape(-1), count.reshape(-1), strict=True):
                self._sums[key] = self._sums.get(key, 0.0) + float(addend)
                self._counts[key] = self._counts.get(key, 0.0) + float(weight)

    def means(self) -> dict[str, float]:
        """Returns the means and starts over; a metric whose counts are all 0 is left out."""
        means = {name: total / self._counts[name] for name, total in self._sums.items() if self._counts[name] > 0}
        self._sums, self._counts = {}, {}
        return means


class Throughput:
    """Images per second and the share of the time spent waiting for data, since the last reading."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        """Starts counting; `clock` returns seconds."""
        self._clock = clock
        self._restart()

    def _restart(self) -> None:
        self._start = self._clock()
        self._images = 0
        self._waiting = 0.0
        self._paused = 0.0

    def add(self, images: int) -> None:
        """Counts the images, over all devices and hosts, of one step."""
        self._images += images

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Its body fetches the next batch."""
        start = self._clock()
        try:
            yield
        finally:
            self._waiting += self._clock() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Its body is no training: compiling, sampling a grid, saving. That time counts in neither figure."""
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start

    def read(self) -> dict[str, float]:
        """Returns `images_per_second` and `data_wait` in [0, 1], and starts over; {} if no time was spent training."""
        seconds = self._clock() - self._start - self._paused
        images, waiting = self._images, self._waiting
        self._restart()
        if seconds <= 0:
            return {}
        return {"images_per_second": images / seconds, "data_wait": waiting / seconds}


_IN_BAR = ("loss", "grad_norm", "images_per_second")  # More would push the bar off the line.
_LABELS = {"images_per_second": "images/s"}


class Progress:
    """A bar on a terminal, plain lines elsewhere: in a log file a bar is one line of control characters."""

    def __init__(self, total_steps: int, *, start_step: int = 0, file: TextIO | None = None):
        """Starts at `start_step` updates of `total_steps`; writes to `file`, by default standard error."""
        self._total = total_steps
        self._file = sys.stderr if file is None else file
        self._bar = None
        if self._file.isatty():
            self._bar = tqdm.tqdm(
                total=total_steps, initial=start_step, unit="step", file=self._file, dynamic_ncols=True
            )

    def update(self, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Reports that `step` updates are done; without metrics only a bar moves, and no line is printed."""
        if self._bar is not None:
            if metrics is not None:
                shown = {name: metrics[name] for name in _IN_BAR if name in metrics}
                self._bar.set_postfix_str(self._format(shown), refresh=False)
            self._bar.update(step - self._bar.n)
        elif metrics is not None:
            print(f"step {step}/{self._total} {self._format(metrics)}", file=self._file, flush=True)

    def close(self) -> None:
        """Leaves the cursor on a fresh line; harmless when repeated."""
        if self._bar is not None:
            self._bar.close()

    def _format(self, metrics: Mapping[str, float]) -> str:
        return " ".join(f"{_LABELS.get(name, name)} {_short(value)}" for name, value in metrics.items())


def _short(value: float) -> str:
    """Four significant digits, and large numbers in full: 0.0432, 2e-05, 12345."""
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
