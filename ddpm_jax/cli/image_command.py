"""The common part of the commands that make images, from flags to files.

`sample`, `edit`, `interpolate` and `reconstruct` have flags of their own; `python sample.py` has
those of all four, and the given flags select the task.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from ddpm_jax.cli.arguments import Flags
from ddpm_jax.cli.picture_flags import draw_pictures, requested_pictures
from ddpm_jax.cli.shared_flags import (
    check_names_a_run,
    common_flags,
    make_interrupt,
    prepare,
    reading,
    updating,
)
from ddpm_jax.distributed import hosts, interrupt
from ddpm_jax.errors import say
from ddpm_jax.experiments.datasets import check_places
from ddpm_jax.experiments.identity import checkpoint_record, identity
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.experiments.model_files import results_of
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.files import as_path, check_place
from ddpm_jax.tasks import sample_files
from ddpm_jax.tasks.editing_settings import Editing, Inpainting
from ddpm_jax.tasks.picture_editing import check_one_picture, make_any
from ddpm_jax.tasks.sample_files import Samples
from ddpm_jax.tasks.sample_formats import FORMATS
from ddpm_jax.tasks.sampling_settings import Sampling


def make_images(flags: Flags) -> int:
    """Make the samples or the pictures that the flags ask for; return the exit code."""
    check_names_a_run(flags)
    stop = make_interrupt(flags)
    pictures = requested_pictures(flags)
    sampling = flags.make(Sampling)
    samples = flags.make(Samples).for_prompts(sampling.prompt)
    editing, inpainting = flags.make(Editing), flags.make(Inpainting)
    check_one_picture(editing, inpainting)
    prepare(flags)
    trained = load_trained(flags.ckpt, **reading(flags), **updating(flags))
    model = identity(trained)
    hosts.check_equal(common_flags(flags) | {"the step of the checkpoint": trained.step} | model)
    made_by = checkpoint_record(trained)
    if pictures:
        out = _checked(flags, trained, results_of(flags.ckpt, "generated"))
        with stop, _keeping("nothing is kept of the picture; the same command begins it again."):
            draw_pictures(trained, made_by, flags, pictures, out)
        return 0
    generator = make_any(trained, sampling, editing, inpainting)
    folder = sample_files.folder_name(generator, samples)
    out = _checked(flags, trained, results_of(flags.ckpt, "generated") / folder)
    with stop:
        _write(generator, out, made_by, samples)
    hosts.wait_for_all("the pictures are drawn")
    return 0


def _checked(flags: Flags, trained: TrainedModel, default: os.PathLike) -> os.PathLike:
    """Return the directory of the results: --out, or a default, if it may be written to."""
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
            labels = generator.labels
            if labels is not None:
                labels = labels[np.arange(samples.num_samples) % len(labels)]
            for path in FORMATS[samples.format](out, labels):
                say(f"  {path}")
            sample_files.draw_grid(generator, out, num_samples=samples.num_samples)
            if samples.chain:
                sample_files.draw_chain(generator, out, samples)
            if samples.save_every:
                sample_files.draw_on_the_way(generator, out, samples)


@contextlib.contextmanager
def _keeping(what: str) -> Iterator[None]:
    """Say what is kept if the body is stopped and does not say so itself."""
    try:
        yield
    except interrupt.Stopped as stopped:
        raise interrupt.Stopped(stopped.wish, what) from None
