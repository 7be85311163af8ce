"""`python -m ddpm_jax.cli.decode --ckpt DIR FILE.npz`: latents of a first stage to pictures.

    python -m ddpm_jax.cli.decode --ckpt runs/vae_cifar10 latents.npz                       into decoded/
    python -m ddpm_jax.cli.decode --ckpt runs/vae_cifar10 latents.npz --out sheet.png       as one sheet

FILE.npz is what `python -m ddpm_jax.cli.encode` has written, and must be of the same weights; or a
file of your own with `latents` [N, h, w, c], of a VQ-VAE also with `codes` [N, h, w] instead. Of a
VQ-VAE every vector becomes the nearest code. In a directory every picture has the name of the one
that was encoded; where two had the same, all begin with their numbers. Pictures that are there are
not replaced.
"""

import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from ddpm_jax.cli.command import (
    Parser,
    check_names_a_run,
    define_checkpoint_flags,
    prepare_jax,
    run,
)
from ddpm_jax.errors import UsageError, say
from ddpm_jax.evaluation import latent_file
from ddpm_jax.evaluation.coding import decode
from ddpm_jax.experiments.loading import load_first_stage
from ddpm_jax.files import as_path, check_place, reporting
from ddpm_jax.limits import MAX_BATCH
from ddpm_jax.monitoring.progress import counted
from ddpm_jax.plotting.grids import grid, save_png


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code; see `command.run` for the errors."""
    parser = Parser(__doc__, arguments=True)
    define_checkpoint_flags(parser)
    parser.path(
        "out",
        "decoded",
        "Directory for a picture each, or FILE.png for one sheet.",
        metavar="DIR|FILE.png",
    )
    parser.integer(
        "batch_size", 16, "Pictures at a time, over all devices.", lower=1, upper=MAX_BATCH
    )
    flags = parser.parse(argv)
    check_names_a_run(flags)
    if len(parser.arguments) != 1:
        raise UsageError(
            f"{len(parser.arguments)} files of latents are named: name one, as in latents.npz."
        )
    path, out = parser.arguments[0], as_path(flags.out)
    check_place(out, flag="--out", writing=True)
    arrays = latent_file.read(path)
    prepare_jax(flags)
    trained = load_first_stage(flags.ckpt, step=flags.ckpt_step, raw_weights=flags.raw_weights)
    stage, what = (
        trained.model.stage,
        f"{flags.ckpt}, step {trained.step}, {trained.average} weights",
    )
    latent_file.check_made_by(path, arrays, first_stage=trained.sha256, what=what)
    codebook = np.asarray(trained.params["codebook"]) if stage.kind == "vq" else None
    channels = trained.model.network.latent_channels
    z = latent_file.latents_of(path, arrays, channels=channels, codebook=codebook)
    places = _places(out, latent_file.names_of(arrays), len(z))
    batches = decode(stage, trained.params, z, batch_size=flags.batch_size)
    images = (image for batch in batches for image in batch)
    images = counted(images, "decoding", len(z), unit="picture")
    if len(places) < len(z):
        _save(out, grid(np.stack(list(images))))
    else:
        for place, image in zip(places, images, strict=True):
            _save(place, image)
    say(f"{len(z)} picture{'s' if len(z) > 1 else ''} by {what}\n  {out}")
    return 0


def _places(out: pathlib.Path, names: Sequence[str], count: int) -> list[pathlib.Path]:
    """Where the pictures go: one file each, or the one of a sheet.

    Raises:
      UsageError: a file is there already.
    """
    if out.suffix.lower() == ".png":
        places = [out]
    else:
        stems = list(names) if len(names) == count else [""] * count
        if len({*stems, ""}) <= count:  # two of one name, or one without
            stems = [f"{i:05d}_{stem}".rstrip("_") for i, stem in enumerate(stems)]
        places = [out / f"{stem}.png" for stem in stems]
    for place in places:
        with reporting(place, "read"):
            if place.exists():
                raise UsageError(
                    f"--out: {place} is there already: remove it, or choose another place."
                )
    return places


def _save(place: pathlib.Path, picture: np.ndarray) -> None:
    with reporting(place):
        save_png(place, picture)


if __name__ == "__main__":
    sys.exit(run(main))
