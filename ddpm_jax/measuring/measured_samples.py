"""Samples to measure and the data to compare them with, checked before any are made."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.data.captions import AUTO
from ddpm_jax.data.dataset_info import dataset_info
from ddpm_jax.data.sources import Source
from ddpm_jax.distributed import hosts, interrupt
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.datasets import load_evaluated, load_split
from ddpm_jax.experiments.identity import identity, versions
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.measuring.drawn_captions import DrawnCaptions, draw_captions
from ddpm_jax.measuring.evaluated_split import stem
from ddpm_jax.measuring.evaluation_settings import EvaluatedImages, SampleQuality
from ddpm_jax.measuring.measurement import result_path
from ddpm_jax.monitoring import results
from ddpm_jax.monitoring.progress import Counter
from ddpm_jax.tasks.image_generator import ImageGenerator
from ddpm_jax.tasks.sampling import make_generator


class MeasuredSamples(NamedTuple):
    """Samples that are not made yet, and the data to compare them with."""

    generator: ImageGenerator
    train: Source
    held_out: Source  # the same one, if the split is that of training
    record: dict[str, Any]  # the settings that the numbers depend on
    suffix: str  # of files about them
    drawn: DrawnCaptions | None = None  # of a model that reads texts, where no prompt is given

    def class_name(self, label: int) -> str:
        """Return the name of a class of the data, or its number."""
        names = dataset_info(self.held_out).class_names
        return names[label] if names else str(label)


def open_samples(
    name: str,
    trained: TrainedModel,
    images: EvaluatedImages,
    settings: SampleQuality,
    directory: pathlib.Path | None,
    *,
    split: str | None = None,
    needs_classes: bool = False,
    decides: Mapping[str, Any] | None = None,
    mark: str = "",
) -> MeasuredSamples:
    """Open the data and check all settings before any sample is made.

    A model that reads texts draws captions of the split, unless a prompt is given.

    Args:
      name: of the metric.
      trained: the model.
      images: the split to compare samples with, and to take captions from.
      settings: how samples are made.
      directory: of results, if any.
      split: the one to compare with where `images` names none; None for the config's test split.
      needs_classes: whether the captions must be of images with classes.
      decides: what else decides the numbers, for the record.
      mark: its part in the names of files.

    Raises:
      UsageError: what `make_generator` raises; a split that is not there, or without captions or
        classes where they are needed; a result of the metric `name` in `directory` that was made
        otherwise.
    """
    model, data = trained.model, trained.model.config.data
    has_own_prompt = not model.conditioning.has_text or settings.sampling.prompt is not None
    held_out_split = images.split or split or data.test_split
    where = {
        "data_dir": images.data_dir,
        "captions": None if has_own_prompt else data.captions or AUTO,
    }
    generator = make_generator(trained, settings.sampling) if has_own_prompt else None
    train, other = load_evaluated(trained, data.train_split, **where)
    held_out = (
        train if held_out_split == data.train_split else load_split(data, held_out_split, **where)
    )
    if needs_classes and held_out.num_classes < 2:
        raise UsageError(
            f"{name}: the images of this data have no classes, so no caption says of which class a "
            "sample is: take frechet_pixels or clip_score."
        )
    drawn = None
    if generator is None:
        drawn = draw_captions(model, held_out, settings.num_samples, split=held_out_split)
        generator = _generator_of(drawn, trained, settings)
    record = {
        **identity(trained),
        "data": list(dict.fromkeys(source.fingerprint for source in (train, held_out))),
        "num_samples": settings.num_samples,
        "seed": settings.seed,
        **generator.record,
        **other,
        **(decides or {}),
    }
    of_split = f"_{stem(images.split)}" if images.split else ""
    how = f"{generator.name()}_seed{settings.seed}"
    suffix = f"{of_split}_n{settings.num_samples}{mark}_{how}"
    if directory is not None:
        path = result_path(directory, name, trained, f"{suffix}.json")
        results.check_record(path, record | results.machine() | {"versions": versions()})
    return MeasuredSamples(generator, train, held_out, record, suffix, drawn)


def _generator_of(
    drawn: DrawnCaptions, trained: TrainedModel, settings: SampleQuality
) -> ImageGenerator:
    """Return the generator of samples of captions; its record has their digest, not all texts."""
    sampling = dataclasses.replace(settings.sampling, prompt=drawn.texts)
    generator = make_generator(trained, sampling)
    record = {name: value for name, value in generator.record.items() if name != "prompt"}
    return dataclasses.replace(generator, record=record | {"prompts": drawn.record})


def draw_samples(generator: ImageGenerator, settings: SampleQuality) -> np.ndarray:
    """Make the samples, each process its share of them: uint8 [N, H, W, C] on every process.

    Raises:
      Stopped: by a signal or a time limit.
    """
    indices = hosts.share(settings.num_samples)
    with Counter("sampling", len(indices), unit="image") as counter:
        batches = generator.batches(
            indices,
            seed=settings.seed,
            batch_size=-(-settings.batch_size // jax.process_count()),
            on_rows=counter.within,
        )
        return hosts.gather(
            (_counted(pixels, counter) for _, pixels in batches), settings.num_samples
        )


def _counted(images: np.ndarray, counter: Counter) -> np.ndarray:
    counter.add(len(images))
    interrupt.check()
    return images
