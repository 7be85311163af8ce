"""`ddpm-jax edit --ckpt DIR`: images made from a picture of yours, as a PNG grid and NPZ files.

    ddpm-jax edit --ckpt runs/cifar10 --init_image photo.png --strength 0.6
    ddpm-jax edit --ckpt runs/cifar10 --inpaint photo.png --mask mask.png

The picture may have any size: it is resized on its shorter side and cropped at the centre, as in
training. White parts of the mask are painted, black parts kept.
"""

import sys
from collections.abc import Sequence

from ddpm_jax.cli.arguments import Parser
from ddpm_jax.cli.command import run
from ddpm_jax.cli.image_command import make_images
from ddpm_jax.cli.shared_flags import Checkpoint, Limit, LowRank, Processes
from ddpm_jax.errors import UsageError
from ddpm_jax.tasks.editing_settings import Editing, Inpainting
from ddpm_jax.tasks.sample_files import Samples
from ddpm_jax.tasks.sampling_settings import Sampling


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code; see `command.run` for the errors."""
    records = (Checkpoint, LowRank, Editing, Inpainting, Samples, Sampling, Limit, Processes)
    flags = Parser(__doc__, *records).parse(argv)
    if not flags.given & {"init_image", "inpaint"}:
        raise UsageError(
            "No picture is named: give one, as in --init_image photo.png, or --inpaint photo.png "
            "--mask mask.png."
        )
    return make_images(flags)


if __name__ == "__main__":
    sys.exit(run(main))
