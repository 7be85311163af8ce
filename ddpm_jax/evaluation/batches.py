"""The images of a split for likelihoods, in batches that the local devices share.

A batch carries the position of each image in the split.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.data import pipeline
from ddpm_jax.data.sources import Source
from ddpm_jax.errors import UsageError


class ImageBatch(NamedTuple):
    """B images, a multiple of the local devices; every batch of a stream has the same B."""

    images: np.ndarray  # uint8 [B, H, W, C]
    labels: np.ndarray  # int32 [B], 0 without classes
    index: np.ndarray  # int [B], position in the source
    wanted: np.ndarray  # bool [B], False for rows that fill up a batch or that were done before
    captions: np.ndarray | None = None  # int32 [B], the number of each image's first caption


# what a `MakeCondition` reads of a batch besides the images, leaves [B, ...]
ReadBatch = Callable[[ImageBatch], Any]


def labels_of(batch: ImageBatch) -> np.ndarray:
    """Return the labels of a batch, int32 [B]."""
    return batch.labels


def image_batches(
    source: Source, *, num_images: int, batch_size: int, done: int = 0, first: int = 0
) -> Iterator[ImageBatch]:
    """Yield images done..num_images-1 in order, in batches counted from image `first`.

    The last batch is padded with its last image, so that nothing is computed for an image outside
    the data.

    Args:
      source: image i is its i-th.
      num_images: at most len(source).
      batch_size: over the devices of this process; rounded up to a multiple of them.
      done: the number of images to skip at the start, which an earlier run has done; at least
        `first`.
      first: at most num_images.

    Raises:
      UsageError: batch_size below 1.
      FailureError: an image that cannot be read.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}: choose at least 1.")
    devices = jax.local_device_count()
    if first == num_images:
        return
    batch_size = math.ceil(min(batch_size, num_images - first) / devices) * devices
    batches = pipeline.eval_batches(
        source, batch_size=batch_size, num_images=num_images, first=first
    )
    for start, (batch, real) in zip(range(first, num_images, batch_size), batches, strict=True):
        row = np.minimum(np.arange(batch_size), np.count_nonzero(real) - 1)
        wanted = real & (start + row >= done)
        if wanted.any():
            captions = batch["caption"][row] if "caption" in batch else None
            yield ImageBatch(
                batch["image"][row], batch["label"][row], start + row, wanted, captions
            )


def check_images(
    source: Source, image_shape: tuple[int, int, int], *, split: str, num_images: int | None
) -> int:
    """Return the number of images of the split to take: `num_images`, or all for None.

    Raises:
      UsageError: more than there are, fewer than 1, or images that differ from the model's in shape
        or do not have 8 bits.
    """
    if num_images is not None and not 1 <= num_images <= len(source):
        raise UsageError(
            f"num_images is {num_images}: split {split!r} has {len(source)} images, choose 1 to so "
            "many."
        )
    if tuple(source.image_shape) != tuple(image_shape):
        here, there = ("x".join(map(str, shape)) for shape in (source.image_shape, image_shape))
        raise UsageError(
            f"The images of split {split!r} are {here}, but the model was trained on {there}: give "
            "data of its shape."
        )
    dtype = source[0]["image"].dtype
    if dtype != np.uint8:
        raise UsageError(
            f"The images of split {split!r} are {dtype}: bits per dimension are those of 8-bit "
            "data, so give uint8 values in 0..255."
        )
    return len(source) if num_images is None else num_images
