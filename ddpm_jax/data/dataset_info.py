"""What a source can say of its dataset as a whole: the names of its classes, and the splits that
there are."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.errors import UsageError, suggest, visible
from ddpm_jax.numerals import whole_number

_MAX_CLASSES = 1_000_000
_MAX_SHOWN = 8  # classes that are named in a line; of more, these and how many more there are


class DatasetInfo(NamedTuple):
    """Of the dataset that a source is a split of."""

    # name i is of label i; () without classes, or where they have no names
    class_names: tuple[str, ...] = ()
    # name -> images, of every split that can be asked for by these names
    splits: Mapping[str, int] = {}
    # the same for the same data on every machine, whichever split of it is read; "" if not known
    contents: str = ""
    files: Any = None  # `listing.Listing` of the split of a folder; None of other data


def holds_out(source: Any) -> bool:
    """Whether the dataset has images that "test" means, or does not say what it has."""
    splits = dataset_info(source).splits
    return not splits or bool({"test", "valid", "validation"} & set(splits))


def dataset_info(source: Any) -> DatasetInfo:
    """What `source` says of its dataset; nothing, where it does not know."""
    return getattr(source, "info", DatasetInfo())


def describe(source: Any) -> str:
    """The splits and classes in a few words: "train 1,350, test 150; 2 classes: cat 700, dog 650".

    Classes are counted in the split that `source` is of, where its labels are at hand.
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
    """The labels of classes that are given by number or by name; a whole number is always a number.

    Raises:
      UsageError: there is no class of that name.
    """
    known = {name: label for label, name in enumerate(class_names)}
    return [_parse_label(text, known) for text in texts]


def ambiguous_labels(texts: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """Say which of the numbers that `parse_labels` reads are also the name of another class, half a
    sentence each."""
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
    """Name in a line, as they may be shown; of many the first and how many more there are."""
    more = len(names) - _MAX_SHOWN
    shown = [visible(name) for name in names[:_MAX_SHOWN]]
    return ", ".join([*shown, f"and {more} more"] if more > 0 else shown)
