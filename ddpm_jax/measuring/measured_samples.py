"""Samples to measure and the data to compare them with, checked before any are made."""

import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.data.sources import Source
from ddpm_jax.distributed import hosts, interrupt
from ddpm_jax.experiments.datasets import load_evaluated, load_split
from ddpm_jax.experiments.identity import identity, versions
from ddpm_jax.experiments.trained_model import TrainedModel
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


def open_samples(
    name: str,
    trained: TrainedModel,
    images: EvaluatedImages,
    settings: SampleQuality,
    directory: pathlib.Path | None,
) -> MeasuredSamples:
    """Open the data and check all settings before any sample is made.

    Raises:
      UsageError: what `make_generator` raises; a split that is not there; a result of the metric
        `name` in `directory` that was made otherwise.
    """
    generator = make_generator(trained, settings.sampling)
    data = trained.model.config.data
    held_out_split = images.split or data.test_split
    train, other = load_evaluated(trained, data.train_split, data_dir=images.data_dir)
    held_out = (
        train
        if held_out_split == data.train_split
        else load_split(data, held_out_split, data_dir=images.data_dir)
    )
    record = {
        **identity(trained),
        "data": [split.fingerprint for split in (train, held_out)],
        "num_samples": settings.num_samples,
        "seed": settings.seed,
        **generator.record,
        **other,
    }
    reference = ""
    if settings.num_reference and name == "frechet_pixels":
        # absent otherwise: results from before there was the setting may be written again
        record["num_reference"] = settings.num_reference
        reference = f"_ref{settings.num_reference}"
    split = f"_{stem(images.split)}" if images.split else ""
    how = f"{generator.name()}_seed{settings.seed}"
    suffix = f"{split}_n{settings.num_samples}{reference}_{how}"
    if directory is not None:
        path = result_path(directory, name, trained, f"{suffix}.json")
        results.check_record(path, record | results.machine() | {"versions": versions()})
    return MeasuredSamples(generator, train, held_out, record, suffix)


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
