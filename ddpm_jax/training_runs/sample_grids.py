"""Sample grids during training: drawn, shown, and compared in colour with training images.

The content and the layout of the picture are a `preview.Preview`.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ddpm_jax.data.dataset_info import dataset_info
from ddpm_jax.data.in_memory import gather
from ddpm_jax.data.sources import Source
from ddpm_jax.distributed import hosts
from ddpm_jax.evaluation.colour import CHANNELS, Colours, colours, moments, shift
from ddpm_jax.experiments.models import DiffusionModel
from ddpm_jax.files import reporting
from ddpm_jax.generation.generating import make_generate
from ddpm_jax.monitoring.metric_writer import MetricWriter
from ddpm_jax.monitoring.progress import Progress
from ddpm_jax.plotting.grids import save_png, side_by_side
from ddpm_jax.randomness import base_key
from ddpm_jax.samplers.registry import own_sampler
from ddpm_jax.text.tokenizer import Tokenizer
from ddpm_jax.training.state import TrainState
from ddpm_jax.training_runs.preview import make_preview

PICTURED = ("diffusion", "first_stage")  # objectives whose models make pictures
# training images to compare with: more would make the standard error of 64 samples 0.8 % smaller
REFERENCE = 4096
# standard errors: 64 of CIFAR-10's own images were further off in 11 of 40,000 draws
TOLERANCE = 4.0
_CHUNK = 256  # images read at once


def grid_path(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """Return the path of the grid of a step."""
    return workdir / "samples" / f"step_{step:08d}.png"


def grid_writer(
    model: DiffusionModel,
    source: Source,
    workdir: pathlib.Path,
    writer: MetricWriter,
    progress: Progress,
    *,
    whole: Callable[[Any], Any] = lambda params: params,
    tokenizer: Tokenizer | None = None,
) -> Callable[[int, TrainState], None]:
    """Return on_sample(step, state), which draws a grid.

    Noise and conditions are the same every time, so that grids can be compared.

    Args:
      model: the run's.
      source: its training images.
      workdir: where the pictures go.
      writer: gets the picture, and the mean and standard deviation of each channel.
      progress: for the person who watches.
      whole: parameters as the state holds them -> on every device, as they are sampled with
        (`Parallelism.whole`).
      tokenizer: of a model that reads texts.

    Raises:
      UsageError: see `preview.make_preview`.
    """
    config = model.config
    preview = make_preview(model, dataset_info(source).class_names, tokenizer)

    def generate_by(model):
        sampler = own_sampler(model.chain, model.method, steps=config.train.sample_steps)
        return make_generate(
            model.denoiser, sampler, model.shape, decode=model.decode, together=True
        )

    by_given_levels = generate_by(model)  # compiled once; of learned levels once a grid
    labels = None if preview.condition is None else preview.condition.label
    data = functools.cache(lambda: reference_colours(source, labels))

    def draw(weights) -> np.ndarray:
        mine = hosts.share(preview.count)
        inputs = jax.tree.map(lambda leaf: leaf[mine], preview.condition)
        watch = functools.partial(progress.drawing, f"{preview.count} samples")
        weights = hosts.local(whole(weights))
        trained = model.at_levels_of(weights)
        generate = by_given_levels if trained is model else generate_by(trained)
        made = generate(weights, base_key(config.seed), mine, inputs=inputs, watch=watch).images
        return hosts.gather([made], preview.count)

    def on_sample(step: int, state: TrainState) -> None:
        images = draw(model.weights(state.ema_params, state.frozen))
        raw = draw(model.weights(state.params, state.frozen)) if config.train.raw_grid else None
        if not hosts.is_primary():
            return
        picture = preview.draw(images)
        if raw is not None:
            picture = side_by_side({"EMA": picture, "raw weights": preview.draw(raw)})
        record, warning = compare_colours(colours(moments(images)), data())
        # The record first: a resumed run does not draw the picture again if its file exists.
        writer.write(step, record)
        writer.flush()
        with reporting(grid_path(workdir, step)):
            save_png(grid_path(workdir, step), picture)
        writer.image(step, "samples", picture)
        if warning:
            progress.say(f"step {step}: {warning}")

    return on_sample


def reference_colours(source: Source, labels: np.ndarray | None) -> Colours:
    """Return the colours of up to `REFERENCE` training images, evenly spaced in the source.

    Args:
      source: of the training images.
      labels: int [n], classes of the samples to compare with: each class counts by its share of
        these; or None.
    """
    indices = np.unique(
        np.linspace(0, len(source) - 1, min(REFERENCE, len(source))).round().astype(np.int64)
    )
    batches = [gather(source, indices[i : i + _CHUNK]) for i in range(0, len(indices), _CHUNK)]
    found = np.concatenate([moments(batch["image"]) for batch in batches])
    if labels is None:
        return colours(found)
    theirs = np.concatenate([batch["label"] for batch in batches])
    classes = max(theirs.max(), labels.max()) + 1
    wanted, there = (np.bincount(of, minlength=classes) for of in (labels, theirs))
    return colours(found, (wanted / np.maximum(there, 1))[theirs])


def compare_colours(samples: Colours, data: Colours) -> tuple[dict[str, float], str | None]:
    """Return the metrics, and a sentence if the samples are further off than chance explains.

    Metrics: `sample_mean_red` and so on, `sample_std_...`, the same of the data, in 0..255; and
    `colour_shift`, the largest distance of all, in standard errors.
    """
    names, off = CHANNELS[len(data.mean)], shift(samples, data)
    record = {
        f"{whose}_{what}_{name}": float(value)
        for whose, found in (("sample", samples), ("data", data))
        for what in ("mean", "std")
        for name, value in zip(names, getattr(found, what), strict=True)
    }
    which, channel = np.unravel_index(np.argmax(np.abs(off)), (2, len(names)))
    errors = float(np.abs(off[which][channel]))
    record["colour_shift"] = errors
    if errors <= TOLERANCE:
        return record, None
    what, theirs, ours = (
        ("mean", samples.mean, data.mean)
        if which == 0
        else ("standard deviation", samples.std, data.std)
    )
    return record, (
        f"the samples' {what} of {names[channel]} is {theirs[channel]:.1f}, that of the training "
        f"images {ours[channel]:.1f}: {errors:.1f} standard errors of {samples.count:.0f} images "
        "apart."
    )
