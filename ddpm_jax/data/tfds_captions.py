"""The feature of a TFDS dataset that holds captions, and the captions in its records.

It is a `Text`, a sequence of them, or a `Text` inside a sequence of dictionaries, as
"captions/text" of coco_captions. All records are read once when a split is opened.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ddpm_jax.data.captions import AUTO, Captions, make_captions
from ddpm_jax.errors import UsageError, suggest

PREFERRED = ("caption", "captions", "text", "captions/text")  # of several, by `AUTO`
_CHUNK = 1024  # records read at a time


def find_feature(features: Mapping[str, Any], field: str, *, name: str) -> str:
    """Return the feature with the captions, "captions" or "captions/text".

    Args:
      features: of the dataset.
      field: its name, or "auto": the only text, or the first of `PREFERRED`.
      name: of the dataset, for messages.

    Raises:
      UsageError: there is no such text, or "auto" cannot decide.
    """
    texts = dict.fromkeys(sorted(_texts(features)))
    if field != AUTO and field not in texts:
        there = f"its texts are {', '.join(texts)}" if texts else "it has no texts"
        raise UsageError(
            f"Dataset {name!r} has no captions {field!r}: {there}.{suggest(field, texts)}"
        )
    if field != AUTO:
        return field
    likely = [one for one in PREFERRED if one in texts] or list(texts)
    if not likely:
        raise UsageError(
            f"Dataset {name!r} has no texts to take for captions: set data.captions='' or choose "
            "another dataset."
        )
    if likely[0] not in PREFERRED and len(likely) > 1:
        raise UsageError(
            f"Dataset {name!r} has several texts: set data.captions to one of {', '.join(likely)}."
        )
    return likely[0]


def _texts(features: Mapping[str, Any], inside: str = "") -> Iterator[str]:
    for key, feature in features.items():
        inner = getattr(feature, "feature", feature)  # of a sequence
        if isinstance(inner, tfds.features.Text):
            yield f"{inside}{key}"
        elif isinstance(inner, tfds.features.FeaturesDict):
            yield from _texts(inner, f"{inside}{key}/")


def read_captions(records: Any, rows: np.ndarray, feature: str, *, name: str) -> Captions:
    """Return the captions of `rows`, int [N], of a split's records.

    Raises:
      UsageError: one has none, or an empty one.
    """
    chunks = (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK))
    return make_captions(
        _of_record(record, feature, f"Image {row} of dataset {name!r}")
        for chunk in chunks
        for row, record in zip(
            chunk, records.__getitems__([int(row) for row in chunk]), strict=True
        )
    )


def _of_record(record: Any, feature: str, where: str) -> list[str]:
    value = record
    for key in feature.split("/"):
        value = None if value is None else value.get(key)
    values = [] if value is None else [value] if isinstance(value, bytes) else list(value)
    texts = [one.decode(errors="replace") for one in values]
    if not texts or not all(text.strip() for text in texts):
        raise UsageError(
            f"{where} has no caption, or an empty one, in {feature!r}: set data.captions to "
            "another feature, or to '' for none."
        )
    return texts
