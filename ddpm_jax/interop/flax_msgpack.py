"""Parameters as `flax.serialization` packs them, `.msgpack`: where the arrays of a file lie.

The file is one map of MessagePack (https://github.com/msgpack/msgpack/blob/master/spec.md), nested.
Flax adds three types: 1 is an array and 3 a NumPy scalar, both packed as shape, name of the type
and bytes; 2 is a complex number. An array of more than 1 GiB is a map that has it in flat pieces.
"""

import math
import mmap
import pathlib
import struct
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from ddpm_jax.archives import BadArchive
from ddpm_jax.files import open_file
from ddpm_jax.interop.contents import DEEPEST, ENTRIES, Contents, sort_tree
from ddpm_jax.interop.tensor_store import Joined, Stored, store_of

DIMENSIONS = 32  # of an array
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # Flax's types
_CHUNKED = "__msgpack_chunked_array__"  # key of a map that has an array in pieces
_DTYPES = {
    **{
        name: np.dtype(name).newbyteorder("<")
        for name in (
            *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
            *("float16", "float32", "float64", "complex64", "complex128"),
        )
    },
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_NUMBERS = {
    **dict(zip(range(0xCA, 0xCC), ("f", "d"), strict=True)),
    **dict(zip(range(0xCC, 0xD0), "BHIQ", strict=True)),
    **dict(zip(range(0xD0, 0xD4), "bhiq", strict=True)),
}
_SHORT = {  # first byte -> kind and length
    **{code: ("text", code - 0xA0) for code in range(0xA0, 0xC0)},
    **{code: ("map", code - 0x80) for code in range(0x80, 0x90)},
    **{code: ("list", code - 0x90) for code in range(0x90, 0xA0)},
    **{0xD4 + i: ("extension", 1 << i) for i in range(5)},
}
_LONG = {  # first byte -> kind, and the number of bytes after it that say the length
    **{0xC4 + i: ("bytes", 1 << i) for i in range(3)},
    **{0xC7 + i: ("extension", 1 << i) for i in range(3)},
    **{0xD9 + i: ("text", 1 << i) for i in range(3)},
    **{0xDC + i: ("list", 2 << i) for i in range(2)},
    **{0xDE + i: ("map", 2 << i) for i in range(2)},
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def is_msgpack(start: bytes) -> bool:
    """Return whether a file that starts with these bytes may be a map of MessagePack."""
    # An empty map is 0x80, with which pickles begin.
    return start[:1] in (b"\xde", b"\xdf") or b"\x81" <= start[:1] <= b"\x8f"


def read_msgpack(path: pathlib.Path) -> Contents:
    """Open a local file of parameters, one group whose names are keys joined by "/".

    Raises:
      BadArchive: it is damaged, has no arrays by name, or holds what Flax does not pack.
      OSError: as `files.open_file`.
    """
    with open_file(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _Reader(path, data, 0, len(data))
        tree = reader.value(DEEPEST)
        if reader.at != len(data):
            raise BadArchive("it goes on after its end")
    found = sort_tree(tree, (Stored, Joined), lambda entry: entry, "/")
    tensors = {
        f"{group}/{name}" if group else name: entry
        for group, entries in found.groups.items()
        for name, entry in entries.entries.items()
    }
    return found._replace(groups={"": store_of(tensors)})


class _Reader:
    """A piece of the file, from `at` to `end`."""

    def __init__(self, path: pathlib.Path, data: mmap.mmap, at: int, end: int) -> None:
        self.path, self.data, self.at, self.end = path, data, at, end
        self.left, self.in_extension = ENTRIES, False

    def skip(self, count: int) -> int:
        """Go forward and return where it was."""
        at = self.at
        if count > self.end - at:
            raise BadArchive("it is cut off")
        self.at = at + count
        return at

    def unpack(self, kind: str) -> Any:
        """Return a big-endian number."""
        return struct.unpack_from(f">{kind}", self.data, self.skip(struct.calcsize(kind)))[0]

    def value(self, levels: int) -> Any:
        """Return the next value; arrays as where they lie."""
        self.left -= 1
        if self.left < 0:
            raise BadArchive(f"it has more than {ENTRIES:,} values")
        code = self.unpack("B")
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 0x100
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code in _NUMBERS:
            return self.unpack(_NUMBERS[code])
        kind, length = self.kind_and_length(code)
        if kind in ("map", "list") and not levels:
            raise BadArchive("its containers are nested too deeply")
        match kind:
            case "text":
                return self.text(length)
            case "bytes":
                return slice(self.skip(length), self.at)
            case "list":
                self.check_count(length)
                return [self.value(levels - 1) for _ in range(length)]
            case "map":
                self.check_count(2 * length)
                return self.map(length, levels - 1)
            case _:
                return self.extension(length)

    def kind_and_length(self, code: int) -> tuple[str, int]:
        if code in _SHORT:
            return _SHORT[code]
        if code not in _LONG:
            raise BadArchive("it is damaged")
        kind, size = _LONG[code]
        return kind, self.unpack({1: "B", 2: "H", 4: "I"}[size])

    def check_count(self, count: int) -> None:
        """Refuse more values than there are bytes."""
        if count > self.end - self.at:
            raise BadArchive("it is cut off")

    def text(self, length: int) -> str:
        at = self.skip(length)
        try:
            return self.data[at : self.at].decode()
        except UnicodeDecodeError:
            raise BadArchive("a text in it is damaged") from None

    def map(self, length: int, levels: int) -> Any:
        items = {}
        for _ in range(length):
            key = self.value(0)
            if not isinstance(key, str | int):
                raise BadArchive("a key in it is neither text nor a number")
            if key in items:
                raise BadArchive(f"the key {str(key)[:80]!r} stands twice in a map")
            items[key] = self.value(levels)
        return _joined(items) if _CHUNKED in items else items

    def extension(self, length: int) -> Any:
        if self.in_extension:
            raise BadArchive("an array in it is damaged")
        kind = self.unpack("b")
        begin, end, self.end = self.skip(length), self.end, self.at
        self.at, self.in_extension = begin, True
        content = self.value(2)
        if self.at != self.end:
            raise BadArchive("an array in it is damaged")
        self.end, self.in_extension = end, False
        if kind == _COMPLEX:
            return _complex(content)
        if kind not in (_ARRAY, _SCALAR):
            raise BadArchive(f"it has an object of type {kind}, which Flax does not pack")
        array = self.array(content)
        if kind == _ARRAY:
            return array
        if array.shape:
            raise BadArchive("a number in it is damaged")
        return array.load().item()

    def array(self, content: Any) -> Stored:
        match content:
            case [list(shape), str(name), slice() as place] if _is_shape(shape):
                pass
            case _:
                raise BadArchive("an array in it is damaged")
        if name not in _DTYPES:
            raise BadArchive(f"it has an array of type {name[:40]}, which is not read here")
        if math.prod(shape) * _DTYPES[name].itemsize != place.stop - place.start:
            raise BadArchive(f"an array of shape {shape} has {place.stop - place.start:,} bytes")
        return Stored(self.path, place.start, _DTYPES[name], tuple(shape))


def _is_shape(shape: Sequence[Any]) -> bool:
    return len(shape) <= DIMENSIONS and all(type(side) is int and side >= 0 for side in shape)


def _complex(content: Any) -> complex:
    match content:
        case [float(real), float(imaginary)]:
            return complex(real, imaginary)
    raise BadArchive("a complex number in it is damaged")


def _joined(items: dict[Any, Any]) -> Joined:
    """Return an array that is packed in pieces."""
    match items:
        case {"shape": dict(shape), "chunks": dict(chunks)}:
            sides, pieces = _in_order(shape), _in_order(chunks)
        case _:
            raise BadArchive("an array in pieces is damaged")
    if (
        not _is_shape(sides)
        or not pieces
        or not all(isinstance(piece, Stored) and len(piece.shape) == 1 for piece in pieces)
        or len({piece.dtype for piece in pieces}) != 1
        or sum(piece.shape[0] for piece in pieces) != math.prod(sides)
    ):
        raise BadArchive("an array in pieces is damaged")
    return Joined(tuple(pieces), pieces[0].dtype, tuple(sides))


def _in_order(items: dict[Any, Any]) -> list[Any]:
    """Return the values of a tuple that is packed as a map."""
    if set(items) != {str(i) for i in range(len(items))}:
        raise BadArchive("an array in pieces is damaged")
    return [items[str(i)] for i in range(len(items))]
