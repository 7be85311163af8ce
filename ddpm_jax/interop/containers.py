"""What a file or a directory of another project holds: tensors by name, and what is said of it."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Container:
    """Tensors in groups, mapped lazily, and plain values beside them."""

    path: pathlib.Path
    kind: str  # of file, in words: "a directory of diffusers", "a file of PyTorch"
    # The keys of dicts and lists, or the folders, that lead to a group, joined by dots: "" are the
    # tensors of the file itself, "4" those of a state dict that is number 4 of a list.
    groups: Mapping[str, Mapping[str, np.ndarray]]
    # JSON objects by the path of their file in the directory; numbers, texts and flat lists of them
    # by the keys that lead to them in a file.
    facts: Mapping[str, Any]
