"""Training of a config's model in a directory of its own, also resumed there."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from ddpm_jax import __version__
from ddpm_jax.distributed import hosts
from ddpm_jax.distributed.interrupt import Interrupt, Wish
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments import config as configs
from ddpm_jax.files import as_path
from ddpm_jax.monitoring import weights_and_biases
from ddpm_jax.randomness import check_settings
from ddpm_jax.training.callbacks import Callback, Callbacks, check_callbacks
from ddpm_jax.training.state import TrainState
from ddpm_jax.training_runs.reports import CURVE, draw_loss
from ddpm_jax.training_runs.run_directory import begun_settings, check_apart, check_writable
from ddpm_jax.training_runs.session import train_in
from ddpm_jax.training_runs.start import prepare
from ddpm_jax.training_runs.training_settings import TrainingRun, make_interrupt

# fields that the processes of a run may have in their own ways: where and how they read files
_OWN = ("data.data_dir", "data.cache", "first_stage.ckpt", "first_stage.cache", "init_from")


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """How a session of a run ended."""

    workdir: pathlib.Path
    step: int  # updates done
    state: TrainState  # after them, on the devices
    interrupted_by: Wish | None  # what asked to stop before the last step

    @property
    def curve(self) -> pathlib.Path:
        """Return the path of the loss curve."""
        return self.workdir / CURVE

    @property
    def is_finished(self) -> bool:
        """Return whether the run has done all its steps."""
        return self.interrupted_by is None


def train(
    config: str | os.PathLike | ConfigDict | Mapping[str, Any],
    workdir: str | os.PathLike | None = None,
    *,
    callbacks: Sequence[Callback] | Callback = (),
    profile: tuple[int, int] | None = None,
    wandb: str | None = None,
    max_seconds: int | None = None,
) -> TrainingResult:
    """Train the model of a config, or resume the run that is in `workdir`.

        result = ddpm_jax.train("digits", workdir="runs/mine")
        model = ddpm_jax.load(result.workdir)

    Everything is written there as `ddpm-jax train` writes it. Ctrl-C, in the main thread, saves
    after the current step and returns; another call continues the run.

    Args:
      config: a name ("digits"), the path of a config file, a ConfigDict, or a dict of its fields.
      workdir: of the run; by default runs/NAME for a config called NAME.
      callbacks: called while it trains.
      profile: first and last step to trace.
      wandb: a project of Weights & Biases that also shows the run.
      max_seconds: after which to save and return.

    Raises:
      UsageError: a setting or a file that cannot work; the message says what to change.
      FailureError: something cannot be read or written, or the loss is not finite.
    """
    if workdir is None:
        workdir = default_workdir(config)
    run = TrainingRun(workdir, profile, wandb, max_seconds)
    callbacks = check_callbacks(callbacks)
    check_settings()
    return run_training(configs.find_config(config), run, callbacks=callbacks)


def default_workdir(config: Any) -> str:
    """Return the directory of a run that names none.

    Raises:
      UsageError: the config has no name.
    """
    if not isinstance(config, str | os.PathLike):
        raise UsageError("workdir is missing: name a directory for the run of this config.")
    return str(pathlib.Path("runs") / pathlib.Path(config).stem)


def run_training(
    config: ConfigDict,
    run: TrainingRun,
    *,
    callbacks: Sequence[Callback] = (),
    interrupt: Interrupt | None = None,
) -> TrainingResult:
    """Train as `train` does, given a config and settings that have been read.

    All processes of a run call it together. By default the interrupt is created here.
    """
    interrupt = interrupt or make_interrupt(run)
    if run.wandb is not None:
        weights_and_biases.load(run.wandb)
    workdir = as_path(run.workdir)
    check_apart(config, workdir)
    hosts.check_equal(_common(config))
    check_writable(workdir)
    with hosts.hold(workdir, "training in it") as lock:
        outcome = train_in(
            workdir,
            prepare(config, workdir, begun_settings(workdir, config)),
            interrupt=interrupt,
            callbacks=Callbacks(callbacks, interrupt),
            before_save=lock.check,
            profile=run.profile,
            wandb=run.wandb,
        )
        if hosts.is_primary():
            draw_loss(workdir)
    return TrainingResult(workdir, int(outcome.state.step), outcome.state, outcome.interrupted_by)


def _common(config: ConfigDict) -> dict[str, Any]:
    """Return the facts that all processes of a run must share."""
    fields = dict(configs.flatten(configs.to_dict(config)))
    return {"ddpm_jax": __version__, "jax": jax.__version__} | {
        name: value for name, value in fields.items() if name not in _OWN
    }
