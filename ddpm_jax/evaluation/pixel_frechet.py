"""The Frechet distance between sets of images on raw pixels."""

import chex
import numpy as np

from ddpm_jax.data.in_memory import ArraySource
from ddpm_jax.data.sources import Source
from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation.frechet import check_sets, frechet_distance_of_sets


def check_pixel_sets(
    train: Source, held_out: Source | None, *, num_samples: int, num_reference: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the images to compare samples with; refuse sets that cannot be compared.

    It reads and makes no image.

    Args:
      train: the training images.
      held_out: images of their shape, compared with them as the samples are; None for no such
        comparison.
      num_samples: N, the number of samples to come.
      num_reference: training images to compare with, spread evenly over all; None for all.

    Returns:
      The rows of `train`, [M], and those of `held_out`, the first N or all there are.

    Raises:
      UsageError: a set has fewer than 2 images, or a distance needs more memory than there is.
    """
    if held_out is not None and len(held_out) < 2:
        raise UsageError(
            f"There are {len(held_out)} held-out images, but the distance of samples is compared "
            "with that of at least 2 of these: take another metric, or hold out more."
        )
    num_held_out = 0 if held_out is None else min(num_samples, len(held_out))
    count, dims = min(num_reference or len(train), len(train)), int(np.prod(train.image_shape))
    # Samples are stored twice while their batches are joined into one array.
    pictures = 2 * num_samples + num_held_out + (0 if isinstance(train, ArraySource) else count)
    for num_compared in (num_samples, num_held_out or num_samples):
        check_sets(
            num_compared,
            count,
            dims,
            besides=dims * pictures,
            remedy="lower num_samples, or compare with fewer training images by num_reference",
        )
    return np.linspace(0, len(train) - 1, count).round().astype(int), np.arange(num_held_out)


def pixel_frechet_distance(images_a: np.ndarray, images_b: np.ndarray) -> float:
    """Return the Frechet distance of two sets of images on their pixels, scaled to [0, 1].

    A check for small images, where it distinguishes a trained model from an untrained one in a
    second. It is not the FID. Finite sets bias it upwards: compare sets of equal size.

    Args:
      images_a: uint8 [N, H, W, C].
      images_b: uint8 [M, H, W, C].

    Returns:
      d² >= 0, in units of the squared intensity range. On [-1, 1] it would be 4 times as large.

    Raises:
      UsageError: the two sets differ in image shape, or `frechet_distance_of_sets` refuses them.
    """
    chex.assert_type([images_a, images_b], np.uint8)
    chex.assert_rank([images_a, images_b], 4)
    if images_a.shape[1:] != images_b.shape[1:]:
        raise UsageError(
            f"Cannot compare images of shape {images_a.shape[1:]} with images of shape "
            f"{images_b.shape[1:]}: give two sets of the same height, width and channels."
        )
    dims = int(np.prod(images_a.shape[1:]))
    flat_a, flat_b = (images.reshape(len(images), dims) for images in (images_a, images_b))
    return frechet_distance_of_sets(flat_a, flat_b) / 255**2
