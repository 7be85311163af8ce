"""`python sample.py --ckpt DIR`: images from a training run's newest checkpoint, as a PNG grid and
NPZ files.

    python sample.py --ckpt runs/digits                                   64 images
    python sample.py --ckpt runs/digits --steps 100 --chain               in 100 steps, drawing the chain
    python sample.py --ckpt runs/digits --sampler dpmpp_2m --steps 20 --spacing karras
    python sample.py --ckpt runs/digits_cond --labels 3,5 --guidance_scale 3 --guidance_interval 0.2,0.8
    python sample.py --ckpt runs/cifar10 --num_samples 50000 --batch_size 500
    python sample.py --ckpt runs/cifar10 --init_image photo.png --strength 0.6
    python sample.py --ckpt runs/cifar10 --inpaint photo.png --mask mask.png
    python sample.py --ckpt runs/digits_sr --low_res small.png
    python sample.py --ckpt runs/cifar10 --interpolate a.png b.png        from one picture to another
    python sample.py --ckpt runs/cifar10 --shared_latents                 samples that share an x_t
    python sample.py --ckpt runs/cifar10 --interpolate_seeds 1,2 --sampler ddim
    python sample.py --ckpt runs/cifar10 --reconstruct photo.png --corrections 3

Image i depends on --seed and on i only. Ctrl-C, SIGTERM and --max_seconds stop the command within a
second or two, with exit code 130, 143 or 75, and whole batches kept: given again, it goes on where
it stopped. The last four commands make their own pictures instead of the samples. Several processes
(--distributed) share out the NPZ files, up to a thousand images each, in a directory that all of
them see; the first draws the grid.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ddpm_jax.cli import latents
from ddpm_jax.cli.arguments import Flags, Parser
from ddpm_jax.cli.command import run
from ddpm_jax.cli.shared_flags import (
    Checkpoint,
    Limit,
    Processes,
    check_names_a_run,
    common_flags,
    make_interrupt,
    prepare,
)
from ddpm_jax.distributed import hosts, interrupt
from ddpm_jax.experiments.datasets import check_places
from ddpm_jax.experiments.identity import identity
from ddpm_jax.experiments.loading import TrainedModel, load_trained
from ddpm_jax.files import as_path, check_place
from ddpm_jax.tasks import sample_files
from ddpm_jax.tasks.editing import check_one_picture, make_any
from ddpm_jax.tasks.editing_settings import Editing, Inpainting, Interpolation, Reconstruction
from ddpm_jax.tasks.sample_files import Samples
from ddpm_jax.tasks.sampling_settings import Sampling

RECORDS = (
    Checkpoint,
    Samples,
    Sampling,
    Editing,
    Inpainting,
    Interpolation,
    latents.SharedLatents,
    Reconstruction,
    Limit,
    Processes,
)


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code; see `command.run` for the errors."""
    flags = Parser(__doc__, *RECORDS).parse(argv)
    check_names_a_run(flags)
    stop = make_interrupt(flags)
    drawings = latents.asked(flags)
    samples, sampling = flags.make(Samples), flags.make(Sampling)
    editing, inpainting = flags.make(Editing), flags.make(Inpainting)
    check_one_picture(editing, inpainting)
    prepare(flags)
    trained = load_trained(flags.ckpt, step=flags.ckpt_step, raw_weights=flags.raw_weights)
    model = identity(trained)
    hosts.check_equal(common_flags(flags) | {"the step of the checkpoint": trained.step} | model)
    made_by = {
        "checkpoint": str(flags.ckpt),
        "checkpoint_step": trained.step,
        "weights": trained.average,
        **model,
    }
    if drawings:
        out = _checked(flags, trained, as_path(flags.ckpt) / "generated")
        with stop, _keeping("nothing is kept of the picture; the same command begins it again."):
            latents.draw(trained, made_by, flags, drawings, out)
        return 0
    generator = make_any(trained, sampling, editing, inpainting)
    folder = sample_files.folder_name(generator, samples)
    out = _checked(flags, trained, as_path(flags.ckpt) / "generated" / folder)
    with stop:
        _write(generator, out, made_by, samples)
    hosts.wait_for_all("the pictures are drawn")
    return 0


def _checked(flags: Flags, trained: TrainedModel, default: os.PathLike) -> os.PathLike:
    """Return where the results go: --out, or a default; refuse a place that nothing may go to."""
    out = as_path(flags.out) if flags.out else default
    check_place(out, flag="--out", writing=True)
    check_places(trained.model.config.data, out=flags.out)
    return out


def _write(
    generator: sample_files.ImageGenerator,
    out: os.PathLike,
    made_by: dict[str, Any],
    samples: Samples,
) -> None:
    sample_files.write_samples(generator, out, made_by, samples)
    if hosts.is_primary():
        with _keeping("the images are kept; the same command draws them."):
            sample_files.draw_grid(generator, out, num_samples=samples.num_samples)
            if samples.chain:
                sample_files.draw_chain(generator, out, samples)


@contextlib.contextmanager
def _keeping(what: str) -> Iterator[None]:
    """Say what is kept where the body is stopped and does not say so itself."""
    try:
        yield
    except interrupt.Stopped as stopped:
        raise interrupt.Stopped(stopped.wish, what) from None


if __name__ == "__main__":
    sys.exit(run(main))
