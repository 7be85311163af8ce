"""`ddpm-jax distill`: a model whose samples take two evaluations, of one that takes many.

    ddpm-jax distill --ckpt runs/digits --steps 2 --out runs/digits_2step
    ddpm-jax sample --ckpt runs/digits_2step                    two evaluations each
    ddpm-jax evaluate --ckpt runs/digits_2step --metric distillation

By consistency tuning (Geng et al. 2024), or with --method progressive by progressive distillation
(Salimans & Ho 2022), whose rounds each halve the number of DDIM steps: the new run begins with the
weights of the model and is trained on its data like any other, with its averages, checkpoints and
signals; the same command resumes it. The config is the model's, with fields that
--config.FIELD=VALUE sets otherwise: a run of 0.7 times as many updates, 0.6 in rounds, takes about
as long as the model's own. A model that was imported brings no data: --config.data.name=folder
--config.data.data_dir=DIR, and a number of updates, --config.train.num_steps. Afterwards the
certificate is measured, RUN/evaluation/distillation_*: the distance to the end of the teacher's
flow at every level, and Frechet distances against evaluations.
"""

import dataclasses
import sys
from collections.abc import Sequence

from ddpm_jax.cli.arguments import Parser
from ddpm_jax.cli.command import run
from ddpm_jax.cli.devices import how_to_call
from ddpm_jax.cli.shared_flags import Limit, Processes, Weights, check_names_a_run, prepare
from ddpm_jax.cli.training_command import exit_code, say_how_to_resume
from ddpm_jax.distributed import hosts
from ddpm_jax.errors import UsageError, say
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.fields import FIELDS
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.measuring.distillation import certify
from ddpm_jax.settings import setting
from ddpm_jax.training_runs.distilling import Distillation, distill_config, settled
from ddpm_jax.training_runs.training_run import run_training
from ddpm_jax.training_runs.training_settings import TrainingRun, make_interrupt


@dataclasses.dataclass(frozen=True)
class Teacher(Weights):
    """Which model"""

    out: str | None = setting(
        None, "Directory of the new run, resumed if it is there.", path=True, metavar="DIR"
    )


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code; see `command.run` for the errors."""
    flags = Parser(__doc__, Teacher, Distillation, Limit, Processes, fields=FIELDS).parse(argv)
    check_names_a_run(flags)
    if not flags.out:
        raise UsageError("--out is missing: name a directory for the new run.")
    settings = flags.make(Distillation)
    new_run = TrainingRun(flags.out, None, None, flags.max_seconds)
    interrupt = make_interrupt(new_run)
    prepare(flags)
    teacher = load_trained(flags.ckpt, step=flags.ckpt_step, raw_weights=flags.raw_weights)
    derived = distill_config(teacher, flags.ckpt, settings)
    config = settled(configs.override(derived, flags.fields), teacher, flags.fields)
    result = run_training(config, new_run, interrupt=interrupt)
    if not result.is_finished:
        if hosts.is_primary():
            say_how_to_resume(result)
        return exit_code(result)
    with interrupt:
        text, paths = certify(load_trained(result.workdir), result.workdir / "evaluation")
    if hosts.is_primary():
        say(text)
        for path in paths:
            say(path)
        say(f"next: {how_to_call('sample')} --ckpt {result.workdir}")
    hosts.wait_for_all("the results are written")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
