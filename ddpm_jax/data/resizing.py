"""The resizers in front of the networks whose features are compared, each under a name.

The distance of two sets of images depends on how they were resized (Parmar et al. 2022, "On Aliased
Resizing"), so a number reproduces only with its resizer and its rounding. The pictures of a folder
are made to one size elsewhere, in `images.py`.
"""

from collections.abc import Callable

import chex
import numpy as np
from PIL import Image

from ddpm_jax.errors import choose

RESIZERS = {
    "clean": "bicubic, antialiased, in floating point, cut to 0..255 (clean-fid)",
    "bilinear_antialias": "a triangle filter, antialiased, in floating point",
    "tf1_bilinear": "two neighbours, pixel 0 onto pixel 0 (TensorFlow 1, torch-fidelity)",
    "pytorch_bilinear": "two neighbours, centres onto centres (pytorch-fid)",
}
ROUNDINGS = {
    "none": "floating-point values go to the network",
    "nearest": "to the nearest of 256 levels; in the antialiased ones after each axis, as Pillow",
    "truncate": "down to one of 256 levels",
}
_FILTERS = {
    "clean": Image.Resampling.BICUBIC,
    "bilinear_antialias": Image.Resampling.BILINEAR,
}


def check_resizing(resizer: str, rounding: str) -> None:
    """Refuse names that `resized` does not know.

    Raises:
      UsageError: the sentence lists the valid ones.
    """
    choose("resizer", resizer, RESIZERS)
    choose("rounding", rounding, ROUNDINGS)


def resized(images: np.ndarray, size: int, *, resizer: str, rounding: str = "none") -> np.ndarray:
    """Resize images to a square, whatever their aspect ratio.

    Images that have this size already stay as they are.

    Args:
      images: uint8 or float [N, H, W, C], on 0..255.
      size: the height and the width of the result.
      resizer: a key of `RESIZERS`.
      rounding: a key of `ROUNDINGS`.

    Returns:
      float32 [N, size, size, C], on 0..255.

    Raises:
      UsageError: as `check_resizing`.
    """
    check_resizing(resizer, rounding)
    chex.assert_rank(images, 4)
    if images.shape[1:3] == (size, size):
        return _rounded(images.astype(np.float32), rounding)
    if resizer in _FILTERS:
        resize = _by_pillow_in_8_bits if _in_8_bits(images, rounding) else _by_pillow
        values = np.stack([resize(image, size, _FILTERS[resizer]) for image in images])
    else:
        weigh = _tensorflow_1 if resizer == "tf1_bilinear" else _pytorch
        values = _between_neighbours(images.astype(np.float32), size, weigh)
    return _rounded(values, rounding)


def _in_8_bits(images: np.ndarray, rounding: str) -> bool:
    return rounding == "nearest" and images.dtype == np.uint8 and images.shape[-1] in (1, 3)


def _rounded(values: np.ndarray, rounding: str) -> np.ndarray:
    match rounding:
        case "nearest":
            return np.rint(values).clip(0.0, 255.0)
        case "truncate":
            return np.trunc(values.clip(0.0, 255.0))
    return values


def _by_pillow(image: np.ndarray, size: int, kind: Image.Resampling) -> np.ndarray:
    """Resize [H, W, C] channel by channel in float32."""
    channels = [
        Image.fromarray(np.ascontiguousarray(channel)).resize((size, size), kind)
        for channel in np.moveaxis(image.astype(np.float32), -1, 0)
    ]
    # A cubic filter overshoots at edges.
    return np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0.0, 255.0)


def _by_pillow_in_8_bits(image: np.ndarray, size: int, kind: Image.Resampling) -> np.ndarray:
    """Resize uint8 [H, W, 1 or 3] as a picture, which Pillow rounds after each axis."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    values = np.asarray(picture.resize((size, size), kind), np.float32)
    return values.reshape(size, size, -1)


# (length of an axis before, and after) -> where on it each new pixel lies, float32
Positions = Callable[[int, int], np.ndarray]


def _tensorflow_1(before: int, after: int) -> np.ndarray:
    return np.arange(after, dtype=np.float32) * np.float32(before / after)


def _pytorch(before: int, after: int) -> np.ndarray:
    scale = np.float32(before / after)
    positions = (np.arange(after, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    return np.maximum(positions, np.float32(0))


def _between_neighbours(x: np.ndarray, size: int, positions: Positions) -> np.ndarray:
    """Interpolate [N, H, W, C] linearly along the width, then along the height."""
    for axis in (2, 1):
        length = x.shape[axis]
        place = positions(length, size)
        low = np.minimum(place.astype(np.int64), length - 1)
        share = np.expand_dims(place - low.astype(np.float32), tuple(range(1, x.ndim - axis)))
        below = x.take(low, axis)
        above = x.take(np.minimum(low + 1, length - 1), axis)
        x = below + (above - below) * share
    return x
