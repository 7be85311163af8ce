"""The captions of a split that samples are drawn from where no prompt is given."""

import hashlib
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.data.sources import Source
from ddpm_jax.experiments.caption_rows import check_captions
from ddpm_jax.experiments.models import DiffusionModel


class DrawnCaptions(NamedTuple):
    """One caption for each of n samples."""

    rows: np.ndarray  # int [n]: the images of the split whose captions these are
    texts: tuple[str, ...]  # n of them
    record: dict[str, Any]  # split, number and digest


def draw_captions(
    model: DiffusionModel, source: Source, count: int, *, split: str
) -> DrawnCaptions:
    """Return captions of images spread evenly over a split, nothing random.

    Where an image has several, sample i takes number i modulo so many.

    Raises:
      UsageError: the split has no captions.
    """
    captions = check_captions(model, source)
    rows = np.arange(count) * len(source) // count
    of_images = (captions[row] for row in rows)
    texts = tuple(of_image[i % len(of_image)] for i, of_image in enumerate(of_images))
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    return DrawnCaptions(rows, texts, {"split": split, "number": count, "sha256": digest})
