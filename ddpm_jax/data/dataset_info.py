"""What a source knows of its whole dataset: the names of the classes, and the splits."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.errors import UsageError, suggest, visible
from ddpm_jax.numerals import whole_number

_MAX_CLASSES = 1_000_000
_MAX_SHOWN = 8  # classes named in a line; of more, the first of them and the number of the others


class DatasetInfo(NamedTuple):
    """Facts about the dataset that a source is one split of."""

    # name i belongs to label i; () without classes, or where they have no names
    class_names: tuple[str, ...] = ()
    # name -> number of images, for every split that can be loaded by name
    splits: Mapping[str, int] = {}
    # identifies the data on every machine, whichever split is read; "" if not known
    contents: str = ""
    files: Any = None  # `listing.Listing` of a folder's split; None for other data


def holds_out(source: Any) -> bool:
    """Return whether the dataset has held-out images, or does not say what it has."""
    splits = dataset_info(source).splits
    return not splits or bool({"test", "valid", "validation"} & set(splits))


def dataset_info(source: Any) -> DatasetInfo:
    """Return what `source` knows of its dataset; an empty record if nothing."""
    return getattr(source, "info", DatasetInfo())


def describe(source: Any) -> str:
    """Return splits and classes in words: "train 1,350, test 150; 2 classes: cat 700, dog 650".

    Classes are counted in the split that `source` reads, where its labels are in memory.
    """
    names, splits = dataset_info(source).class_names, dataset_info(source).splits
    parts = [", ".join(f"{name} {count:,}" for name, count in splits.items())] if splits else []
    if not source.num_classes:
        return "; ".join([*parts, "no classes"])
    labels = getattr(source, "labels", None)
    counts = None if labels is None else np.bincount(labels, minlength=source.num_classes)
    shown = [name if counts is None else f"{name} {counts[i]:,}" for i, name in enumerate(names)]
    number = f"{source.num_classes} class{'es' if source.num_classes > 1 else ''}"
    return "; ".join([*parts, f"{number}: {abbreviated(shown)}" if shown else number])


def parse_labels(texts: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """Return the labels of classes given by number or by name; a whole number is a number.

    Raises:
      UsageError: there is no class of that name.
    """
    known = {name: label for label, name in enumerate(class_names)}
    return [_parse_label(text, known) for text in texts]


def ambiguous_labels(texts: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """Say, half a sentence each, which numbers are also the name of another class."""
    known = {name: label for label, name in enumerate(class_names)}
    return [
        f"{text} is class number {label}"
        + (f", called {class_names[label]!r}" if label < len(class_names) else "")
        + f", and not the class called {text!r}, whose number is {known[text]}"
        for text, label in zip(texts, parse_labels(texts, class_names), strict=True)
        if known.get(text, label) != label
    ]


def _parse_label(text: str, known: Mapping[str, int]) -> int:
    try:
        return whole_number(text, lower=0, upper=_MAX_CLASSES)
    except ValueError:
        pass
    if text in known:
        return known[text]
    if known:
        names = abbreviated(list(known))
        raise UsageError(
            f"there is no class {text!r}: give class numbers, or names among "
            f"{names}.{suggest(text, known)}"
        )
    raise UsageError(
        f"{text!r} is no class number, and the names of this model's classes are not known: give "
        "class numbers separated by commas, as in 3,5."
    )


def abbreviated(names: Sequence[str]) -> str:
    """Join names in a line; of many, the first and the number of the others."""
    more = len(names) - _MAX_SHOWN
    shown = [visible(name) for name in names[:_MAX_SHOWN]]
    return ", ".join([*shown, f"and {more} more"] if more > 0 else shown)
