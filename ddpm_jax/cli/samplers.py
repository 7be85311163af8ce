"""`ddpm-jax samplers`: the samplers' errors against network evaluations.

    ddpm-jax samplers                                    on Gaussians in the plane, exact denoiser
    ddpm-jax samplers --ckpt runs/digits                 and on a trained model, with times

On the mixture: the root mean square distance to where the probability flow leads from the same
noise, for samplers without noise of their own; and the energy distance to the data's distribution,
for all. On a model: the Frechet distance of pixels to the training images. Samplers that evaluate
the network twice a step take half the steps.
"""

import dataclasses
import sys
from collections.abc import Sequence

from ddpm_jax.cli.arguments import Flags, Parser
from ddpm_jax.cli.command import run
from ddpm_jax.cli.shared_flags import Checkpoint, LowRank, prepare, reading, updating
from ddpm_jax.errors import UsageError, say
from ddpm_jax.experiments.datasets import check_places
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.experiments.model_files import results_of
from ddpm_jax.files import as_path
from ddpm_jax.measuring.compared_model import ComparedModel, ModelComparison
from ddpm_jax.measuring.comparison_files import describe, write_comparison
from ddpm_jax.measuring.sampler_comparison import Comparison
from ddpm_jax.settings import Settings, setting, settings_in


@dataclasses.dataclass(frozen=True)
class Command(Settings):
    """Where the results go"""

    out: str | None = setting(
        None,
        "Directory for the results; evaluation in the run's, or samplers.",
        path=True,
        metavar="DIR",
    )


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code; see `command.run` for the errors."""
    parser = Parser(__doc__, Checkpoint, LowRank, Command, Comparison, ModelComparison)
    flags = parser.parse(argv)
    mixture = {spec.name for spec in (*settings_in(Command), *settings_in(Comparison))}
    mixture |= {"ckpt", "platform", "compilation_cache"}
    unused = [name for name in parser.settings if name in flags.given - mixture]
    if unused and not flags.ckpt:
        raise UsageError(f"--{unused[0]} is for a trained model: give --ckpt, or leave it out.")
    comparison, of_model = flags.make(Comparison), flags.make(ModelComparison)
    prepare(flags)
    model = _model(flags, comparison, of_model) if flags.ckpt else None
    default = results_of(flags.ckpt, "evaluation") if flags.ckpt else "samplers"
    found, paths = write_comparison(comparison, model, as_path(flags.out or default))
    say(describe(found))
    for path in paths:
        say(path)
    return 0


def _model(flags: Flags, comparison: Comparison, of_model: ModelComparison) -> ComparedModel:
    trained = load_trained(flags.ckpt, **reading(flags), **updating(flags))
    check_places(trained.model.config.data, data_dir=flags.data_dir, out=flags.out)
    return ComparedModel(trained, of_model, seed=comparison.seed)


if __name__ == "__main__":
    sys.exit(run(main))
