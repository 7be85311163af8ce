"""`ddpm-jax interpolate --ckpt DIR`: the way between two pictures, or two seeds, as a PNG.

    ddpm-jax interpolate --ckpt runs/cifar10 --interpolate a.png b.png
    ddpm-jax interpolate --ckpt runs/cifar10 --interpolate_seeds 1,2 --sampler ddim
    ddpm-jax interpolate --ckpt runs/cifar10 --shared_latents         samples that share an x_t

Two pictures are mixed at one x_t of the chain, two seeds on the arc between their x_T.
"""

import sys
from collections.abc import Sequence

from ddpm_jax.cli.arguments import Parser
from ddpm_jax.cli.command import run
from ddpm_jax.cli.image_command import make_images
from ddpm_jax.cli.picture_flags import Place, Seed, SharedLatents
from ddpm_jax.cli.shared_flags import Checkpoint, Limit, LowRank
from ddpm_jax.errors import UsageError
from ddpm_jax.tasks.editing_settings import Interpolation
from ddpm_jax.tasks.sampling_settings import Sampling


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code; see `command.run` for the errors."""
    records = (Checkpoint, LowRank, Interpolation, SharedLatents, Seed, Place, Sampling, Limit)
    flags = Parser(__doc__, *records).parse(argv)
    if not flags.given & {"interpolate", "interpolate_seeds", "shared_latents"}:
        raise UsageError(
            "Nothing is named to go between: give two pictures, as in --interpolate a.png b.png, "
            "two seeds, as in --interpolate_seeds 1,2, or --shared_latents."
        )
    return make_images(flags)


if __name__ == "__main__":
    sys.exit(run(main))
