"""Snapshots of averages, saved during a run and combined after it.

They lie in the run's directory as checkpoints of their own, `snapshots/checkpoints/STEP`, and all
of them are kept. The coefficients of the sums are computed in `ema_profiles`.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ddpm_jax.checkpoints import reader
from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.files import as_path

SNAPSHOTS = "snapshots"


class Snapshots:
    """A writer of some of a state's averages, for the process that trains."""

    def __init__(self, workdir: str | os.PathLike, names: Sequence[str], config: Mapping[str, Any]):
        """Open `workdir`/snapshots, made if missing.

        Args:
          workdir: the run's directory.
          names: of the averages to save, keys of the state's `averages`.
          config: JSON-able, saved with every snapshot.

        Raises:
          FailureError: the directory cannot be written.
        """
        self._names, self._config = tuple(names), config
        self._checkpointer = Checkpointer(as_path(workdir) / SNAPSHOTS, keep_last=1, keep_every=1)

    def save(self, step: int, averages: Mapping[str, Any]) -> None:
        """Save, and return when all is on disk; a step that is there already is left as it is.

        Args:
          step: updates done.
          averages: of the state, by name.

        Raises:
          FailureError: this save or the one before could not be written.
        """
        # A run resumed from a checkpoint passes through the steps after it once more.
        if step > (self._checkpointer.latest_step() or 0):
            kept = {name: averages[name] for name in self._names}
            self._checkpointer.save(step, {"averages": kept}, {}, self._config)
            self._checkpointer.wait()

    def close(self) -> None:
        """Wait for the last save and stop the background threads."""
        self._checkpointer.close()


def saved_steps(workdir: str | os.PathLike) -> list[int]:
    """Return the steps of a run's snapshots, ascending; empty where there are none."""
    return reader.saved_steps(as_path(workdir) / SNAPSHOTS)


def combine(
    workdir: str | os.PathLike,
    steps: Sequence[int],
    names: Sequence[str],
    coefficients: np.ndarray,
    shapes: Any,
) -> Any:
    """Return the sum of snapshots, Σ c[i, j] (average j at step i), as float32.

    The sum is taken in float64.

    Args:
      workdir: the run's directory.
      steps: int [N], of snapshots on disk.
      names: of the K averages in each snapshot, all of them.
      coefficients: float64 [N, K].
      shapes: the parameters' tree with shapes and dtypes for leaves.

    Raises:
      UsageError: the snapshots are of another architecture.
      FailureError: files are damaged.
    """
    total = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float64), shapes)
    template = {"averages": {name: shapes for name in names}}
    for step, row in zip(steps, coefficients, strict=True):
        saved = reader.read_weights(as_path(workdir) / SNAPSHOTS, step, template)["averages"]
        for name, coefficient in zip(names, row, strict=True):
            total = jax.tree.map(
                lambda s, x, c=coefficient: s + c * np.asarray(x, np.float64), total, saved[name]
            )
    return jax.tree.map(np.float32, total)
