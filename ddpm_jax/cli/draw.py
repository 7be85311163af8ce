"""`ddpm-jax draw --ckpt DIR`: the pictures of a first stage of any checkpoint.

    ddpm-jax draw --ckpt runs/vae_digits
    ddpm-jax draw --ckpt runs/vae2d_digits --num_samples 64 --ckpt_step 500

Held-out images next to their reconstructions, images from the prior and the latents' channels;
interpolation between pairs of images; of a VQ-VAE how often its codes are used; of a VAE of two
numbers the sheet of images of the plane, and where the classes lie in it. A picture is not replaced
by one that was made otherwise.
"""

import dataclasses
import sys
from collections.abc import Sequence

from ddpm_jax.cli.arguments import Parser
from ddpm_jax.cli.command import run
from ddpm_jax.cli.shared_flags import Checkpoint, check_names_a_run, prepare, reading
from ddpm_jax.errors import say
from ddpm_jax.experiments.datasets import check_places
from ddpm_jax.experiments.loading import load_first_stage
from ddpm_jax.experiments.model_files import results_of
from ddpm_jax.files import as_path, check_place
from ddpm_jax.measuring.first_stage_picture_files import Drawing, write_pictures
from ddpm_jax.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class Command(Settings):
    """Where the pictures go"""

    out: str | None = setting(
        None,
        "Directory for the pictures; by default pictures in the run's.",
        path=True,
        metavar="DIR",
    )


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code; see `command.run` for the errors."""
    flags = Parser(__doc__, Checkpoint, Command, Drawing).parse(argv)
    check_names_a_run(flags)
    prepare(flags)
    trained = load_first_stage(flags.ckpt, **reading(flags))
    out = as_path(flags.out or results_of(flags.ckpt, "pictures"))
    check_place(out, flag="--out", writing=True)
    check_places(trained.model.config.data, data_dir=flags.data_dir, out=flags.out)
    paths, warning = write_pictures(trained, flags.make(Drawing), out)
    for path in paths:
        say(path)
    if warning:
        say(f"warning: {warning}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
