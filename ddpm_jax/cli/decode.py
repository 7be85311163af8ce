"""`ddpm-jax decode --ckpt DIR FILE.npz`: latents of a first stage to pictures.

    ddpm-jax decode --ckpt runs/vae_cifar10 latents.npz                    into decoded/
    ddpm-jax decode --ckpt runs/vae_cifar10 latents.npz --out sheet.png

FILE.npz is what `ddpm-jax encode` has written, and must be of the same weights; or a
file of your own with `latents` [N, h, w, c], of a VQ-VAE also with `codes` [N, h, w] instead. Of a
VQ-VAE every vector becomes the nearest code. In a directory every picture has the name of the one
that was encoded; where two had the same, all begin with their numbers. Pictures that are there are
not replaced.
"""

import dataclasses
import sys
from collections.abc import Sequence

from ddpm_jax.cli.arguments import Parser
from ddpm_jax.cli.command import run
from ddpm_jax.cli.shared_flags import Checkpoint, check_names_a_run, prepare, reading
from ddpm_jax.errors import UsageError, plural, say
from ddpm_jax.evaluation import latent_file
from ddpm_jax.experiments.loading import load_first_stage
from ddpm_jax.files import as_path, check_place
from ddpm_jax.settings import Settings, setting
from ddpm_jax.tasks.decoding import Decoding, decode_file
from ddpm_jax.tasks.encoding import describe


@dataclasses.dataclass(frozen=True)
class Command(Settings):
    """Where the pictures go"""

    out: str = setting(
        "decoded",
        "Directory for a picture each, or FILE.png for one sheet.",
        path=True,
        metavar="DIR|FILE.png",
    )


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code; see `command.run` for the errors."""
    flags = Parser(__doc__, Checkpoint, Command, Decoding, words=True).parse(argv)
    check_names_a_run(flags)
    if len(flags.words) != 1:
        raise UsageError(
            f"{len(flags.words)} files of latents are named: name one, as in latents.npz."
        )
    path, out = flags.words[0], as_path(flags.out)
    check_place(out, flag="--out", writing=True)
    arrays = latent_file.read(path)
    prepare(flags)
    trained = load_first_stage(flags.ckpt, **reading(flags))
    count = decode_file(trained, path, arrays, flags.make(Decoding), out)
    say(f"{plural(count, 'picture')} by {describe(trained)}\n  {out}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
