"""What a source can say of its dataset as a whole: the names of its classes, and the splits that there are."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

_SHOWN = 8  # classes that are named in a line; of more, these and how many more there are


class About(NamedTuple):
    """Of the dataset that a source is a split of."""

    class_names: tuple[str, ...] = ()  # name i is of label i; () without classes, or where they have no names
    splits: Mapping[str, int] = {}  # name -> images, of every split that can be asked for by these names


def about(source: Any) -> About:
    """What `source` says of its dataset; nothing, where it does not know."""
    return getattr(source, "about", About())


def describe(source: Any) -> str:
    """The splits and classes in a few words: "train 1,350, test 150; 2 classes: cat 700, dog 650".

    Classes are counted in the split that `source` is of, where its labels are at hand.
    """
    names, splits = about(source)
    parts = [", ".join(f"{name} {count:,}" for name, count in splits.items())] if splits else []
    if not source.num_classes:
        return "; ".join([*parts, "no classes"])
    labels = getattr(source, "labels", None)
    counts = None if labels is None else np.bincount(labels, minlength=source.num_classes)
    shown = [name if counts is None else f"{name} {counts[i]:,}" for i, name in enumerate(names[:_SHOWN])]
    if len(names) > _SHOWN:
        shown.append(f"and {len(names) - _SHOWN} more")
    number = f"{source.num_classes} class{'es' if source.num_classes > 1 else ''}"
    return "; ".join([*parts, f"{number}: {', '.join(shown)}" if shown else number])
