"""`ddpm-jax encode --ckpt DIR PICTURE ...`: pictures to latents, as an NPZ file.

    ddpm-jax encode --ckpt runs/vae_cifar10 photo.jpg
    ddpm-jax encode --ckpt runs/vae_cifar10 a.png b.png photos/ --out latents.npz
    ddpm-jax encode --ckpt runs/vae_cifar10 photo.jpg --keep_size --sample --seed 1

A PICTURE is a file, or a directory for all pictures in it and below. Each is read as the training
images are: brought to their size on its shorter side and cropped at the centre. The networks are
convolutions, so other sizes than that of training go through them too: --size N, or --keep_size,
which only crops to what the network divides by; the pictures of one file are of one size.

The file has `latents` [N, h, w, c] as the decoder takes them: of a VAE the posterior's mean, or
with --sample a draw from it (then `mean` too), and `log_variance`; of a VQ-VAE the vectors of the
codes, and `codes` [N, h, w]. `ddpm-jax decode` makes pictures of it. A file that is
there is not replaced.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from ddpm_jax.cli.arguments import Parser
from ddpm_jax.cli.command import run
from ddpm_jax.cli.shared_flags import Checkpoint, check_names_a_run, prepare, reading
from ddpm_jax.errors import UsageError, say
from ddpm_jax.experiments.loading import load_first_stage
from ddpm_jax.files import as_path, check_place, reporting
from ddpm_jax.settings import Settings, setting
from ddpm_jax.tasks.encoding import (
    Encoding,
    describe,
    encode_pictures,
    find_pictures,
    write_latents,
)


@dataclasses.dataclass(frozen=True)
class Command(Settings):
    """Where the latents go"""

    out: str = setting("latents.npz", "Where to.", path=True, metavar="FILE.npz")


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code; see `command.run` for the errors."""
    flags = Parser(__doc__, Checkpoint, Command, Encoding, words=True).parse(argv)
    check_names_a_run(flags)
    encoding = flags.make(Encoding)
    out, paths = _new_file(flags.out), find_pictures(flags.words)
    prepare(flags)
    trained = load_first_stage(flags.ckpt, **reading(flags))
    found = encode_pictures(trained, paths, encoding)
    write_latents(out, found, trained, names=list(map(str, paths)))
    count, *shape = found.latents.shape
    say(f"{count} latents of {'x'.join(map(str, shape))} by {describe(trained)}\n  {out}")
    return 0


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


if __name__ == "__main__":
    sys.exit(run(main))
