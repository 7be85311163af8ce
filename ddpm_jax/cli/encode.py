"""`python -m ddpm_jax.cli.encode --ckpt DIR PICTURE ...`: pictures to the latents of a first stage,
as an NPZ file.

    python -m ddpm_jax.cli.encode --ckpt runs/vae_cifar10 photo.jpg
    python -m ddpm_jax.cli.encode --ckpt runs/vae_cifar10 a.png b.png photos/ --out latents.npz
    python -m ddpm_jax.cli.encode --ckpt runs/vae_cifar10 photo.jpg --keep_size --sample --seed 1

A PICTURE is a file, or a directory for all pictures in it and below. Each is read as the training
images are: brought to their size on its shorter side and cropped at the centre. The networks are
convolutions, so other sizes than that of training go through them too: --size N, or --keep_size,
which only crops to what the network divides by; the pictures of one file are of one size.

The file has `latents` [N, h, w, c] as the decoder takes them: of a VAE the posterior's mean, or
with --sample a draw from it (then `mean` too), and `log_variance`; of a VQ-VAE the vectors of the
codes, and `codes` [N, h, w]. `python -m ddpm_jax.cli.decode` makes pictures of it. A file that is
there is not replaced.
"""

import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ddpm_jax.cli.command import (
    Parser,
    check_names_a_run,
    define_checkpoint_flags,
    prepare_jax,
    run,
)
from ddpm_jax.data.layout import pictures_in
from ddpm_jax.errors import UsageError, say
from ddpm_jax.evaluation import latent_file
from ddpm_jax.evaluation.coding import Latents, encode
from ddpm_jax.experiments.loading import TrainedModel, load_first_stage
from ddpm_jax.files import as_path, check_place, reporting
from ddpm_jax.limits import MAX_BATCH, MAX_SEED
from ddpm_jax.monitoring.progress import counted
from ddpm_jax.tasks import photos

PICTURE = "PICTURE"  # what messages call an argument
MAX_SIZE = 16_384  # pixels


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code; see `command.run` for the errors."""
    parser = Parser(__doc__, arguments=True)
    define_checkpoint_flags(parser)
    parser.path("out", "latents.npz", "Where to.", metavar="FILE.npz")
    parser.integer(
        "size",
        None,
        "Height and width to bring the pictures to; by default those of training.",
        lower=1,
        upper=MAX_SIZE,
    )
    parser.boolean(
        "keep_size",
        "Leave the pictures as large as they are, but for what the network cannot divide.",
    )
    parser.boolean("sample", "Draw from a VAE's posterior instead of taking its mean.")
    parser.integer(
        "seed",
        None,
        "With --sample: picture i's draw is of the seed and i (default: 0).",
        lower=0,
        upper=MAX_SEED,
    )
    parser.integer(
        "batch_size", 16, "Pictures at a time, over all devices.", lower=1, upper=MAX_BATCH
    )
    flags = parser.parse(argv)
    check_names_a_run(flags)
    _check(flags)
    out, paths = _new_file(flags.out), _paths(parser.arguments)
    prepare_jax(flags)
    trained = load_first_stage(flags.ckpt, step=flags.ckpt_step, raw_weights=flags.raw_weights)
    stage, seed = trained.model.stage, (flags.seed or 0) if flags.sample else None
    if flags.sample and stage.kind != "vae":
        raise UsageError(
            f"--sample draws from a posterior, which a first stage of the kind {stage.kind!r} has "
            "not."
        )
    read = _pictures(paths, trained, flags)
    found = _joined(
        list(encode(stage, trained.params, read, batch_size=flags.batch_size, seed=seed))
    )
    made_by = f"{flags.ckpt}, step {trained.step}, {trained.average} weights"
    latent_file.write(
        out,
        found,
        names=list(map(str, paths)),
        kind=stage.kind,
        first_stage=trained.sha256,
        made_by=made_by,
    )
    count, *shape = found.latents.shape
    say(f"{count} latents of {'x'.join(map(str, shape))} by {made_by}\n  {out}")
    return 0


def _check(flags: Any) -> None:
    if flags.size is not None and flags.keep_size:
        raise UsageError(
            "--size brings pictures to a size and --keep_size leaves them theirs: give one of them."
        )
    if flags.seed is not None and not flags.sample:
        raise UsageError("--seed is of the draws of --sample: give that too, or leave it out.")


def _new_file(text: str) -> pathlib.Path:
    out = as_path(text)
    check_place(out, flag="--out", writing=True)
    if out.suffix != ".npz":
        raise UsageError(
            f"--out {text} is not the name of an NPZ file: choose one that ends in .npz."
        )
    with reporting(out, "read"):
        if out.exists():
            raise UsageError(f"--out {text} is there already: remove it, or choose another name.")
    return out


def _paths(arguments: Sequence[str]) -> list[pathlib.Path]:
    """The files that are named, those of a directory in the order of their names."""
    if not arguments:
        raise UsageError(
            "No picture is named: name files or directories of some, as in photo.jpg photos/."
        )
    paths = []
    for argument in arguments:
        place = as_path(argument)
        with reporting(place, "read"):
            inside = pictures_in(place) if place.is_dir() else None
        paths += [place] if inside is None else [place / name for name in inside]
    return paths


def _pictures(
    paths: Sequence[pathlib.Path], trained: TrainedModel, flags: Any
) -> Iterator[np.ndarray]:
    """Looks at the headers of all, then reads one after the other: uint8 [H, W, C] of one shape.

    Raises:
      UsageError: a size that the network cannot divide; a file that is missing, no picture, too
        small, or of another shape than the others.
    """
    (trained_at, _, channels), factor = (
        trained.model.image_shape,
        trained.model.network.factor,
    )
    size = factor if flags.keep_size else flags.size or trained_at
    if size % factor:
        near = max(1, round(size / factor)) * factor
        raise UsageError(
            f"--size is {size}, but this network divides by {factor}: give a multiple of it, "
            f"{near} say."
        )
    for path in paths:
        photos.check_photo(PICTURE, path, size)

    def read() -> Iterator[np.ndarray]:
        first = None
        for path in counted(paths, "encoding", len(paths), unit="picture"):
            if flags.keep_size:
                picture = photos.read_whole_photo(PICTURE, path, multiple=factor, channels=channels)
            else:
                picture = photos.read_photo(PICTURE, path, (size, size, channels))
            first = picture.shape if first is None else first
            if picture.shape != first:
                (height, width, _), (h, w, _) = first, picture.shape
                raise UsageError(
                    f"{PICTURE}: {path} is {w}x{h} and {paths[0]} {width}x{height}, but the "
                    "latents of one file are of one size: encode them one by one, or leave out "
                    "--keep_size."
                )
            yield picture

    return read()


def _joined(batches: Sequence[Latents]) -> Latents:
    return Latents(
        *(
            None if parts[0] is None else np.concatenate(parts)
            for parts in zip(*batches, strict=True)
        )
    )


if __name__ == "__main__":
    sys.exit(run(main))
