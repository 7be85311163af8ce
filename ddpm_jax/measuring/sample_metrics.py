"""The metrics frechet_pixels and classification_accuracy: samples of a model against its data."""

import functools
import pathlib
from typing import Any

import numpy as np

from ddpm_jax.data.in_memory import in_memory
from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation.classification import check_labelled_sets, classification_accuracy_score
from ddpm_jax.evaluation.pixel_frechet import check_pixel_sets, pixel_frechet_distance
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.measuring.evaluation_settings import EvaluatedImages, SampleQuality
from ddpm_jax.measuring.measured_samples import MeasuredSamples, draw_samples, open_samples
from ddpm_jax.measuring.measurement import Measurement


def frechet_pixels(
    trained: TrainedModel,
    images: EvaluatedImages,
    settings: SampleQuality,
    directory: pathlib.Path | None = None,
) -> Measurement:
    """Measure the Frechet distance of samples' pixels to the training images.

    The distance of the held-out images is measured too, unless the split is that of training.

    Raises:
      UsageError: sets too small or too large to compare; what `open_samples` raises.
    """
    # absent without: results from before there was the setting may be written again
    reference = settings.num_reference
    decides, mark = ({"num_reference": reference}, f"_ref{reference}") if reference else ({}, "")
    found = open_samples(
        "frechet_pixels", trained, images, settings, directory, decides=decides, mark=mark
    )
    held_out = None if found.held_out is found.train else found.held_out
    rows, held_out_rows = check_pixel_sets(
        found.train,
        held_out,
        num_samples=settings.num_samples,
        num_reference=settings.num_reference,
    )
    train = in_memory(found.train, rows).images
    real = None if held_out is None else in_memory(held_out, held_out_rows).images
    distance = pixel_frechet_distance(draw_samples(found.generator, settings), train)
    numbers = _counts(found, settings, train, real) | {"frechet_samples": distance}
    if real is not None:
        numbers["frechet_held_out"] = pixel_frechet_distance(real, train)
        numbers["ratio"] = distance / numbers["frechet_held_out"]
    return Measurement(found.record | numbers, _lines(numbers), found.suffix)


def classification_accuracy(
    trained: TrainedModel,
    images: EvaluatedImages,
    settings: SampleQuality,
    directory: pathlib.Path | None = None,
) -> Measurement:
    """Measure the held-out accuracy of a classifier fitted to samples by class.

    A classifier fitted to the training images is measured too. The class of a sample of a caption
    is that of the caption's image.

    Raises:
      UsageError: samples without classes; sets too large; what `open_samples` raises.
    """
    of_captions = _takes_classes_of_captions(trained, settings)
    found = open_samples(
        "classification_accuracy", trained, images, settings, directory, needs_classes=of_captions
    )
    if of_captions:
        labels = in_memory(found.held_out).labels[found.drawn.rows]
    else:
        labels = found.generator.inputs(np.arange(settings.num_samples))["label"]
    sizes = settings.num_samples, len(found.train), len(found.held_out)
    dims = int(np.prod(found.train.image_shape))
    check_labelled_sets(labels, max(sizes), dims, besides=dims * sum(sizes))
    train, held_out = in_memory(found.train), in_memory(found.held_out)
    score = functools.partial(
        classification_accuracy_score, real_images=held_out.images, real_labels=held_out.labels
    )
    numbers = {
        **_counts(found, settings, train.images, held_out.images),
        "fitted_to_samples": score(draw_samples(found.generator, settings), labels),
        "fitted_to_training_images": score(train.images, train.labels),
    }
    return Measurement(found.record | numbers, _lines(numbers), found.suffix)


def _takes_classes_of_captions(trained: TrainedModel, settings: SampleQuality) -> bool:
    """Return whether a sample's class is that of its caption's image, not one that is given.

    Raises:
      UsageError: it has neither.
    """
    conditioning = trained.model.conditioning
    if conditioning.num_classes:
        return False
    if not conditioning.has_text:
        raise UsageError(
            "classification_accuracy: this model was trained without labels, so its samples have "
            "none."
        )
    if settings.sampling.prompt is not None:
        raise UsageError(
            "classification_accuracy draws the captions of a split, whose classes are known: leave "
            "prompt out."
        )
    return True


def _counts(
    found: MeasuredSamples,
    settings: SampleQuality,
    train: np.ndarray,
    held_out: np.ndarray | None,
) -> dict[str, Any]:
    return {
        "num_samples": settings.num_samples,
        **({} if held_out is None else {"num_held_out": len(held_out)}),
        "num_train": len(train),
        "steps": found.generator.record["steps"],
        "evaluations": found.generator.sampler.evaluations,
    }


def _lines(numbers: dict[str, Any]) -> str:
    return "\n".join(
        f"{k:25} {v:.4g}" if isinstance(v, float) else f"{k:25} {v}" for k, v in numbers.items()
    )
