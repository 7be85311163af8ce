"""The colours of samples against those of the training images, with a test.

They are the mean and standard deviation of each channel.

Sharp samples of the wrong tint pass unnoticed in a grid, and an FID shows them late. Inputs and
outputs are numbers: the caller chooses the images and reports the result.
"""

from typing import NamedTuple

import chex
import numpy as np

CHANNELS = {1: ("grey",), 3: ("red", "green", "blue")}


class Colours(NamedTuple):
    """Statistics of the channels [C] of a set of images, in grey levels of 0..255."""

    mean: np.ndarray  # over the pixels of all images
    std: np.ndarray  # of the pixels of all images
    mean_spread: np.ndarray  # standard deviation over images of the mean over an image's pixels
    # standard deviation over images of an image's mean square distance from `mean`
    variance_spread: np.ndarray
    count: float  # number of images; with weights, the effective number


def moments(images: np.ndarray) -> np.ndarray:
    """Return mean and mean square of each image's channels: [N, H, W, C] -> float64 [N, 2, C]."""
    chex.assert_type(images, np.uint8)
    chex.assert_rank(images, 4)
    pixels = images.astype(np.float64)
    return np.stack([pixels.mean(axis=(1, 2)), np.square(pixels).mean(axis=(1, 2))], axis=1)


def colours(image_moments: np.ndarray, weights: np.ndarray | None = None) -> Colours:
    """Summarise a set of images.

    Args:
      image_moments: [N, 2, C], `moments` of N images.
      weights: [N], not negative, not all 0: the weight of each image; None for equal weights.
    """
    weights = np.ones(len(image_moments)) if weights is None else weights
    weights = weights / weights.sum()
    means, squares = image_moments[:, 0], image_moments[:, 1]
    mean = weights @ means
    distances = squares - 2 * mean * means + mean**2
    variance = weights @ distances
    return Colours(
        mean=mean,
        std=np.sqrt(np.maximum(variance, 0)),
        mean_spread=np.sqrt(weights @ (means - mean) ** 2),
        variance_spread=np.sqrt(weights @ (distances - variance) ** 2),
        count=1 / np.sum(weights**2),
    )


class Shift(NamedTuple):
    """The shift of samples from the data, [C], in standard errors."""

    mean: np.ndarray
    variance: np.ndarray


def shift(samples: Colours, data: Colours) -> Shift:
    """Return the shift of each channel's mean and variance from the data, in standard errors.

    The unit is the image, because its pixels are not independent draws. If the samples were n
    images drawn as the N of the data were, either difference would have the standard deviation s
    sqrt(1/n + 1/N), s being the standard deviation over the images of the data, and be nearly
    normal unless n is small.
    """
    by_chance = np.sqrt(1 / samples.count + 1 / data.count)
    return Shift(
        _in_units(samples.mean - data.mean, data.mean_spread * by_chance),
        _in_units(samples.std**2 - data.std**2, data.variance_spread * by_chance),
    )


def _in_units(difference: np.ndarray, unit: np.ndarray) -> np.ndarray:
    # A channel that is the same in all images has no spread: any difference is then infinite.
    tiny = np.finfo(np.float64).tiny
    return np.where(np.abs(difference) < 1e-9, 0.0, difference / np.maximum(unit, tiny))
