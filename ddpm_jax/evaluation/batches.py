"""The images of a split for likelihoods: batches that the local devices share, and where in the split each image is."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from ddpm_jax.data import pipeline
from ddpm_jax.data.sources import Source
from ddpm_jax.errors import UsageError


class ImageBatch(NamedTuple):
    """B images, a multiple of the local devices; every batch of a stream has the same B."""

    images: np.ndarray  # uint8 [B, H, W, C]
    labels: np.ndarray  # int32 [B], 0 without classes
    index: np.ndarray  # int [B], place in the source
    wanted: np.ndarray  # bool [B], False for rows that fill up a batch or that were done before


def image_batches(source: Source, *, num_images: int, batch_size: int, done: int = 0) -> Iterator[ImageBatch]:
    """Yields images done..num_images-1 in order.

    The last batch is filled up with its last image: what is computed of an image is then computed again, and never of
    one that is not in the data.

    Args:
      source: image i is its i-th.
      num_images: at most len(source).
      batch_size: over all devices; rounded up to a multiple of them.
      done: images to leave out at the start, those that an earlier run has done; any number.

    Raises:
      UsageError: batch_size below 1.
      FailureError: an image that cannot be read.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}: choose at least 1.")
    devices = jax.local_device_count()
    batch_size = math.ceil(min(batch_size, num_images) / devices) * devices
    batches = pipeline.eval_batches(source, batch_size=batch_size, num_images=num_images)
    for first, (batch, real) in zip(range(0, num_images, batch_size), batches, strict=True):
        row = np.minimum(np.arange(batch_size), np.count_nonzero(real) - 1)
        wanted = real & (first + row >= done)
        if wanted.any():
            yield ImageBatch(batch["image"][row], batch["label"][row], first + row, wanted)
