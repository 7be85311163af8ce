"""Named tensors in local files, mapped into memory one at a time.

A `TensorStore` knows where the tensors of a network lie, in one file or in several, and reads none
of them before it is asked. Each look-up makes a mapping of its own, which ends with the array: who
goes through all tensors and keeps none needs the memory of one.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from ddpm_jax.archives import BadArchive, Header, npz_index, read_npz_array, safetensors_index
from ddpm_jax.errors import UsageError
from ddpm_jax.interop.torch_files import is_torch_file, torch_index


class Entry(Protocol):
    """A tensor that is not read yet."""

    dtype: np.dtype
    shape: tuple[int, ...]

    def load(self) -> np.ndarray:
        """Return the tensor, read-only."""


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


class Packed(NamedTuple):
    """An array of an NPZ file that is compressed, and read whole when it is looked up."""

    path: pathlib.Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    def load(self) -> np.ndarray:
        """Return the array, read-only.

        Raises:
          UsageError: its data is damaged.
        """
        try:
            return read_npz_array(self.path, self.name, Header(self.dtype, self.shape))
        except BadArchive as error:
            raise UsageError(f"{self.name} of {self.path} is damaged ({error}).") from error


class Joined(NamedTuple):
    """A tensor whose numbers lie in several pieces, copied when it is looked up."""

    pieces: tuple[Stored, ...]  # of one dimension, of the same type
    dtype: np.dtype
    shape: tuple[int, ...]

    def load(self) -> np.ndarray:
        """Return the tensor, read-only."""
        array = np.empty(sum(piece.shape[0] for piece in self.pieces), self.dtype)
        end = 0
        for piece in self.pieces:
            array[end : end + piece.shape[0]] = piece.load()
            end += piece.shape[0]
        array.flags.writeable = False
        return array.reshape(self.shape)


class Permuted(NamedTuple):
    """Another tensor with its axes in another order."""

    entry: Entry
    axes: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        """Type of the numbers."""
        return self.entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the new order."""
        return tuple(self.entry.shape[axis] for axis in self.axes)

    def load(self) -> np.ndarray:
        """Return the tensor, read-only, a view."""
        return self.entry.load().transpose(self.axes)


@dataclasses.dataclass(frozen=True)
class TensorStore(Mapping[str, np.ndarray]):
    """Tensors by name: `store[name]` maps one into memory, read-only, of the type in the file."""

    entries: Mapping[str, Entry]

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
        if not is_torch_file(path):
            return safetensors_store(path)
        return store_of(
            {
                name: Stored(path, view.offset, view.dtype, view.shape, view.strides)
                for name, view in torch_index(path).items()
            }
        )
    except BadArchive as error:
        raise UsageError(
            f"{path} is neither a whole safetensors file nor one of PyTorch that can be read "
            f"({error}): download it again, or name another."
        ) from error
    except OSError as error:
        raise UsageError(
            f"The weights cannot be read from {path} ({error.strerror or error})."
        ) from error


def safetensors_store(path: pathlib.Path) -> TensorStore:
    """Open a local safetensors file; raise as `archives.safetensors_index`."""
    return store_of(
        {
            name: Stored(path, offset, header.dtype, header.shape)
            for name, (header, offset) in safetensors_index(path).items()
        }
    )


def npz_store(path: pathlib.Path) -> TensorStore:
    """Open a local NPZ file; raise as `archives.npz_index`."""
    return store_of(
        {
            name: Packed(path, name, dtype, shape)
            if offset is None
            else Stored(path, offset, dtype, shape, strides)
            for name, (dtype, shape, strides, offset) in npz_index(path).items()
        }
    )


def store_of(entries: Mapping[str, Entry]) -> TensorStore:
    """Return a store of tensors after looking at the empty ones, whose shapes nothing else bounds.

    Raises:
      BadArchive: the shape of an empty one is impossible.
    """
    for entry in entries.values():
        if 0 in entry.shape:
            entry.load()
    return TensorStore(entries)


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    try:
        array = np.zeros(shape, dtype)
    except ValueError as error:  # other sides may be of any length
        raise BadArchive(f"it has an empty tensor of the impossible shape {list(shape)}") from error
    array.flags.writeable = False
    return array
