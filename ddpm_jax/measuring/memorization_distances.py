"""What the distances of the metric memorization are of: pixels, or the features of a network."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.data.in_memory import in_memory
from ddpm_jax.evaluation.memorization import Mirror
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.measuring.evaluation_settings import Features, Memorization
from ddpm_jax.measuring.feature_cache import open_cache
from ddpm_jax.measuring.feature_sets import Needs, compute_features
from ddpm_jax.measuring.image_comparison import (
    READ,
    check_resizes,
    network_for,
    network_record,
)
from ddpm_jax.measuring.image_sets import ImageSet


class Distances(NamedTuple):
    """Rows of numbers for images, whose Euclidean distances count."""

    record: dict[str, Any]  # what a result says of them
    # (images, whether features of them may be kept in the cache) -> [N, D]
    rows: Callable[[ImageSet, bool], np.ndarray]
    mirror: Mirror | None  # of the rows, where the model was trained on mirrored images too


def distances_of(trained: TrainedModel, settings: Memorization) -> Distances:
    """Return the distances that settings name; no image is read.

    Where the model was trained on mirrored images too, those of pixels are to the nearer of both.

    Raises:
      UsageError: as `network_for`.
    """
    if settings.distances == "pixels":
        mirrors = mirrors_images(trained)
        return Distances(
            {"name": "pixels", "range": "0..255", "mirrored": mirrors},
            lambda images, _: in_memory(images.source).images.reshape(len(images), -1),
            _mirror(trained.model.image_shape) if mirrors else None,
        )
    return _of_features(trained, settings.compared)


def mirrors_images(trained: TrainedModel) -> bool:
    """Return whether the model has seen mirrored training images too."""
    return bool(trained.model.config.data.flip)


def _mirror(shape: tuple[int, int, int]) -> Mirror:
    """Return the function that mirrors images whose pixels are rows [n, H W C]."""
    return lambda rows: rows.reshape(-1, *shape)[:, :, ::-1].reshape(rows.shape)


def _of_features(trained: TrainedModel, compared: Features) -> Distances:
    network = network_for(compared, trained.model.image_shape)
    check_resizes(compared, network, [trained.model.image_shape])
    cache = open_cache(compared.feature_cache)

    def rows(images: ImageSet, keep: bool) -> np.ndarray:
        return compute_features(
            images,
            np.arange(len(images)),
            network,
            Needs(elements=True),
            batch_size=READ * compared.feature_batch_size,
            cache=cache if keep else None,
        ).features

    return Distances(network_record(network, compared) | {"mirrored": False}, rows, None)
