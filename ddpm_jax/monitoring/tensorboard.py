"""TensorBoard event files, written without TensorFlow: scalars, pictures and histograms.

A bucket has no appending, so there the events since the last save become a file of their own.
TensorBoard reads the files of a folder one after the other.
"""

import contextlib
import io
import os
import socket
import time
import types
from collections.abc import Mapping

import numpy as np

from ddpm_jax.errors import FailureError
from ddpm_jax.files import as_path, is_remote, reporting, write_atomically

TENSORBOARD = "tensorboard"


class Events:
    """An event file in `workdir/tensorboard`, created by the first event."""

    def __init__(self, workdir: str | os.PathLike, *, resume_step: int | None = None):
        """Store where events go; events of older files after `resume_step` are hidden."""
        self._folder = as_path(workdir) / TENSORBOARD
        self._resume_step = resume_step
        self._file = None

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write numbers; raises FailureError, as all of these, if the disk is full."""
        from tensorboardX import summary

        self._write(step, [summary.scalar(name, value) for name, value in metrics.items()])

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Show uint8 [H, W, C], C = 1 or 3."""
        from tensorboardX import summary

        self._write(step, [summary.image(name, image, dataformats="HWC")])

    def histogram(self, step: int, name: str, edges: np.ndarray, values: np.ndarray) -> None:
        """Show values [K], not negative, as bars over edges [K + 1], increasing.

        TensorBoard draws 30 bars from the first edge to the last: of 30 equal ones it shows the
        heights as they are.
        """
        from tensorboardX.proto import summary_pb2

        centres = (edges[1:] + edges[:-1]) / 2
        histogram = summary_pb2.HistogramProto(
            min=edges[0],
            max=edges[-1],
            num=values.sum(),
            sum=values @ centres,
            sum_squares=values @ centres**2,
            bucket_limit=edges[1:],
            bucket=values,
        )
        self._write(
            step,
            [summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=name, histo=histogram)])],
        )

    def flush(self) -> None:
        """Store the events so far in the bucket; on a disk they are stored already.

        Raises:
          FailureError: the bucket refuses.
        """
        if is_remote(self._folder) and self._file is not None:
            self.close()
            self._resume_step = None  # told by that file

    def close(self) -> None:
        """Close the event file; harmless when repeated or when nothing was written."""
        file, self._file = self._file, None
        if file is not None:
            with reporting(self._folder, "keep the metrics in"):
                file.close()

    def _write(self, step: int, summaries: list) -> None:
        from tensorboardX.proto import event_pb2

        with reporting(self._folder, "keep the metrics in"):
            try:
                if self._file is None:
                    self._file = self._open()
                for item in summaries:
                    event = event_pb2.Event(wall_time=time.time(), step=int(step), summary=item)
                    self._file.write(event.SerializeToString())
                self._file.flush()
            except OSError:
                # Unwritten events are still buffered: closing fails once more, but releases the
                # file.
                with contextlib.suppress(OSError, FailureError):
                    self.close()
                raise

    def _open(self):
        # tensorboardX is slow to import, hence here. Its SummaryWriter writes in a thread that a
        # full disk kills, and training would wait on its queue for ever; the writer beneath it
        # raises the error.
        from tensorboardX import record_writer
        from tensorboardX.proto import event_pb2

        # TensorBoard reads the files of a folder in the order of their names, hence the time comes
        # first.
        now = time.time()
        path = self._folder / f"events.out.tfevents.{now:.6f}.{socket.gethostname()}.{os.getpid()}"
        if is_remote(path):
            # Its own way to a bucket writes the whole file again at every flush.
            record_writer.register_writer_factory("gs", types.SimpleNamespace(open=_Put))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
        file = record_writer.RecordWriter(str(path))
        head = [event_pb2.Event(wall_time=now, file_version="brain.Event:2")]
        if self._resume_step is not None:
            # Makes TensorBoard forget the later events of the files before this one.
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            head.append(
                event_pb2.Event(wall_time=now, step=self._resume_step + 1, session_log=start)
            )
        for event in head:
            file.write(event.SerializeToString())
        return file


class _Put(io.BytesIO):
    """A file in memory that becomes an object of a bucket when it is closed."""

    fileno = property()  # the writer must not ask for one, to wait for a disk

    def __init__(self, path: str):
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            data = self.getvalue()
            super().close()
            write_atomically(self._path, data)
