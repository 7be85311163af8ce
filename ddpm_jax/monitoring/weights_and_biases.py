"""Weights & Biases as a second viewer besides TensorBoard: `ddpm-jax train --wandb PROJECT`.

An extra: `pip install -e '.[wandb]'`. It never stops a run: the first failure prints one warning,
and the records on disk continue.
"""

import logging
import os
import pathlib
import secrets
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.files import absolute, as_path, is_remote, read_file, reporting, write_atomically

RUN_ID = "wandb/id"  # in the directory of the run; W&B keeps its own files next to it
_log = logging.getLogger(__name__)


def load(project: str) -> Any:
    """Return the module `wandb`, to send a run to `project`, "PROJECT" or "ENTITY/PROJECT".

    Raises:
      UsageError: that names no project, or the package is not installed.
    """
    if not project.rpartition("/")[2]:
        raise UsageError(
            f"--wandb is {project!r}: name a project, as in --wandb digits or --wandb TEAM/digits."
        )
    try:
        import wandb
    except ImportError:
        wandb = None
    # a folder of that name, where W&B has left its files, imports as an empty module
    if not hasattr(wandb, "init"):
        raise UsageError(
            "--wandb needs the package wandb: install it with pip install -e '.[wandb]', or leave "
            "it out."
        )
    return wandb


class WeightsAndBiases:
    """The run of W&B for the run in `workdir`, continued when that is resumed.

    Metrics are drawn over their "step", not over W&B's own count, which cannot go back to the step
    of a checkpoint. After a kill the steps since that are logged a second time, with the same
    values.
    """

    def __init__(self, workdir: str | os.PathLike, project: str, config: Mapping[str, Any]):
        """Start the run, or continue the one whose id is kept in `workdir/wandb/id`.

        Where W&B refuses or cannot be reached, the run is kept on disk, as with WANDB_MODE=offline.

        Args:
          workdir: the folder of the run, whose name is shown; W&B's own files go to
            `workdir/wandb`, or to a temporary folder where that lies in a bucket.
          project: "PROJECT" or "ENTITY/PROJECT".
          config: of the run, JSON-able.

        Raises:
          UsageError: see `load`.
        """
        self._wandb, workdir = load(project), as_path(workdir)
        entity, _, project = project.rpartition("/")
        self._run = None
        # W&B writes to disks only.
        folder = tempfile.mkdtemp(prefix="ddpm_jax-wandb-") if is_remote(workdir) else str(workdir)

        def start(**options: Any) -> None:
            self._run = self._wandb.init(
                project=project,
                entity=entity or None,
                id=_run_id(workdir),
                resume="allow",
                dir=folder,
                name=absolute(workdir).name,
                config=dict(config),
                # its copy of standard error would be one of the bar
                settings=self._wandb.Settings(console="off"),
                **options,
            )
            self._run.define_metric("*", step_metric="step")

        try:
            start()
        except Exception as error:
            self._run = None
            remedy = (
                f"Its records are kept in {os.path.join(folder, 'wandb')}, for wandb sync to send."
            )
            _log.warning("Weights & Biases cannot be used (%s). %s", _one_line(error), remedy)
            self._try(lambda: start(mode="offline"))

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of `step`."""
        self._send(step, lambda: dict(metrics))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Send uint8 [H, W, C], C = 1 or 3."""
        self._send(
            step,
            lambda: {name: self._wandb.Image(image[..., 0] if image.shape[-1] == 1 else image)},
        )

    def histogram(self, step: int, name: str, edges: np.ndarray, values: np.ndarray) -> None:
        """Send values [K] as bars over edges [K + 1]."""
        self._send(step, lambda: {name: self._wandb.Histogram(np_histogram=(values, edges))})

    def close(self) -> None:
        """Send what is left; harmless when repeated."""
        run = self._run
        if run is not None:
            self._try(run.finish)
        self._run = None

    def _send(self, step: int, values: Callable[[], dict[str, Any]]) -> None:
        if self._run is not None:
            self._try(lambda: self._run.log({"step": int(step), **values()}))

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            self._run = None
            _log.warning(
                "Weights & Biases failed and is left out from here on: %s", _one_line(error)
            )


def _run_id(workdir: pathlib.Path) -> str:
    path = workdir / RUN_ID
    if not path.exists():
        write_atomically(path, secrets.token_hex(4).encode())
    with reporting(path, "read"):
        return read_file(path, largest=1000).decode(errors="replace").strip()


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
