"""Checkpoints of TensorFlow, read without it: `PREFIX.index` and `PREFIX.data-00000-of-00001`.

The index is a table (`tensorflow_table`) from names to protocol buffers: type, shape, file and
position of each variable; its first entry, without a name, is about the whole. The data files are
the numbers, one variable after the other. Field numbers are those of `tensor_bundle.proto` and
`tensor_shape.proto` in TensorFlow.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ddpm_jax.archives import BadArchive
from ddpm_jax.errors import UsageError
from ddpm_jax.files import open_file, read_file
from ddpm_jax.interop.contents import Contents
from ddpm_jax.interop.tensor_store import Stored, store_of
from ddpm_jax.interop.tensorflow_table import MAGIC, read_table, read_varint

INDEX = 1 << 24  # bytes of an index, some 60 a variable
DIMENSIONS = 32  # of a variable
SHARDS = 1000  # data files
_DTYPES = {  # of types.proto
    1: np.dtype("<f4"),
    2: np.dtype("<f8"),
    3: np.dtype("<i4"),
    4: np.dtype("u1"),
    5: np.dtype("<i2"),
    6: np.dtype("i1"),
    9: np.dtype("<i8"),
    10: np.dtype(bool),
    14: np.dtype(ml_dtypes.bfloat16),
    17: np.dtype("<u2"),
    19: np.dtype("<f2"),
    22: np.dtype("<u4"),
    23: np.dtype("<u8"),
}
_TEXT = 7  # DT_STRING
_LATEST = re.compile(r'^model_checkpoint_path: "([^"\\\n]+)"', re.MULTILINE)
_DATA = re.compile(r"(.+)\.data-\d{5}-of-\d{5}")


class _Variable(NamedTuple):
    """Where the numbers of a variable lie, as the index says."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int  # in bytes
    sliced: bool


def prefix_of(name: str) -> str:
    """Return the name of the checkpoint that a file belongs to, by its name; else the name."""
    of_data = _DATA.fullmatch(name)
    return of_data[1] if of_data else name.removesuffix(".index")


def find_index(path: pathlib.Path) -> pathlib.Path | None:
    """Return the index of a local checkpoint of TensorFlow, or None if the path names none.

    Args:
      path: "model.ckpt-790000", as TensorFlow names it; one of its files; or the directory with the
        file `checkpoint`, which says which is the latest.

    Raises:
      UsageError: the latest checkpoint of a directory is missing, or not named.
      OSError: as `files.open_file`.
    """
    if path.is_dir():
        return _latest(path) if (path / "checkpoint").is_file() else None
    index = path.with_name(f"{prefix_of(path.name)}.index") if path.name else path
    if not path.exists() or _DATA.fullmatch(path.name):
        return index if index.is_file() else None
    with open_file(path) as file:
        file.seek(max(0, file.seek(0, 2) - len(MAGIC)))
        return path if file.read() == MAGIC else None


