"""Traces of single training steps, in the form that TensorBoard's profile tab and Perfetto read.

Timings of a step are measured by `benchmarks/`; the rates of a run are in `throughput`.
"""

import contextlib
import os
import pathlib
import shutil
import tempfile
from typing import Any

import jax

from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.files import as_path, copy_folder, is_remote, reporting
from ddpm_jax.limits import MAX_STEP
from ddpm_jax.monitoring.tensorboard import TENSORBOARD
from ddpm_jax.numerals import whole_numbers


class Trace:
    """A trace of host and devices in steps `first` to `last`, in DIR/plugins/profile/TIME/.

    Steps are counted from 1. Without arguments it records nothing. Steps that are dispatched
    together are recorded together. Leaving the context ends a trace that is still open, so an
    interrupted run keeps what was recorded.
    """

    def __init__(
        self, directory: str | os.PathLike | None = None, *, first: int = 0, last: int = 0
    ):
        """Set the steps; nothing is recorded before `call` reaches them."""
        self._directory = None if directory is None else as_path(directory)
        self._written = self._directory  # by JAX, which knows disks only
        self._first, self._last = first, last
        self._open = False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def call(self, step: int, count: int) -> contextlib.AbstractContextManager:
        """Return a context whose body dispatches steps step+1 to step+count.

        Raises:
          FailureError: the trace cannot be begun.
        """
        if (
            self._directory is not None
            and not self._open
            and step < self._last
            and step + count >= self._first
        ):
            try:
                if is_remote(self._directory):
                    self._written = tempfile.mkdtemp(prefix="ddpm_jax-trace-")
                else:
                    self._directory.mkdir(parents=True, exist_ok=True)
                jax.profiler.start_trace(self._written)
            except (OSError, RuntimeError) as error:
                raise FailureError(
                    f"Cannot trace steps into {self._directory}: {error}."
                ) from error
            self._open = True
        return (
            jax.profiler.StepTraceAnnotation("train", step_num=step + count)
            if self._open
            else _NOTHING
        )

    def done(self, step: int, results: Any) -> None:
        """End the trace at its last step, once the devices have computed `results`."""
        if self._open and step >= self._last:
            jax.block_until_ready(results)
            self._stop()

    def _stop(self) -> None:
        if not self._open:
            return
        directory, self._open, self._directory = self._directory, False, None
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError) as error:
            raise FailureError(f"Writing the trace of the steps failed: {error}.") from error
        if self._written != directory:
            with reporting(directory):
                copy_folder(self._written, directory)
            shutil.rmtree(self._written)


_NOTHING = contextlib.nullcontext()


def parse_steps(text: str) -> tuple[int, int]:
    """Read "FIRST:LAST", two steps counted from 1.

    Raises:
      UsageError: it is not that, or LAST comes before FIRST.
    """
    try:
        first, last = whole_numbers(text.replace(":", ","), lower=1, upper=MAX_STEP, count=2)
    except ValueError:
        first, last = 0, 0
    if "," in text or not 1 <= first <= last:
        raise UsageError(
            f"profile is {text!r}: give the first and the last step to trace, as in 10:12."
        )
    return first, last


def make_trace(
    profile: tuple[int, int] | None, workdir: pathlib.Path, *, start: int, num_steps: int
) -> Trace | None:
    """Return the trace of the steps `profile`, first and last; None for none.

    Raises:
      UsageError: the run has no such steps before it.
    """
    if profile is None:
        return None
    first, last = profile
    if not start < first <= last <= num_steps:
        raise UsageError(
            f"profile is {first}:{last}, but this run has the steps {start + 1} to {num_steps} "
            "before it: choose some of these."
        )
    return Trace(workdir / TENSORBOARD, first=first, last=last)
