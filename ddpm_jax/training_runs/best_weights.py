"""The weights of a run's best evaluation, as a checkpoint in a directory of their own."""

import shutil
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.distributed import hosts
from ddpm_jax.files import is_remote, reporting

BEST = "best"  # the directory, in the run's


class BestWeights:
    """The directory of the best weights: a checkpoint of one step, with the run's settings."""

    def __init__(self, directory: Any, settings: dict[str, Any]):
        self._directory, self._settings = directory, settings

    def keep(self, step: int, params: Any, frozen: Any) -> None:
        """Write weights in place of those that are there, which stay until these are complete.

        Raises:
          FailureError: they cannot be written.
        """
        self._remove_later(step)
        state = {"ema_params": jax.tree.map(jnp.asarray, params)}
        if jax.tree.leaves(frozen):
            state["frozen"] = frozen
        checkpointer = Checkpointer(self._directory, keep_last=1)
        checkpointer.save(step, state, {}, self._settings)
        checkpointer.close()

    def _remove_later(self, step: int) -> None:
        """Remove weights of this step or later ones, of a run that went on from an earlier one."""
        folder = self._directory / "checkpoints"
        there = [int(path.name) for path in _entries(folder) if path.name.isdigit()]
        if hosts.is_primary() and any(other >= step for other in there):
            with reporting(folder):
                folder.rmtree() if is_remote(folder) else shutil.rmtree(folder)
        hosts.wait_for_all("later weights are removed")


def _entries(folder: Any) -> list[Any]:
    return list(folder.iterdir()) if folder.exists() else []
