"""The writer of training metrics: to the records, TensorBoard and other viewers.

Host side only: it takes numbers that have left the device. Means are in `averages`, rates in
`throughput`, what a terminal shows in `progress`; drawing belongs to `plotting`.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from ddpm_jax.monitoring.averages import Histogram
from ddpm_jax.monitoring.records import Records
from ddpm_jax.monitoring.tensorboard import Events


class Viewer(Protocol):
    """A program in which a person watches a run."""

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def image(self, step: int, name: str, image: np.ndarray) -> None: ...

    def histogram(self, step: int, name: str, edges: np.ndarray, values: np.ndarray) -> None: ...

    def close(self) -> None: ...


class MetricWriter:
    """A writer of metrics to `workdir/metrics.jsonl`, TensorBoard and other viewers.

    Only the primary process of a run writes. The methods raise FailureError if the disk is full or
    the folder cannot be written.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        resume_step: int | None = None,
        viewers: Sequence[Viewer] = (),
    ):
        """Open the records of a run.

        Args:
          workdir: the folder of the run; created when the first record is written.
          resume_step: number of updates in the checkpoint that training continues from; see
            `records.Records`.
          viewers: receive all that TensorBoard receives; closed with this.

        Raises:
          FailureError: the file of records cannot be read or repaired.
        """
        self._records = Records(workdir, resume_step=resume_step)
        self._events = Events(workdir, resume_step=resume_step)
        self._viewers = [self._events, *viewers]

    def write(
        self, step: int, metrics: Mapping[str, float], *, unseen: Mapping[str, float] = {}
    ) -> None:
        """Record the metrics of `step`, the number of updates done; `unseen` goes to no viewer."""
        metrics = {name: float(value) for name, value in metrics.items()}
        self._records.append(step, {**metrics, **unseen})
        for viewer in self._viewers:
            viewer.scalars(step, metrics)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Show uint8 [H, W, C], C = 1 or 3, under `name`; the caller writes the PNG on disk."""
        for viewer in self._viewers:
            viewer.image(step, name, image)

    def histogram(self, step: int, name: str, histogram: Histogram) -> None:
        """Show a histogram under `name`; the records hold numbers only."""
        for viewer in self._viewers:
            viewer.histogram(step, name, *histogram)

    def flush(self) -> None:
        """Make everything written so far permanent; in a bucket it was not before."""
        self._records.flush()
        self._events.flush()

    def close(self) -> None:
        """Write what is pending and close the viewers; harmless when repeated."""
        with contextlib.ExitStack() as stack:
            for viewer in self._viewers:
                stack.callback(viewer.close)
            stack.callback(self._records.flush)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()
