"""`python -m ddpm_jax.cli.draw --ckpt DIR`: the pictures of a first stage that training draws, of
any checkpoint.

    python -m ddpm_jax.cli.draw --ckpt runs/vae_digits
    python -m ddpm_jax.cli.draw --ckpt runs/vae2d_digits --num_samples 64 --ckpt_step 500

Held-out images beside their reconstructions, images from the prior and the latents' channels;
interpolation between pairs of images; of a VQ-VAE how often its codes are used; of a VAE of two
numbers the sheet of images of the plane, and where the classes lie in it. A picture is not replaced
by one that was made otherwise.
"""

import sys
from collections.abc import Sequence

from ddpm_jax.cli.command import (
    Parser,
    check_names_a_run,
    define_checkpoint_flags,
    prepare_jax,
    run,
)
from ddpm_jax.errors import say
from ddpm_jax.experiments.datasets import check_places
from ddpm_jax.experiments.identity import identity, versions
from ddpm_jax.experiments.loading import load_first_stage
from ddpm_jax.files import as_path, check_place, reporting
from ddpm_jax.limits import MAX_SEED
from ddpm_jax.monitoring.results import check_record, write_record
from ddpm_jax.plotting.grids import save_png
from ddpm_jax.tasks.first_stage_pictures import make_drawing

MAX_SHOWN = 10_000  # images of one picture


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code; see `command.run` for the errors."""
    parser = Parser(__doc__)
    define_checkpoint_flags(parser)
    parser.integer("num_samples", 16, "Held-out images that are shown.", lower=1, upper=MAX_SHOWN)
    parser.integer("seed", 0, "Of the images from the prior.", lower=0, upper=MAX_SEED)
    parser.path(
        "data_dir",
        None,
        "Where the data is, if not where the training run found it.",
        metavar="DIR",
    )
    parser.path(
        "out", None, "Directory for the pictures; by default pictures in the run's.", metavar="DIR"
    )
    flags = parser.parse(argv)
    check_names_a_run(flags)
    prepare_jax(flags)
    trained = load_first_stage(flags.ckpt, step=flags.ckpt_step, raw_weights=flags.raw_weights)
    out = as_path(flags.out or as_path(flags.ckpt) / "pictures")
    check_place(out, flag="--out", writing=True)
    check_places(trained.model.config.data, data_dir=flags.data_dir, out=flags.out)
    made_by = {
        "checkpoint": str(flags.ckpt),
        "checkpoint_step": trained.step,
        "weights": trained.average,
    }
    settings = (
        made_by
        | identity(trained)
        | {"num_samples": flags.num_samples, "seed": flags.seed, "versions": versions()}
    )
    ending = f"step{trained.step}_{trained.average}_n{flags.num_samples}_seed{flags.seed}"
    record = out / f"pictures_{ending}.json"
    check_record(record, settings)
    draw = make_drawing(
        trained.model, num_samples=flags.num_samples, seed=flags.seed, data_dir=flags.data_dir
    )
    drawn = draw(trained.params)
    # The record first: a picture without one could be replaced unnoticed.
    write_record(record, settings | drawn.numbers)
    for name, picture in drawn.pictures.items():
        path = out / f"{name.replace(' ', '_')}_{ending}.png"
        with reporting(path):
            save_png(path, picture)
        say(path)
    if drawn.warning:
        say(f"warning: {drawn.warning}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
