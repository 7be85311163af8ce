"""State dicts written as files that `torch.load(..., weights_only=True)` reads, without PyTorch.

The format is the zip of `torch_files`: the pickle of a dict, whose tensors refer to storages by
number, and every storage as a member that is not compressed. The pickle is put together from its
opcodes: what it names exists in PyTorch, and need not here.
"""

import math
import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.archives import BadArchive
from ddpm_jax.interop.torch_names import STORAGES

ROOT = "archive"  # the folder in the zip file, as in files that PyTorch writes
_FORMAT = 2  # of the pickle
_BYTES = {"version": b"3\n", "byteorder": b"little"}  # what PyTorch's reader asks for besides


def write_torch(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors to a new local file of PyTorch, one after the other.

    Every tensor is looked up twice and not kept.

    Raises:
      BadArchive: a tensor is of a type that PyTorch lacks.
      OSError: the file exists or cannot be written.
    """
    kinds = {dtype: kind for kind, dtype in STORAGES.items()}
    items = []
    for number, name in enumerate(tensors):
        array = np.asarray(tensors[name])
        if array.dtype not in kinds:
            raise BadArchive(f"tensor {name!r} is of type {array.dtype}, which PyTorch lacks")
        items.append(_plain(name) + _tensor(str(number), kinds[array.dtype], array.shape))
    data = b"".join([pickle.EMPTY_DICT, pickle.MARK, *items, pickle.SETITEMS])
    data = pickle.PROTO + bytes([_FORMAT]) + data + pickle.STOP
    with open(path, "xb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in {"data.pkl": data, **_BYTES}.items():
            archive.writestr(zipfile.ZipInfo(f"{ROOT}/{name}"), content)
        for number, name in enumerate(tensors):
            array = np.ascontiguousarray(tensors[name])
            member = zipfile.ZipInfo(f"{ROOT}/data/{number}")
            with archive.open(member, "w", force_zip64=True) as storage:
                storage.write(array.reshape(-1).view(np.uint8).data)


def _tensor(key: str, kind: str, shape: tuple[int, ...]) -> bytes:
    """Return the opcodes of a tensor in C order that is all of the storage `key`."""
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    storage = [
        pickle.MARK,
        _plain("storage"),
        _name("torch", f"{kind}Storage"),
        *(_plain(part) for part in (key, "cpu", math.prod(shape))),
        pickle.TUPLE,
        pickle.BINPERSID,
    ]
    hooks = [_name("collections", "OrderedDict"), pickle.EMPTY_TUPLE, pickle.REDUCE]
    arguments = [*storage, _plain(0), _plain(shape), _plain(strides), pickle.NEWFALSE, *hooks]
    return b"".join(
        [
            _name("torch._utils", "_rebuild_tensor_v2"),
            pickle.MARK,
            *arguments,
            pickle.TUPLE,
            pickle.REDUCE,
        ]
    )


def _name(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _plain(value: Any) -> bytes:
    """Return the opcodes of a text, a number or a tuple of numbers: its pickle without the ends."""
    return pickle.dumps(value, _FORMAT)[2:-1]
