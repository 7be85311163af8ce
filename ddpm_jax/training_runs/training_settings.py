"""Settings of a training run besides its config, which may differ on a resume."""

import dataclasses

from ddpm_jax.distributed.interrupt import Interrupt
from ddpm_jax.limits import MAX_SECONDS
from ddpm_jax.monitoring.profiling import parse_steps
from ddpm_jax.settings import Settings, setting
from ddpm_jax.training.training_loop import PROMISE


@dataclasses.dataclass(frozen=True)
class TrainingRun(Settings):
    """Where to train, and which tools show the run."""

    workdir: str | None = setting(
        None,
        "Directory of the run; by default runs/NAME for a config called NAME. Resumes what is "
        "there.",
        path=True,
        metavar="DIR",
    )
    profile: tuple[int, int] | None = setting(
        None,
        "Trace the steps FIRST to LAST of the run, counted from 1, into WORKDIR/tensorboard: see "
        "its Profile tab.",
        lower=1,
        read=parse_steps,
        metavar="FIRST:LAST",
    )
    wandb: str | None = setting(
        None,
        "Show the run in this project of Weights & Biases, too; ENTITY/PROJECT for one of a team.",
        metavar="PROJECT",
    )
    max_seconds: int | None = setting(
        None,
        "Stop in order after this time, with what is done kept: the same command goes on with the "
        "rest.",
        lower=1,
        upper=MAX_SECONDS,
    )


def make_interrupt(run: TrainingRun) -> Interrupt:
    """Return the interrupt that ends a run early; its time limit starts now."""
    return Interrupt(PROMISE, max_seconds=run.max_seconds)
