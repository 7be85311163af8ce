"""The end of the commands that train, `train` and `distill`."""

import sys

from ddpm_jax.cli.command import INTERRUPTED
from ddpm_jax.distributed.interrupt import Wish
from ddpm_jax.errors import say
from ddpm_jax.training_runs.training_run import TrainingResult


def say_how_to_resume(result: TrainingResult) -> None:
    """Say where a run that was stopped was saved, on the standard error."""
    say(
        f"saved step {result.step} in {result.workdir}. To resume, give the same command again.",
        file=sys.stderr,
    )


def exit_code(result: TrainingResult) -> int:
    """Return the exit code: SIGTERM and the time limit are a scheduler's wishes, and granted."""
    return INTERRUPTED if result.interrupted_by == Wish.SIGINT else 0