def indices_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the indices of all checkpoints of TensorFlow in a local directory.

    Raises:
      OSError: as `files.open_file`.
    """
    return [index for index in sorted(folder.glob("*.index")) if find_index(index) == index]


def read_bundle(index: pathlib.Path) -> Contents:
    """Open the variables of a local checkpoint, one group without a name.

    Raises:
      BadArchive: the index is damaged, or a variable lies outside its data file.
      UsageError: a data file is missing.
      OSError: as `files.open_file`.
    """
    data = read_file(index, largest=INDEX + 1)
    if len(data) > INDEX:
        raise BadArchive(f"it has more than {INDEX:,} bytes")
    table = read_table(data)
    shards = _shards(next(table, None))
    found, unread = {}, {}
    for key, value in table:
        # Names of slices, which are no text, begin with a zero.
        if key.startswith(b"\0"):
            continue
        name, variable = _text(key), _variable(_message(value))
        if variable.sliced:
            unread[name] = "a variable that is partitioned"
        elif variable.dtype not in _DTYPES:
            is_text = variable.dtype == _TEXT
            unread[name] = "text" if is_text else f"a variable of type {variable.dtype}"
        else:
            found[name] = variable
    if not found:
        raise BadArchive("it has no variables of numbers")
    return Contents({"": store_of(_place(index, shards, found))}, {}, unread)


def _latest(folder: pathlib.Path) -> pathlib.Path:
    text = read_file(folder / "checkpoint", largest=INDEX).decode(errors="replace")
    name = _LATEST.search(text)
    if not name:
        raise UsageError(f"{folder / 'checkpoint'} does not say which checkpoint is the latest.")
    # It may have been written on another machine, where the directory was elsewhere.
    index = folder / f"{pathlib.PurePosixPath(name[1]).name}.index"
    if not index.is_file():
        raise UsageError(f"{folder} has no {index.name}, whose checkpoint is the latest.")
    return index


def _shards(header: tuple[bytes, bytes] | None) -> int:
    """Return the number of data files from the first entry of the table."""
    if header is None or header[0]:
        raise BadArchive("it is no index of a checkpoint")
    fields = _message(header[1])
    shards = _whole(fields, 1)
    if _whole(fields, 2):
        raise BadArchive("its numbers are big-endian")
    if not 1 <= shards <= SHARDS:
        raise BadArchive(f"it tells of {shards:,} data files")
    return shards


def _variable(fields: Mapping[int, list[Any]]) -> _Variable:
    shapes = [_message(_bytes(shape)) for shape in fields.get(2, [b""])]
    dims = [_message(_bytes(dim)) for shape in shapes for dim in shape.get(2, [])]
    shape = tuple(_whole(dim, 1) for dim in dims)
    if len(shape) > DIMENSIONS:
        raise BadArchive("a variable of it has too many dimensions")
    numbers = [_whole(fields, field) for field in (1, 3, 4, 5)]
    if max((*shape, *numbers)) >= 1 << 63:
        raise BadArchive("a variable of it has a negative size or position")
    dtype, shard, offset, size = numbers
    return _Variable(dtype, shape, shard, offset, size, 7 in fields)


def _place(
    index: pathlib.Path, shards: int, variables: Mapping[str, _Variable]
) -> dict[str, Stored]:
    """Return the variables in their files, after checking that they lie there, one by one."""
    prefix, files, sizes = prefix_of(index.name), {}, {}
    for shard in sorted({variable.shard for variable in variables.values()}):
        file = index.with_name(f"{prefix}.data-{shard:05d}-of-{shards:05d}")
        if not file.is_file():
            raise UsageError(f"{index.parent} has no {file.name}, which {index.name} names.")
        files[shard], sizes[shard] = file, file.stat().st_size
    ends = dict.fromkeys(files, 0)
    stored = {}
    for name, (dtype, shape, shard, offset, size, _) in sorted(
        variables.items(), key=lambda item: (item[1].offset, item[1].size)
    ):
        if int(np.prod(shape, dtype=object)) * _DTYPES[dtype].itemsize != size:
            raise BadArchive(f"its variable {name[:80]!r} is not of the size of its shape")
        if offset < ends[shard]:
            raise BadArchive(f"its variable {name[:80]!r} overlaps another")
        ends[shard] = offset + size
        if ends[shard] > sizes[shard]:
            raise BadArchive(f"its variable {name[:80]!r} lies beyond the end of the data")
        stored[name] = Stored(files[shard], offset, _DTYPES[dtype], shape)
    return {name: stored[name] for name in variables}


def _message(data: bytes) -> dict[int, list[Any]]:
    """Return the values of a protocol buffer by the number of their field."""
    fields: dict[int, list[Any]] = {}
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        size = {1: 8, 5: 4}.get(tag & 7)
        if tag & 7 == 0:
            value, at = read_varint(data, at)
        elif tag & 7 == 2 or size:
            if size is None:
                size, at = read_varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            raise BadArchive("an entry of it is damaged")
        if at > len(data):
            raise BadArchive("an entry of it is cut off")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _whole(fields: Mapping[int, list[Any]], number: int) -> int:
    """Return the last value of a field that is a whole number, 0 if there is none."""
    value = fields.get(number, [0])[-1]
    if not isinstance(value, int):
        raise BadArchive("an entry of it is damaged")
    return value


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise BadArchive("an entry of it is damaged")
    return value


def _text(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise BadArchive("a name in it is no text") from None
