"""The records of a run on disk: `metrics.jsonl`, one line a report, which survive a kill and are cut back on a resume.

What is in a record is decided by the train step and the loop; who else is told, by `metrics.MetricWriter`.
"""

import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping

from ddpm_jax.files import reporting, write_atomically

RECORDS = "metrics.jsonl"
SECONDS = "seconds"  # in every record: wall time of the run so far, its interruptions left out
_DOING = "keep the metrics in"

Record = dict[str, float]


class Records:
    """Appends to `workdir/metrics.jsonl`.

    A record is one line, handed to the operating system before `append` returns: a kill loses at most the line being
    written. Nothing but the repair of `resume_step` touches the disk before the first line.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        resume_step: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Opens the records of a run and starts its clock.

        Args:
          workdir: the folder of the run; created when the first record is written.
          resume_step: number of updates in the checkpoint that training continues from, 0 to start over. Records of
            later steps, written by a run that was killed after its last checkpoint, are removed, since they will be
            written again. None keeps all of them. Either way a last line cut short by a kill is removed.
          clock: returns seconds.

        Raises:
          FailureError: the file of records cannot be read or repaired.
        """
        self._path = pathlib.Path(workdir) / RECORDS
        with reporting(self._path, _DOING):
            _repair(self._path, math.inf if resume_step is None else resume_step)
        kept = read(workdir)
        before = max((record.get(SECONDS, 0.0) for record in kept), default=0.0)
        self._clock, self._start = clock, clock() - before
        # A finished run that is started again draws its last grid again: what is said of it stands here already.
        self._resume_step = resume_step
        self._there = kept[-1].keys() if kept and kept[-1]["step"] == resume_step else frozenset()

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the metrics of `step`, the number of updates done, with the seconds of the run so far.

        JSON has no NaN and no infinity: both are stored as null, and `read` returns NaN for them. Metrics that the
        records of `resume_step` hold already are not written again.

        Raises:
          FailureError: the disk is full, or the folder cannot be written.
        """
        if step == self._resume_step:
            metrics = {name: value for name, value in metrics.items() if name not in self._there}
        if not metrics:
            return
        seconds = round(self._clock() - self._start, 3)
        stored = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = json.dumps({"step": int(step), SECONDS: seconds, **stored}, allow_nan=False) + "\n"
        with reporting(self._path, _DOING):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "ab") as file:
                file.write(line.encode())


def read(workdir: str | os.PathLike) -> list[Record]:
    """Returns the records of a run in the order of writing, [] if there are none yet.

    Every record has "step" (int). Lines of the same step, one after the other, are one record: a grid of samples adds
    what is measured on it. A line that is not a whole record, cut short by a kill, is left out.

    Raises:
      FailureError: the file exists and cannot be read.
    """
    path, records = pathlib.Path(workdir) / RECORDS, []
    with reporting(path, _DOING):
        for _, record in _parse(path):
            if records and records[-1]["step"] == record["step"]:
                records[-1] |= record
            else:
                records.append(record)
    return records


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
