"""The images of a likelihood: a split of a dataset, or given images."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.data.captions import Captions, CaptionTable
from ddpm_jax.data.dataset_info import parse_labels
from ddpm_jax.data.in_memory import ArraySource
from ddpm_jax.data.sources import Source
from ddpm_jax.errors import UsageError, plural
from ddpm_jax.evaluation.batches import check_images
from ddpm_jax.experiments.datasets import load_evaluated
from ddpm_jax.experiments.identity import identity
from ddpm_jax.experiments.models import DiffusionModel, Model
from ddpm_jax.experiments.run_settings import frozen_first_stage
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.measuring.evaluation_settings import EvaluatedImages, Likelihood
from ddpm_jax.models.condition import check_labels


class Split(NamedTuple):
    """The images of a likelihood."""

    source: Source
    num_images: int  # the first so many of the source
    record: dict[str, Any]  # the settings of a number about them, except the method's
    suffix: str  # of files about them
    description: str  # in words


def open_split(trained: TrainedModel, images: EvaluatedImages, settings: Likelihood) -> Split:
    """Open the images to evaluate, by default all of the config's test split.

    For a conditional model the likelihood is that of the images given their conditions, as record
    and description say.

    Raises:
      UsageError: a model over latents; a split or number of images that is not there; images of
        another shape than the model's, or not of its classes.
    """
    model = trained.model
    _check_is_over_images(model)
    name = images.split or model.config.data.test_split
    source, other = load_evaluated(trained, name, data_dir=images.data_dir)
    num_images = check_images(source, model.image_shape, split=name, num_images=images.num_images)
    given = model.conditioning.names if isinstance(model, DiffusionModel) else ()
    record = {
        **identity(trained),
        "split": name,
        "data": source.fingerprint,
        "num_images": num_images,
        "seed": settings.seed,
        "draws": settings.draws,
        "dtype": str(model.config.model.dtype),
    }
    if model.config.objective == "diffusion":
        record["num_timesteps"] = model.schedule.num_timesteps
    if given:  # absent otherwise: results from before there were conditions are resumed
        record["given"] = list(given)
    words = f" given {' and '.join(given)}" if given else ""
    return Split(
        source,
        num_images,
        record | other,
        f"_{stem(name)}_n{num_images}",
        f"{plural(num_images, 'image')} of {name}{words}",
    )


def in_memory(
    trained: TrainedModel,
    images: np.ndarray,
    labels: Sequence[int | str] | None,
    captions: Sequence[str] | None = None,
) -> ArraySource:
    """Return images of the caller as a source.

    Args:
      trained: the model to evaluate.
      images: uint8 [N, H, W, C].
      labels: classes by number or name, one for each image; None for a model without classes.
      captions: a text for each image, "" for none; None for a model that reads no texts.

    Raises:
      UsageError: a model over latents; images of another type or shape than the model's; labels or
        captions that are missing, too many, or not for this model.
    """
    model = trained.model
    _check_is_over_images(model)
    images = np.asarray(images)
    if images.ndim != 4 or not len(images) or images.dtype != np.uint8:
        raise UsageError(
            f"images is {images.dtype} {list(images.shape)}: give uint8 [N, H, W, C], N at least 1."
        )
    num_classes = model.conditioning.num_classes
    source = ArraySource(
        images,
        _labels(trained, labels, len(images)),
        num_classes,
        "given",
        captions=_captions(trained, captions, len(images)),
    )
    check_images(source, model.image_shape, split="given", num_images=None)
    return source


def _labels(
    trained: TrainedModel, labels: Sequence[int | str] | None, num_images: int
) -> np.ndarray:
    num_classes = trained.model.conditioning.num_classes
    if not num_classes:
        if labels is not None:
            raise UsageError("labels: this model was trained without labels, so leave them out.")
        return np.zeros(num_images, np.int32)
    _check_one_each("labels", labels, num_images)
    found = np.array(parse_labels([str(label) for label in labels], trained.class_names), np.int32)
    check_labels(found, num_classes)
    return found


def _captions(
    trained: TrainedModel, texts: Sequence[str] | None, num_images: int
) -> Captions | None:
    if not trained.model.conditioning.has_text:
        if texts is not None:
            raise UsageError("captions: this model was trained without texts, so leave them out.")
        return None
    _check_one_each("captions", texts, num_images)
    numbers: dict[str, int] = {"": 0}
    given = [numbers.setdefault(text, len(numbers)) for text in texts]
    return Captions(
        CaptionTable(tuple(numbers)), np.array(given, np.int32), np.arange(num_images + 1)
    )


def _check_one_each(name: str, given: Sequence[Any] | None, num_images: int) -> None:
    if given is None or len(given) != num_images:
        count = "missing" if given is None else f"{len(given)}"
        raise UsageError(f"{name}: {count}, but there are {num_images} images: give one for each.")


def _check_is_over_images(model: Model) -> None:
    if frozen_first_stage(model) is not None:
        raise UsageError(
            "This model is one of latents, so its bound and its flow are of those and not of "
            "images: take frechet_pixels, or elbo of the first stage."
        )


def stem(split: str) -> str:
    """Return the name of a split as a part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", split).strip("-")
