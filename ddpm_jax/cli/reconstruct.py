"""`ddpm-jax reconstruct --ckpt DIR`: a picture, its own x_T, and what DDIM makes of that, as a PNG.

    ddpm-jax reconstruct --ckpt runs/cifar10 --reconstruct photo.png --corrections 3

DDIM inversion and DDIM over the same times, nothing clipped.
"""

import sys
from collections.abc import Sequence

from ddpm_jax.cli.arguments import Parser
from ddpm_jax.cli.command import run
from ddpm_jax.cli.image_command import make_images
from ddpm_jax.cli.picture_flags import Place
from ddpm_jax.cli.shared_flags import Checkpoint, Limit, LowRank
from ddpm_jax.errors import UsageError
from ddpm_jax.tasks.editing_settings import Reconstruction
from ddpm_jax.tasks.sampling_settings import Sampling


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code; see `command.run` for the errors."""
    flags = Parser(__doc__, Checkpoint, LowRank, Reconstruction, Place, Sampling, Limit).parse(argv)
    if "reconstruct" not in flags.given:
        raise UsageError("No picture is named: give one, as in --reconstruct photo.png.")
    return make_images(flags)


if __name__ == "__main__":
    sys.exit(run(main))
