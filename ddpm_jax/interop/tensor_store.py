"""Named tensors in local files, mapped into memory one at a time.

A `TensorStore` knows where the tensors of a network lie, in one file or in several, and reads none
of them before it is asked. Each look-up makes a mapping of its own, which ends with the array: who
goes through all tensors and keeps none needs the memory of one.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ddpm_jax.archives import BadArchive, safetensors_index
from ddpm_jax.errors import UsageError
from ddpm_jax.interop.torch_files import is_torch_file, torch_index


class Stored(NamedTuple):
    """Where a tensor lies; the caller has checked that all of it is within the file."""

    path: pathlib.Path
    offset: int  # of its first number, in bytes
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None  # in numbers; None: C order

    def load(self) -> np.ndarray:
        """Return the tensor, read-only, as a view of the mapped file."""
        if 0 in self.shape:
            return _empty(self.shape, self.dtype)
        if self.strides is None:
            return np.asarray(np.memmap(self.path, self.dtype, "r", self.offset, self.shape))
        last = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        flat = np.asarray(np.memmap(self.path, self.dtype, "r", self.offset, (last + 1,)))
        strides = [step * self.dtype.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)

    def split(self, count: int) -> "list[Stored]":
        """Return equal parts along the first axis, whose length `count` divides."""
        rows = self.shape[0] // count
        step = math.prod(self.shape[1:]) if self.strides is None else self.strides[0]
        nbytes = rows * step * self.dtype.itemsize
        shape = (rows, *self.shape[1:])
        return [self._replace(offset=self.offset + i * nbytes, shape=shape) for i in range(count)]

    def as_matrix(self) -> "Stored":
        """Return a 1x1 convolution [out, in, 1, 1] as [out, in]."""
        return self._replace(shape=self.shape[:2], strides=self.strides and self.strides[:2])


@dataclasses.dataclass(frozen=True)
class TensorStore(Mapping[str, np.ndarray]):
    """Tensors by name: `store[name]` maps one into memory, read-only, of the type in the file."""

    entries: Mapping[str, Stored]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.entries[name].load()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by name; nothing is read."""
        return {name: entry.shape for name, entry in self.entries.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(math.prod(entry.shape) * entry.dtype.itemsize for entry in self.entries.values())

    def renamed(self, names: Mapping[str, str]) -> "TensorStore":
        """Return those in `names`, old name -> new name."""
        return TensorStore({new: self.entries[old] for old, new in names.items()})


class Renamed(Mapping[str, np.ndarray]):
    """Tensors of any mapping under other names, looked up one at a time."""

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        rename: Callable[[str], str],
        names: Iterable[str] | None = None,
    ) -> None:
        """Rename those in `names`, all by default, and leave out the others."""
        self._tensors = tensors
        self._names = {rename(name): name for name in (tensors if names is None else names)}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def open_tensors(path: pathlib.Path) -> TensorStore:
    """Open a local file of named tensors: safetensors, or PyTorch's .bin, .ckpt and .pt.

    The content decides which, not the name. Of a PyTorch file nothing is executed, and only tensors
    and plain containers are read (`torch_files`).

    Raises:
      UsageError: there is no such file, it is neither of these, or damaged.
    """
    try:
        if is_torch_file(path):
            entries = {
                name: Stored(path, view.offset, view.dtype, view.shape, view.strides)
                for name, view in torch_index(path).items()
            }
        else:
            entries = {
                name: Stored(path, offset, header.dtype, header.shape)
                for name, (header, offset) in safetensors_index(path).items()
            }
        for entry in entries.values():
            if 0 in entry.shape:
                entry.load()
    except BadArchive as error:
        raise UsageError(
            f"{path} is neither a whole safetensors file nor one of PyTorch that can be read "
            f"({error}): download it again, or name another."
        ) from error
    except OSError as error:
        raise UsageError(
            f"The weights cannot be read from {path} ({error.strerror or error})."
        ) from error
    return TensorStore(entries)


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    try:
        array = np.zeros(shape, dtype)
    except ValueError as error:  # other sides may be of any length
        raise BadArchive(f"it has an empty tensor of the impossible shape {list(shape)}") from error
    array.flags.writeable = False
    return array
