"""`python sample.py --ckpt DIR`: images from a training run, as a PNG grid and NPZ files.

    python sample.py --ckpt runs/digits                           64 images
    python sample.py --ckpt runs/digits --steps 100 --chain       and draw the chain
    python sample.py --ckpt runs/digits --sampler dpmpp_2m --steps 20 --spacing karras
    python sample.py --ckpt runs/digits_cond --labels 3,5 \\
        --guidance_scale 3 --guidance_interval 0.2,0.8
    python sample.py --ckpt runs/cifar10 --num_samples 50000 --batch_size 500
    python sample.py --ckpt runs/cifar10 --num_samples 50000 --format openai    also as arr_0
    python sample.py --ckpt runs/cifar10 --init_image photo.png --strength 0.6
    python sample.py --ckpt runs/cifar10 --inpaint photo.png --mask mask.png
    python sample.py --ckpt runs/digits_sr --low_res small.png
    python sample.py --ckpt runs/cifar10 --interpolate a.png b.png  from one picture to another
    python sample.py --ckpt runs/cifar10 --shared_latents         samples that share an x_t
    python sample.py --ckpt runs/cifar10 --interpolate_seeds 1,2 --sampler ddim
    python sample.py --ckpt runs/cifar10 --reconstruct photo.png --corrections 3

Image i depends on --seed and on i only. Ctrl-C, SIGTERM and --max_seconds stop the command within a
second or two, with exit code 130, 143 or 75, and whole batches kept: given again, it continues
where it stopped. The last four make their own pictures instead of the samples. Several processes
(--distributed) share out the NPZ files, up to a thousand images each, in a directory that all of
them see; the first draws the grid. `ddpm-jax` has this as four commands with the flags of each:
sample, edit, interpolate, reconstruct.
"""

import sys
from collections.abc import Sequence

from ddpm_jax.cli.arguments import Parser
from ddpm_jax.cli.command import run
from ddpm_jax.cli.image_command import make_images
from ddpm_jax.cli.picture_flags import SharedLatents
from ddpm_jax.cli.shared_flags import Checkpoint, Limit, LowRank, Processes
from ddpm_jax.tasks.editing_settings import Editing, Inpainting, Interpolation, Reconstruction
from ddpm_jax.tasks.sample_files import Samples
from ddpm_jax.tasks.sampling_settings import Sampling

_PICTURES = (Editing, Inpainting, Interpolation, SharedLatents, Reconstruction)
_SAMPLE_ALONE = """`ddpm-jax sample --ckpt DIR`: images from a run, as a PNG grid and NPZ files.

    ddpm-jax sample --ckpt runs/digits                                64 images
    ddpm-jax sample --ckpt runs/digits --sampler dpmpp_2m --steps 20 --spacing karras
    ddpm-jax sample --ckpt runs/digits_cond --labels 3,5 --guidance_scale 3

Image i depends on --seed and on i only. Given again after it was stopped, the command goes on.
"""


def main(argv: Sequence[str]) -> int:
    """Run `python sample.py` and return its exit code; see `command.run` for the errors."""
    parser = Parser(__doc__, Checkpoint, LowRank, Samples, Sampling, *_PICTURES, Limit, Processes)
    return make_images(parser.parse(argv))


def command(argv: Sequence[str]) -> int:
    """Run `ddpm-jax sample`, which has the flags of samples alone; return its exit code."""
    parser = Parser(_SAMPLE_ALONE, Checkpoint, LowRank, Samples, Sampling, Limit, Processes)
    return make_images(parser.parse(argv))


if __name__ == "__main__":
    sys.exit(run(main))
