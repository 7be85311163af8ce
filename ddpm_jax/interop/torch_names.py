"""What a pickle of PyTorch may name: tensors, their storages, and what is passed over.

`torch_pickle` looks names up in a `Vocabulary`, compared whole, and refuses all others. Whether a
view lies within its storage is checked here.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ddpm_jax.archives import BadArchive

DIMENSIONS = 32  # of a tensor
STORAGES = {
    "Double": np.dtype("<f8"),
    "Float": np.dtype("<f4"),
    "Half": np.dtype("<f2"),
    "BFloat16": np.dtype(ml_dtypes.bfloat16),
    "Long": np.dtype("<i8"),
    "Int": np.dtype("<i4"),
    "Short": np.dtype("<i2"),
    "Char": np.dtype("i1"),
    "Byte": np.dtype("u1"),
    "Bool": np.dtype(bool),
}


class Storage(NamedTuple):
    """Numbers of one type in the file."""

    key: str
    dtype: np.dtype
    size: int  # in numbers


class View(NamedTuple):
    """A tensor: numbers of a storage."""

    storage: Storage
    offset: int  # of its first number, in numbers
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in numbers


class Inert:
    """Stands for an object that is not read, such as a callback of the training loop."""


INERT = Inert()


class Name(NamedTuple):
    """What a pickle calls a function or a class."""

    module: str
    name: str


class Record:
    """Stands for an object of a class that is known to hold plain values: they, by attribute."""

    def __init__(self) -> None:
        self._state: dict[Any, Any] = {}

    def set_state(self, state: Any) -> None:
        """Take the attributes that a pickle gives to the object.

        Raises:
          BadArchive: they are none.
        """
        if not isinstance(state, dict):
            raise BadArchive("its pickle has an object without attributes")
        self._state = state

    def items(self) -> Iterable[tuple[Any, Any]]:
        """Return the attributes with their names."""
        return self._state.items()

    def __len__(self) -> int:
        """Return how many things `items` looks at."""
        return len(self._state)


class Span(NamedTuple):
    """Bytes in the file, from `begin` to before `end`, which are not read."""

    begin: int
    end: int


class Vocabulary(NamedTuple):
    """What a pickle may name."""

    functions: Mapping[Name, Callable[..., Any]]  # that stand for those which it calls
    records: Mapping[Name, Callable[[], Any]]  # classes -> what makes an empty object
    inert: Set[Name]  # whose objects are passed over


def check_key(key: Any) -> Any:
    """Return the key of a dict, after refusing all but plain ones.

    Raises:
      BadArchive: it is a tuple, whose hash may overflow the C stack, or anything else.
    """
    if not isinstance(key, str | int | float | bytes | Inert | None):
        raise BadArchive("its pickle has a dict whose keys are neither text nor numbers")
    return key


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> View:
    """Return a view after checking that it lies within its storage.

    The other arguments of PyTorch's functions (whether it takes a gradient, hooks) are of no
    meaning for weights.
    """
    if len(shape) != len(strides) or len(shape) > DIMENSIONS:
        raise BadArchive("its pickle has a damaged tensor")
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or not all(
        type(number) is int and number >= 0 for number in numbers
    ):
        raise BadArchive("its pickle has a damaged tensor")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if 0 not in shape and (last >= storage.size or math.prod(shape) > storage.size):
        raise BadArchive(
            f"a tensor of shape {list(shape)} goes beyond its storage of {storage.size:,} numbers"
        )
    return View(storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    return {check_key(key): value for key, value in pairs}


STORAGE_NAMES = {Name("torch", f"{kind}Storage") for kind in STORAGES}
TORCH = Vocabulary(
    functions={
        Name("collections", "OrderedDict"): _ordered_dict,
        Name("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
        Name("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        Name("torch._utils", "_rebuild_parameter"): _parameter,
    },
    records={Name("argparse", "Namespace"): Record},
    # what training loops save beside the weights; a stand-in takes its place
    inert={
        Name("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
        Name("numpy.core.multiarray", "scalar"),
        Name("numpy._core.multiarray", "scalar"),
        Name("numpy", "dtype"),
        Name("_codecs", "encode"),
        Name("torch", "Size"),
        Name("torch", "device"),
        *(Name("torch", name) for name in ("float16", "bfloat16", "float32", "float64", "int64")),
    },
)
