"""The two formats of `torch.save`: where the tensors of a file lie, read without PyTorch.

- Zip (since PyTorch 1.6): `<root>/data.pkl` is the pickle, `<root>/data/<key>` a storage, stored
  and not compressed, so that it can be mapped into memory.
- Legacy: pickles of a magic number, of the version 1001, of facts about the system, of the object
  and of the list of keys; then for each key the number of its numbers, 8 bytes, and their bytes.

Numbers are little-endian. Checksums of a zip file are not compared: that would read all of it.
"""

import contextlib
import io
import math
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ddpm_jax.archives import BadArchive, open_zip, stored_place
from ddpm_jax.files import open_file
from ddpm_jax.interop.torch_names import Storage, View
from ddpm_jax.interop.torch_pickle import load

PICKLE = 1 << 26  # bytes of the pickles of a file; those of SDXL have 0.3 million
MEMBERS = 100_000  # storages in a file
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
WRAPPERS = ("state_dict", "model")  # keys under which training loops keep the weights


class Tensor(NamedTuple):
    """Where a tensor lies in its file."""

    offset: int  # of its first number, in bytes
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None  # in numbers; None: C order


def is_torch_file(path: pathlib.Path) -> bool:
    """Return whether a file begins as those of `torch.save` do; raise as `files.open_file`."""
    with open_file(path) as file:
        start = file.read(9)
    # A safetensors file begins with 8 bytes of length, which may be any, and then a brace.
    return start[8:9] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80")


def is_torch_zip(path: pathlib.Path) -> bool:
    """Return whether a zip file is one of PyTorch; raise as `files.open_file` and `read_torch`."""
    with open_file(path) as file, _refusing_zip(), open_zip(file) as archive:
        return any(name.endswith("/data.pkl") for name in archive.namelist())


def is_torch_legacy(start: bytes) -> bool:
    """Return whether a pickle whose first 32 bytes or more are these begins a legacy file."""
    return MAGIC.to_bytes(10, "little") in start[:32]


class Saved(NamedTuple):
    """What a file holds, and where its storages lie."""

    tree: Any  # containers of `torch_names.View` and plain values, as `torch_pickle.load`
    places: dict[str, tuple[int, int]]  # key of a storage -> position and size in bytes

    def place(self, view: View) -> Tensor:
        """Return where a tensor lies.

        Raises:
          BadArchive: its storage is missing or cut off.
        """
        dtype = view.storage.dtype
        if view.storage.key not in self.places:
            raise BadArchive(f"its storage {view.storage.key[:40]!r} is missing")
        offset, size = self.places[view.storage.key]
        if view.storage.size * dtype.itemsize > size:
            raise BadArchive(f"its storage {view.storage.key[:40]!r} is cut off")
        strides = None if _is_contiguous(view) else view.strides
        return Tensor(offset + view.offset * dtype.itemsize, dtype, view.shape, strides)


def read_torch(path: pathlib.Path) -> Saved:
    """Return what a local file of `torch.save` holds; its tensors are not read.

    Raises:
      BadArchive: it is damaged, or holds what is neither a tensor nor a plain container.
      OSError: as `files.open_file`.
    """
    with open_file(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        is_zip = file.read(2) == b"PK"
        file.seek(0)
        return _read_zip(file, size) if is_zip else read_legacy(file, 0, size)


def torch_index(path: pathlib.Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict, or of a checkpoint that has one as "state_dict".

    Everything else in the file, such as a state of the optimiser, is passed over.

    Raises:
      BadArchive: as `read_torch`, or it has no tensors by name.
      OSError: as `files.open_file`.
    """
    saved = read_torch(path)
    state = _state_dict(saved.tree)
    found = {name: value for name, value in state.items() if isinstance(value, View)}
    if not found or not all(isinstance(name, str) for name in found):
        raise BadArchive("it has no tensors by name")
    return {name: saved.place(view) for name, view in found.items()}


def read_legacy(file: BinaryIO, begin: int, end: int, *, pickles: int = PICKLE) -> Saved:
    """Return what a piece of a file holds that is in the legacy format, as `read_torch`.

    Args:
      file: any.
      begin, end: where the piece lies in it.
      pickles: bytes of its pickles, at most.

    Raises:
      BadArchive: as `read_torch`.
    """
    file.seek(begin)
    head = io.BytesIO(file.read(min(pickles, end - begin)))
    if load(head) != MAGIC or load(head) != VERSION:
        raise BadArchive("it does not begin as a file of PyTorch")
    system = load(head)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise BadArchive("its numbers are big-endian")
    storages: dict[str, Storage] = {}
    saved, keys = load(head, storages), load(head)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise BadArchive("it has no list of storages")
    places, position = {}, begin + head.tell()
    for key in keys:
        if key not in storages:
            raise BadArchive(f"nothing uses its storage {key[:40]!r}")
        file.seek(position)
        count = int.from_bytes(file.read(8), "little")
        nbytes = count * storages[key].dtype.itemsize
        if position + 8 + nbytes > end:
            raise BadArchive("it is cut off")
        places[key] = (position + 8, nbytes)
        position += 8 + nbytes
    return Saved(saved, places)


def _state_dict(saved: Any) -> dict[Any, Any]:
    if not isinstance(saved, dict):
        raise BadArchive("it holds no state dict")
    inner = (saved.get(name) for name in WRAPPERS)
    return next((value for value in inner if isinstance(value, dict)), saved)


def _is_contiguous(view: View) -> bool:
    """Return whether the numbers follow each other in C order; the stride of a side 1 is free."""
    return all(
        n == 1 or step == math.prod(view.shape[axis + 1 :])
        for axis, (n, step) in enumerate(zip(view.shape, view.strides, strict=True))
    )


def _read_zip(file: BinaryIO, size: int) -> Saved:
    with _refusing_zip(), open_zip(file) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        roots = [name.removesuffix("data.pkl") for name in infos if name.endswith("/data.pkl")]
        if len(roots) != 1 or len(infos) > MEMBERS:
            raise BadArchive("it is a zip file, but none of PyTorch")
        (root,) = roots
        if infos[f"{root}data.pkl"].file_size > PICKLE:
            raise BadArchive(f"its pickle has more than {PICKLE:,} bytes")
        order = infos.get(f"{root}byteorder")
        if order and (order.file_size > 6 or archive.read(order) != b"little"):
            raise BadArchive("its numbers are big-endian")
        saved = load(io.BytesIO(archive.read(f"{root}data.pkl")))
        places = {
            name.removeprefix(f"{root}data/"): _member(file, info, size)
            for name, info in infos.items()
            if name.startswith(f"{root}data/")
        }
    return Saved(saved, places)


@contextlib.contextmanager
def _refusing_zip() -> Iterator[None]:
    """Turn any error of a damaged zip file into a `BadArchive`."""
    try:
        yield
    except (BadArchive, MemoryError):
        raise
    except Exception as error:  # BadZipFile, zlib.error, EOFError, NotImplementedError, ...
        raise BadArchive(f"it is a damaged zip file: {error}") from error


def _member(file: BinaryIO, info: zipfile.ZipInfo, size: int) -> tuple[int, int]:
    """Return position and size in bytes of the data of a member that is stored as it is."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise BadArchive("its storages are compressed, as PyTorch does not write them")
    return stored_place(file, info, size), info.file_size
