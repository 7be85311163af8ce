"""Captions of the images of a source, and which of them a training step takes.

Every distinct caption has a number, so that a batch carries int32 and texts are tokenized, or
encoded, once each. Number 0 is "", the caption of an image whose own is hidden. Where captions
come from is in `caption_files`, `tfds_source`, `digits` and `emoji`.
"""

import functools
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ddpm_jax.errors import UsageError

AUTO = "auto"  # in place of a field's name: the field that is there
HIDDEN = 0  # the number of ""
_MARK = " captions="  # in a fingerprint, before their digest
_DRAWS = 1  # the spawn key of the draws; the order of the examples has none


class CaptionTable(NamedTuple):
    """Every distinct caption of a source once; `texts[0]` is ""."""

    texts: tuple[str, ...]


class Captions:
    """One caption or several for each of N images.

    Attributes:
      table: the distinct captions, in the order of their first image.
    """

    def __init__(self, table: CaptionTable, numbers: np.ndarray, starts: np.ndarray):
        """Give image i the captions numbers[starts[i]:starts[i + 1]] of the table.

        Args:
          numbers: int32 [M], all at least 1.
          starts: int64 [N + 1], increasing from 0 to M.
        """
        self.table, self._numbers, self._starts = table, numbers, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, i: int) -> tuple[str, ...]:
        """Return the captions of image i, at least one."""
        return tuple(
            self.table.texts[n] for n in self._numbers[self._starts[i] : self._starts[i + 1]]
        )

    def first(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of the first caption of each of the images, int32 [B]."""
        return self._numbers[self._starts[rows]]

    def chosen(self, rows: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Return the number of one caption of each of the images, int32 [B].

        Args:
          rows: the images, int [B].
          draws: in [0, 1), [B]; uniform draws choose each of an image's captions equally often.
        """
        count = self._starts[rows + 1] - self._starts[rows]
        return self._numbers[self._starts[rows] + (draws * count).astype(np.int64)]

    def take(self, rows: np.ndarray) -> "Captions":
        """Return the captions of the images `rows`, int [n], with the same table."""
        counts = self._starts[rows + 1] - self._starts[rows]
        starts = np.concatenate([[0], np.cumsum(counts)])
        within = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
        return Captions(
            self.table, self._numbers[np.repeat(self._starts[rows], counts) + within], starts
        )

    @functools.cached_property
    def digest(self) -> str:
        """A digest of all captions of all images, in order."""
        digest = zlib.crc32("\0".join(self.table.texts).encode())
        for array in (self._numbers, self._starts):
            digest = zlib.crc32(array.astype("<i8").tobytes(), digest)
        return f"{digest:08x}"


def make_captions(texts: Iterable[Sequence[str]]) -> Captions:
    """Return the captions of N images, given the texts of each, without spaces around them.

    Raises:
      ValueError: an image has none, or an empty one.
    """
    known: dict[str, int] = {"": HIDDEN}
    numbers, starts = [], [0]
    for of_image in texts:
        stripped = [text.strip() for text in of_image]
        if not stripped or not all(stripped):
            raise ValueError(f"image {len(starts) - 1} has no caption, or an empty one")
        numbers += [known.setdefault(text, len(known)) for text in stripped]
        starts.append(len(numbers))
    return Captions(
        CaptionTable(tuple(known)), np.array(numbers, np.int32), np.array(starts, np.int64)
    )


def fingerprint_of(captions: Captions | None) -> str:
    """Return what a source's fingerprint says of its captions; "" where it has none."""
    return "" if captions is None else f"{_MARK}{captions.digest}"


def without_captions(fingerprint: str) -> str:
    """Return what the fingerprint of a source says of its images alone."""
    return fingerprint.split(_MARK)[0]


class CaptionDraws:
    """The caption of each example of a run, from (seed, epoch, image) alone.

    As the order of the examples, the draws of an epoch come from `np.random.RandomState`, whose
    stream NumPy has frozen (NEP 19); those of the last two epochs are kept, 16 bytes per image.
    """

    def __init__(self, captions: Captions, *, seed: int, dropout: float):
        """Hide a share `dropout`, in [0, 1], of the captions.

        Raises:
          UsageError: `dropout` is out of range.
        """
        if not 0 <= dropout <= 1:
            raise UsageError(
                f"The share of hidden captions is {dropout}: give a number from 0 to 1."
            )
        self._captions, self._seed, self._dropout = captions, seed, dropout
        self._uniform = functools.lru_cache(maxsize=2)(self._draw)

    def numbers(self, images: np.ndarray, epochs: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the numbers of captions in the table, int32 [B].

        Args:
          images: of the examples, int [B].
          epochs: of the examples, int [B].
          rows: the images that were read in their place, which differ from `images` where one
            could not be read, int [B].
        """
        draws = np.empty((2, len(images)))
        for epoch in np.unique(epochs):
            here = epochs == epoch
            draws[:, here] = self._uniform(int(epoch))[:, images[here]]
        choice, hiding = draws
        return np.where(
            hiding < self._dropout, np.int32(HIDDEN), self._captions.chosen(rows, choice)
        )

    def _draw(self, epoch: int) -> np.ndarray:
        """Return two draws in [0, 1) for each image, float64 [2, N]."""
        sequence = np.random.SeedSequence([self._seed, epoch], spawn_key=(_DRAWS,))
        return np.random.RandomState(sequence.generate_state(4)).random_sample(
            (2, len(self._captions))
        )
