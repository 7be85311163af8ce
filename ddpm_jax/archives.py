"""Arrays in untrusted files: NPZ, NPY and safetensors.

Headers are checked against the size of the file and the caller's expectation before memory is
allocated, and nothing in a file is executed. The caller knows the meaning of the arrays, and the
remedy for a refused file.
"""

import contextlib
import io
import json
import math
import pathlib
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from ddpm_jax.files import open_file

MEMBERS = 10_000  # arrays in a file
# bytes, and multiple of the file's size: beyond both, it is not an archive of arrays
INFLATED, RATIO = 1 << 28, 100
HEADER = 10_000  # bytes of an NPY header, NumPy's own limit
DIRECTORY = 1 << 24  # bytes of the directory of a zip file, some 100 a member
_BLOCK = 1 << 18  # bytes of a compressed array that are read at once
_LOCAL_HEADER = 30  # bytes, before name and extra field of a member
INDEX = (
    1 << 25
)  # bytes of a safetensors header, some 100 a tensor; parsed, they take 20 times as many

SAFETENSORS = {
    "BOOL": np.dtype(bool),
    **{f"U{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"I{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"F{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class BadArchive(ValueError):
    """The content of a file contradicts its headers or the caller; half a sentence."""


class Member(NamedTuple):
    """An array of an NPZ file, before it is read."""

    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None  # in numbers; None: C order
    offset: int | None  # of its first number in the file, in bytes; None: it cannot be mapped


class Header(NamedTuple):
    """Type and shape of an array, before it is read."""

    dtype: np.dtype
    shape: tuple[int | None, ...] | None  # None: any shape; a side None: any length


def read_npz(data: bytes, expected: Mapping[str, Header] | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of an NPZ file by name, read-only.

    Args:
      data: the bytes of the file.
      expected: the arrays to read, ignoring others; all by default. Strings of any length and
        either byte order match a `str` dtype.

    Raises:
      BadArchive: it is damaged or implausibly large, or an array is missing, holds neither numbers
        nor text, or is not as expected.
    """
    with _refusing("a damaged archive"), open_zip(io.BytesIO(data)) as archive:
        found = _members(archive, len(data))
        for name in expected or ():
            if name not in found:
                there = ", ".join(map(repr, list(found)[:5])) or "nothing"
                raise BadArchive(f"it has no array {name!r}, but {there}")
        names = found if expected is None else expected
        return {
            name: _read_member(archive, found[name], name, (expected or {}).get(name))
            for name in names
        }


def npz_index(path: pathlib.Path) -> dict[str, Member]:
    """Return type, shape and position of every array of a local NPZ file; their data is not read.

    Raises:
      BadArchive: as `read_npz`.
      OSError: as `files.open_file`.
    """
    with open_file(path) as file:
        size = file.seek(0, 2)
        with _refusing("a damaged archive"), open_zip(file) as archive:
            return {
                name: _index_member(file, archive, info, size)
                for name, info in _members(archive, size).items()
            }


def read_npz_array(path: pathlib.Path, name: str, expected: Header) -> np.ndarray:
    """Return one array of a local NPZ file, read-only; raise as `npz_index`."""
    with open_file(path) as file, _refusing("a damaged archive"), open_zip(file) as archive:
        found = _members(archive, file.seek(0, 2))
        if name not in found:
            raise BadArchive(f"it has no array {name!r}")
        return _read_member(archive, found[name], name, expected)


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """Open a zip file, after refusing a directory of more than `DIRECTORY` bytes.

    Raises:
      BadArchive: see above.
      zipfile.BadZipFile: it is damaged.
    """
    view = _Limited(file)
    archive = zipfile.ZipFile(view)
    view.limit = None
    return archive


def stored_place(file: BinaryIO, info: zipfile.ZipInfo, size: int) -> int:
    """Return the position of the data of a member that a zip file of `size` bytes stores as it is.

    Raises:
      BadArchive: its local header is damaged, or its data ends beyond the file.
    """
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER)
    if len(header) < _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        raise BadArchive("it is a damaged zip file")
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    start = info.header_offset + _LOCAL_HEADER + names
    if start + info.file_size > size:
        raise BadArchive("it is a zip file that is cut off")
    return start


def map_npy(path: pathlib.Path, expected: Header) -> np.ndarray:
    """Map a local NPY file into memory, read-only.

    Raises:
      BadArchive: it is damaged, or not as expected.
      OSError: as `files.open_file`.
    """
    with open_file(path) as file:
        header, fortran = _npy_header(file)
        offset, size = file.tell(), file.seek(0, 2)
    _check_expected("its array", header, expected)
    size -= offset
    if size != _nbytes(header):
        raise BadArchive(f"its header tells of {_nbytes(header):,} bytes, and {size:,} follow")
    return np.memmap(path, header.dtype, "r", offset, header.shape, "F" if fortran else "C")


def read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file by name, read-only.

    Raises:
      BadArchive: as `safetensors_index`.
    """
    length = _index_length(data[:9], len(data))
    placed = _parse_index(data[8 : 8 + length], len(data))
    return {
        name: _array(memoryview(data)[at : at + _nbytes(header)], header)
        for name, (header, at) in placed.items()
    }


def safetensors_index(path: pathlib.Path) -> dict[str, tuple[Header, int]]:
    """Return type, shape and position in bytes of every tensor of a local safetensors file.

    The file is the length n of a JSON object in 8 bytes, little-endian; the object, which gives
    dtype, shape and position of each tensor; and the data, of which every byte belongs to one
    tensor (https://github.com/huggingface/safetensors, "Format"). The data is not read.

    Raises:
      BadArchive: it is not such a file, damaged, or of a type that NumPy and JAX do not support
        here, such as FP8.
      OSError: as `files.open_file`.
    """
    with open_file(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = _index_length(file.read(9), size)
        file.seek(8)
        return _parse_index(file.read(length), size)


def safetensors_metadata(path: pathlib.Path) -> dict[str, Any]:
    """Return the metadata of a local safetensors file, which are texts by name; often none.

    Raises:
      BadArchive: it is not such a file, or its header is damaged.
      OSError: as `files.open_file`.
    """
    with open_file(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = _index_length(file.read(9), size)
        file.seek(8)
        text = file.read(length)
    with _refusing("its header is damaged"):
        return dict(json.loads(text.decode()).get("__metadata__") or {})


def write_safetensors(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a new local safetensors file, one after the other.

    Every tensor is looked up twice and not kept, so that a mapping which makes them on demand needs
    the memory of one. Wider types come first, so that all numbers are aligned.

    Raises:
      BadArchive: a tensor is of a type that the format does not have.
      OSError: the file exists or cannot be written.
    """
    kinds = {dtype: kind for kind, dtype in SAFETENSORS.items()}
    headers: dict[str, Header] = {}
    for name in tensors:
        array = np.asarray(tensors[name])
        if array.dtype not in kinds:
            raise BadArchive(f"tensor {name!r} is of type {array.dtype}, which the format lacks")
        headers[name] = Header(array.dtype, array.shape)
    order = sorted(headers, key=lambda name: (-headers[name].dtype.itemsize, name))
    index: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        begin, end = end, end + _nbytes(headers[name])
        dtype, shape = headers[name]
        index[name] = {"dtype": kinds[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(index, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            array = np.ascontiguousarray(tensors[name])
            file.write(array.reshape(-1).view(np.uint8))


def _index_length(start: bytes, size: int) -> int:
    """Return the bytes of the JSON object from the first 9 bytes of a file of `size` bytes."""
    length = int.from_bytes(start[:8], "little")
    if not 2 <= length <= min(size - 8, INDEX) or start[8:9] != b"{":
        raise BadArchive("it does not begin as a safetensors file")
    return length


def _parse_index(text: bytes, size: int) -> dict[str, tuple[Header, int]]:
    """Return header and position of each tensor of a file of `size` bytes."""
    with _refusing("its header is damaged"):
        index = json.loads(text.decode(), object_pairs_hook=_unique)
    index.pop("__metadata__", None)
    if len(index) > MEMBERS:
        raise BadArchive(f"it has {len(index):,} tensors, more than {MEMBERS:,}")
    placed = {name: _read_entry(name, entry) for name, entry in index.items()}
    start, end = 8 + len(text), 0
    for name, (header, begin, stop) in sorted(placed.items(), key=lambda item: item[1][1:]):
        if begin != end or stop - begin != _nbytes(header):
            raise BadArchive(f"its tensor {name!r} does not lie where its header says")
        end = stop
    if end != size - start:
        raise BadArchive(f"its tensors take {end:,} bytes, and {size - start:,} follow the header")
    return {name: (header, start + begin) for name, (header, begin, _) in placed.items()}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadArchive("a name stands twice in its header")
    return found


def _read_entry(name: str, entry: Any) -> tuple[Header, int, int]:
    try:
        kind, shape, (begin, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, stop))
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole or not isinstance(kind, str):
        raise BadArchive(f"the header of its tensor {name!r} is damaged")
    if kind not in SAFETENSORS:
        raise BadArchive(
            f"its tensor {name!r} is of {kind}, where one of {', '.join(SAFETENSORS)} is expected"
        )
    return Header(SAFETENSORS[kind], shape), begin, stop


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the members by the name of their array, after checking the directory."""
    infos = archive.infolist()
    if len(infos) > MEMBERS:
        raise BadArchive(f"it has {len(infos):,} members, more than {MEMBERS:,}")
    if any(info.flag_bits & 1 for info in infos):
        raise BadArchive("it is encrypted")
    if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in infos):
        raise BadArchive("it is compressed in another way than NumPy does")
    if sum(info.compress_size for info in infos) > size:
        raise BadArchive("its members overlap")
    inflated = sum(info.file_size for info in infos)
    if inflated > max(INFLATED, RATIO * size):
        raise BadArchive(
            f"its {size:,} bytes would inflate to {inflated:,}, as those of no array of data do"
        )
    found = {info.filename.removesuffix(".npy"): info for info in infos}
    if len(found) != len(infos):
        raise BadArchive("a name stands twice in it")
    return found


def _index_member(
    file: BinaryIO, archive: zipfile.ZipFile, info: zipfile.ZipInfo, size: int
) -> Member:
    with archive.open(info) as member:
        header, fortran = _npy_header(member)
        begin = member.tell()
    if info.file_size - begin != _nbytes(header):
        raise BadArchive(f"the header of {info.filename!r} tells of {_nbytes(header):,} bytes")
    offset = None  # also of text, which is checked when it is read
    if info.compress_type == zipfile.ZIP_STORED and header.dtype.kind != "U":
        offset = stored_place(file, info, size) + begin
    strides = tuple(math.prod(header.shape[:axis]) for axis in range(len(header.shape)))
    return Member(header.dtype, header.shape, strides if fortran else None, offset)


def _read_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, expected: Header | None
) -> np.ndarray:
    with archive.open(info) as member:
        header, fortran = _npy_header(member)
        size = info.file_size - member.tell()
        if size != _nbytes(header):
            raise BadArchive(
                f"the header of {name!r} tells of {_nbytes(header):,} bytes, and {size:,} follow"
            )
        if expected is not None:
            _check_expected(repr(name), header, expected)
        content, end = bytearray(size), 0
        # Not at once: the member's bytes would lie in memory twice. At the end of the last block
        # the checksum is verified.
        while block := member.read(_BLOCK):
            content[end : end + len(block)] = block
            end += len(block)
    if end != size:
        raise BadArchive(f"its array {name!r} is cut off")
    return _array(content, header, "F" if fortran else "C")


def _array(content: bytes | bytearray | memoryview, header: Header, order: str = "C") -> np.ndarray:
    # NumPy refuses an empty buffer, and a shape with a 0 may have an impossible other side.
    with _refusing("it has an array of an impossible shape"):
        flat = np.frombuffer(content, header.dtype) if len(content) else np.zeros(0, header.dtype)
        array = flat.reshape(header.shape, order=order)
        if (
            header.dtype.kind == "U"
            and (flat.view(header.dtype.byteorder + "u4") > sys.maxunicode).any()
        ):
            raise BadArchive("it has text that is none")
    array.flags.writeable = False
    return array


def _npy_header(file: BinaryIO) -> tuple[Header, bool]:
    """Read an NPY header; return it and whether the array is in Fortran order."""
    with _refusing("an array in it has a damaged header"):
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise BadArchive(f"an array in it is of version {version} of the NPY format")
        length = struct.unpack(
            "<H" if version == (1, 0) else "<I", file.read(2 if version == (1, 0) else 4)
        )[0]
        if length > HEADER:
            raise BadArchive(f"the header of an array in it has {length:,} bytes")
        text = io.BytesIO(struct.pack("<H", length) + file.read(length))
        # A literal, which NumPy parses without executing anything. It warns about those of Python
        # 2.
        with warnings.catch_warnings(action="ignore"):
            try:
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(text, HEADER)
            except MemoryError:  # from Python's parser, if the literal is nested too deeply
                raise BadArchive("an array in it has a damaged header") from None
    if dtype.hasobject:
        raise BadArchive("an array in it is of Python objects, which are never read")
    if dtype.itemsize == 0 or any(side < 0 for side in shape):
        raise BadArchive("an array in it has an impossible shape or type")
    return Header(dtype, shape), fortran


def _nbytes(header: Header) -> int:
    return math.prod(header.shape) * header.dtype.itemsize


def _check_expected(what: str, found: Header, expected: Header) -> None:
    text = expected.dtype.kind == "U" and found.dtype.kind == "U"
    fits = expected.shape is None or (
        len(expected.shape) == len(found.shape)
        and all(
            side in (None, is_now) for side, is_now in zip(expected.shape, found.shape, strict=True)
        )
    )
    if (found.dtype != expected.dtype and not text) or not fits:
        raise BadArchive(f"{what} is {_describe(found)}, where {_describe(expected)} is expected")


def _describe(header: Header) -> str:
    kind = "text" if header.dtype.kind == "U" else str(header.dtype)
    shape = (
        ""
        if header.shape is None
        else f" [{', '.join('any' if n is None else str(n) for n in header.shape)}]"
    )
    return f"{kind}{shape}"


class _Limited:
    """A file of which, while `limit` is a number, no more bytes are read at once.

    The directory of a zip file is read at once, and each of its entries becomes an object.
    """

    limit: int | None = DIRECTORY

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if self.limit is not None and size > self.limit:
            raise BadArchive(f"its directory has more than {self.limit:,} bytes")
        return self._file.read(size)


@contextlib.contextmanager
def _refusing(reason: str) -> Iterator[None]:
    """Turn any error of a parser into a `BadArchive`."""
    try:
        yield
    except (BadArchive, MemoryError):
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise BadArchive(f"{reason}: {error}".rstrip(": .")) from error
    except Exception as error:  # ValueError, SyntaxError, struct.error, RecursionError, ...
        raise BadArchive(f"{reason}: {type(error).__name__}") from error
