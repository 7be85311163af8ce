"""The records of a run, `metrics.jsonl`: one line each, kept through kills and resumes.

A bucket has no appending, so there the lines since the last save become one more object, a part:
`metrics/NNNNNN.jsonl`. A run may be copied to a disk, or back, and continued.

The content of a record is decided by the train step and the loop; `metric_writer.MetricWriter`
passes it on to viewers.
"""

import concurrent.futures
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping

from ddpm_jax.files import as_path, is_remote, read_file, reporting, write_atomically
from ddpm_jax.numerals import is_whole
from ddpm_jax.schema import Malformed, Number, Table, Whole, parse

RECORDS = "metrics.jsonl"
_PARTS = "metrics"  # the folder of those of a bucket
_AT_A_TIME = 16  # parts read at once: each is a wait for the network
SECONDS = "seconds"  # in every record: wall time of the run so far, its interruptions left out
_DOING = "keep the metrics in"

_LONGEST = 1 << 20  # bytes of a line
_RECORD = Table({"step": Whole()}, others=Number(null=True))

Record = dict[str, float]


class Records:
    """The lines of `workdir/metrics.jsonl`, or parts in a bucket, to append to.

    A record is one line, passed to the operating system before `append` returns: a kill loses at
    most the line being written. In a bucket it is stored by `flush`. Only the repair for
    `resume_step` touches the disk before the first line.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        resume_step: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Open the records of a run and start its clock.

        Args:
          workdir: the folder of the run; created when the first record is written.
          resume_step: number of updates in the checkpoint that training continues from, 0 to start
            over. Records of later steps, written by a run that was killed after its last
            checkpoint, are removed, since they will be written again. None keeps all of them.
            Either way a last line cut short by a kill is removed.
          clock: returns seconds.

        Raises:
          FailureError: the file of records cannot be read or repaired.
        """
        self._path, self._waiting = as_path(workdir) / RECORDS, b""
        with reporting(self._path, _DOING):
            written = _contents(self._path.parent)
            for path, data in written.items():
                _repair(path, data, math.inf if resume_step is None else resume_step)
        self._next = 1 + max((int(path.stem) for path in written if path != self._path), default=0)
        kept = read(workdir)
        before = max((record.get(SECONDS, 0.0) for record in kept), default=0.0)
        self._clock, self._start = clock, clock() - before
        # A finished run that is started again draws its last grid again, whose metrics are already
        # here.
        self._resume_step = resume_step
        self._there = kept[-1].keys() if kept and kept[-1]["step"] == resume_step else frozenset()

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of `step`, the number of updates done, with the seconds so far.

        JSON has no NaN and no infinity: both are stored as null, and `read` returns NaN for them.
        Metrics that the records of `resume_step` hold already are not written again.

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
        if is_remote(self._path):
            self._waiting += line.encode()
            return
        with reporting(self._path, _DOING):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "ab") as file:
                file.write(line.encode())

    def flush(self) -> None:
        """Write pending lines to the bucket, as one object; on a disk there are none.

        Raises:
          FailureError: the bucket refuses.
        """
        if not self._waiting:
            return
        path = self._path.parent / _PARTS / f"{self._next:06}.jsonl"
        with reporting(path, _DOING):
            write_atomically(path, self._waiting)
        self._next, self._waiting = self._next + 1, b""


def read(workdir: str | os.PathLike) -> list[Record]:
    """Return the records of a run in the order of writing, [] if there are none yet.

    Every record has "step" (int), and numbers. Consecutive lines of the same step are one record: a
    grid of samples adds the metrics measured on it. A malformed line, cut short by a kill say, is
    left out.

    Raises:
      FailureError: the file exists and cannot be read.
    """
    workdir, records = as_path(workdir), []
    with reporting(workdir / RECORDS, _DOING):
        written = _contents(workdir)
    lines = [record for data in written.values() for _, record in _parse(data)]
    if len(written) > 1:  # of a run that was copied, the file may be older than the parts, or newer
        lines.sort(key=lambda record: record["step"])
    for record in lines:
        if records and records[-1]["step"] == record["step"]:
            records[-1] |= record
        else:
            records.append(record)
    return records


def _contents(workdir: pathlib.Path) -> dict[pathlib.Path, bytes]:
    """Return the contents of the file and of the parts, in the order of writing."""
    paths = sorted(path for path in (workdir / _PARTS).glob("*.jsonl") if is_whole(path.stem))
    if (workdir / RECORDS).exists():
        paths.insert(0, workdir / RECORDS)
    with concurrent.futures.ThreadPoolExecutor(_AT_A_TIME) as pool:
        return dict(zip(paths, pool.map(read_file, paths), strict=True))


def _parse(data: bytes) -> Iterator[tuple[bytes, Record]]:
    """Yield the complete lines, without the newline, each with its record."""
    for line in data.split(b"\n"):
        try:
            record = parse(line, _RECORD, largest=_LONGEST)
        except Malformed:
            continue
        yield line, {name: math.nan if value is None else value for name, value in record.items()}


def _repair(path: pathlib.Path, data: bytes, last_step: float) -> None:
    """Keep the complete records up to `last_step`, byte for byte.

    Nothing is written if nothing needs repair.
    """
    repaired = b"".join(
        line + b"\n" for line, record in _parse(data) if record["step"] <= last_step
    )
    if repaired != data:
        write_atomically(path, repaired)
