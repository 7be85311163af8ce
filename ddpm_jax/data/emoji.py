"""The bundled captioned pictures: 3,786 emoji, 32x32 RGB on white, in ten categories.

No network is needed: `emoji.npz` lies beside this file, with its licences in `emoji.LICENSE`;
`tools/pack_emoji.py` made it. They are Noto Emoji by Google, with their Unicode names.

The test split holds combinations that training has only the parts of: all single "dark skin tone"s
of gestures and parts of the body, such as "thumbs up sign, dark skin tone"; one of the five tones
of a quarter of the other people; and one in twenty pictures without people.
"""

import functools
import importlib.resources
from typing import NamedTuple

import numpy as np

from ddpm_jax.data import images
from ddpm_jax.data.captions import Captions, fingerprint_of, make_captions
from ddpm_jax.data.dataset_info import DatasetInfo
from ddpm_jax.data.in_memory import ArraySource
from ddpm_jax.errors import UsageError, choose

SIZE = 32
CAPTIONS = {"auto": 2, "text": 1}  # the number of names that are taken
SPLITS = dict.fromkeys(("train", "test"))
_CONTENTS = "emoji 1.0.0"  # another number with every change of the file


class _Pictures(NamedTuple):
    images: np.ndarray  # uint8 [N, 32, 32, 3]
    texts: np.ndarray  # [N, 2], "" where there is one only
    labels: np.ndarray  # uint8 [N]
    categories: np.ndarray  # [10]
    held_out: np.ndarray  # bool [N]


@functools.cache
def _read() -> _Pictures:
    place = importlib.resources.files(__package__).joinpath("emoji.npz")
    with place.open("rb") as file, np.load(file) as arrays:
        return _Pictures(**{name: arrays[name] for name in _Pictures._fields})


def check_split(split: str) -> None:
    """Refuse a split that there is not.

    Raises:
      UsageError: see above.
    """
    choose("split of the bundled emoji", split, SPLITS)


def open_emoji(
    *, split: str, image_size: int, channels: int, small: str, captions: str = ""
) -> ArraySource:
    """Return the pictures of a split, with their categories as classes.

    Args:
      split: "train" or "test".
      image_size: of other sizes than 32 they are resized as any picture is.
      channels: 1 (grey) or 3 (RGB).
      small: "enlarge" permits an `image_size` above 32.
      captions: "auto": the Unicode name, such as "hash key", and a short name, "hash"; "text": the
        former alone; "" for none.

    Raises:
      UsageError: another split, a larger size, or other captions.
    """
    check_split(split)
    if captions:
        choose("captions of the bundled emoji", captions, CAPTIONS)
    if image_size > SIZE and small != "enlarge":
        raise UsageError(
            f"The bundled emoji are {SIZE}x{SIZE} pixels, smaller than image_size={image_size}: "
            "ask for a smaller image_size, or set data.small=enlarge to enlarge them."
        )
    all_of_them = _read()
    test = all_of_them.held_out
    rows = np.flatnonzero(test == (split == "test"))
    pictures = [
        images.to_array(
            images.from_array(array), image_size=image_size, channels=channels, enlarge=True
        )
        for array in all_of_them.images[rows]
    ]
    captioned = _captions(all_of_them.texts[rows, : CAPTIONS[captions]]) if captions else None
    return ArraySource(
        np.stack(pictures),
        all_of_them.labels[rows].astype(np.int32),
        len(all_of_them.categories),
        f"{_CONTENTS} {split} {image_size}x{image_size}x{channels} n={len(rows)}"
        f"{fingerprint_of(captioned)}",
        info=DatasetInfo(
            tuple(map(str, all_of_them.categories)),
            {"train": int((~test).sum()), "test": int(test.sum())},
            _CONTENTS,
        ),
        captions=captioned,
    )


def _captions(texts: np.ndarray) -> Captions:
    return make_captions([str(text) for text in of_image if text] for of_image in texts)
