"""`python train.py`: train the model of a config in a directory of its own, or resume its run.

    python train.py                                 the bundled 8x8 digits, into runs/digits
    python train.py --config ddpm_cifar10 --workdir runs/cifar10 --config.train.batch_size=256
    python train.py --workdir gs://BUCKET/runs/a    in a bucket of Google Cloud Storage
    python train.py --distributed ...               on every host of a TPU slice or a Slurm job
    python train.py --distributed --coordinator HOST:1234 --num_processes 2 --process_id 0 ...

Ctrl-C, SIGTERM or --max_seconds: the run saves after the step under way and ends, with exit code
130, 0 or 0; a grid under way is left, and drawn when the run is resumed. A second Ctrl-C ends the
run at once. Of several processes any one may get the signal: all save at a common step, a second or
two steps later. If a process is lost, the others end with exit code 1, at the latest after a
minute. The same command resumes the run with the same data and draws, on any number of processes
and devices that divides the batch.

Every field of the config, with its default, is listed in `ddpm_jax/experiments/fields.py`.
"""

import dataclasses
import sys
from collections.abc import Sequence

from ddpm_jax.cli.arguments import NOWHERE, Parser
from ddpm_jax.cli.command import run
from ddpm_jax.cli.devices import how_to_call
from ddpm_jax.cli.shared_flags import Processes, prepare
from ddpm_jax.cli.training_command import exit_code, say_how_to_resume
from ddpm_jax.distributed import hosts
from ddpm_jax.errors import say
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.fields import FIELDS
from ddpm_jax.files import as_path
from ddpm_jax.settings import Settings, setting
from ddpm_jax.training_runs.run_directory import check_apart
from ddpm_jax.training_runs.sample_grids import PICTURED, grid_path
from ddpm_jax.training_runs.training_run import (
    TrainingResult,
    default_workdir,
    run_training,
)
from ddpm_jax.training_runs.training_settings import TrainingRun, make_interrupt

_NEXT = {  # objective -> what to type after training; those that are missing make no images
    "diffusion": ("sample", "--ckpt {}"),
    "first_stage": ("evaluate", "--ckpt {} --metric reconstruction"),
}


@dataclasses.dataclass(frozen=True)
class Experiment(Settings):
    """What to train"""

    config: str = setting(
        "digits",
        "Config file or name; --config.FIELD=VALUE overrides one of its fields.",
        path=True,
        metavar="FILE",
    )


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code; see `command.run` for the errors."""
    parser = Parser(__doc__, Experiment, TrainingRun, Processes, fields=FIELDS)
    flags = parser.parse(argv)
    config = configs.override(configs.load_config(flags.config), flags.fields)
    run = flags.make(TrainingRun)
    run = dataclasses.replace(run, workdir=run.workdir or default_workdir(flags.config))
    interrupt = make_interrupt(run)
    # before `prepare` makes the folder of compiled programs
    kept = None if flags.compilation_cache == NOWHERE else flags.compilation_cache
    check_apart(config, as_path(run.workdir), compilation_cache=kept)
    prepare(flags)
    result = run_training(config, run, interrupt=interrupt)
    if hosts.is_primary():
        _say_what_is_next(result, config.objective)
    return exit_code(result)


def _say_what_is_next(result: TrainingResult, objective: str) -> None:
    workdir, step = result.workdir, result.step
    if not result.is_finished:
        say_how_to_resume(result)
        return
    pictures = f"  samples  {grid_path(workdir, step)}\n" if objective in PICTURED else ""
    say(f"done: {step} steps\n{pictures}  loss     {result.curve}")
    if objective in _NEXT:
        name, flags = _NEXT[objective]
        say(f"next: {how_to_call(name)} {flags.format(workdir)}")


if __name__ == "__main__":
    sys.exit(run(main))
