"""Snapshots of EDM's training loop, `network-snapshot-000000.pkl`, read as data.

The file is a pickle of a dict, {"ema": network, "loss_fn": ..., ...}. Its objects are pickled by
`torch_utils.persistence` with the source text of their classes, which running the file would
execute; here it is text, and passed over. An object is its class's name and its `__dict__`, in
which `_parameters`, `_buffers` and `_modules` have the tensors and the parts of a network, and
`_init_args` and `_init_kwargs` how it was constructed. The numbers of each tensor are bytes in the
pickle, which are a file of PyTorch in the legacy format.
"""

import functools
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np

from ddpm_jax.archives import BadArchive
from ddpm_jax.files import open_file
from ddpm_jax.interop.contents import Contents, sort_tree
from ddpm_jax.interop.tensor_store import Entry, Stored, store_of
from ddpm_jax.interop.torch_files import MEMBERS, Saved, read_legacy
from ddpm_jax.interop.torch_names import TORCH, Name, Record, Span, Storage, View, Vocabulary
from ddpm_jax.interop.torch_pickle import load

_HEAD = 1 << 16  # bytes of the pickles of one storage, some 350
_CONSTRUCTION = ("_init_args", "_init_kwargs")
_SCALAR = re.compile(r"[biuf][1248]")


def read_snapshot(path: pathlib.Path) -> Contents:
    """Open the networks in a local snapshot.

    Returns:
      groups by key ("ema"), whose names are those of the network's state dict; of every object its
      class as `_class_name`, how it was constructed and its plain public attributes, by the keys
      and the names of modules that lead to it ("ema.model._init_kwargs.model_channels").

    Raises:
      BadArchive: it is damaged, holds what is neither an object of these kinds nor plain, or has no
        tensors.
      OSError: as `files.open_file`.
    """
    with open_file(path) as file:
        storages = _Storages(file)
        tree = load(file, vocabulary=_vocabulary(storages))
    saved = Saved(tree, storages.places)
    found = sort_tree(tree, View, lambda view: Stored(path, *saved.place(view)))
    groups: dict[str, dict[str, Entry]] = {}
    for module, tensors in found.groups.items():
        key, _, prefix = ("", "", module) if isinstance(tree, Record) else module.partition(".")
        for name, entry in tensors.entries.items():
            groups.setdefault(key, {})[f"{prefix}.{name}" if prefix else name] = entry
    return found._replace(groups={key: store_of(entries) for key, entries in groups.items()})


class _Module(Record):
    """A network, a part of one, or another object of a class that travels with it."""

    def __init__(self, class_name: str) -> None:
        super().__init__()
        self._class_name = class_name

    def items(self) -> Iterable[tuple[Any, Any]]:
        """Return class, construction, plain attributes, tensors and parts."""
        public = {
            name: value
            for name, value in super().items()
            if name in _CONSTRUCTION or not (str(name).startswith("_") or isinstance(value, View))
        }
        inside = {
            name: value
            for part in self._parts()
            for name, value in part.items()
            if value is not None
        }
        return ({"_class_name": self._class_name} | public | inside).items()

    def __len__(self) -> int:
        return super().__len__() + sum(map(len, self._parts()))

    def _parts(self) -> list[dict[Any, Any]]:
        attributes = dict(super().items())
        parts = [attributes.get(name, {}) for name in ("_parameters", "_buffers", "_modules")]
        if not all(isinstance(part, dict) for part in parts):
            raise BadArchive("a network in it is damaged")
        return parts


class _Dtype(Record):
    """A type of numbers of NumPy, whose state is its byte order."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.dtype = np.dtype(kind)

    def set_state(self, state: Any) -> None:
        """Take the byte order."""
        if not isinstance(state, tuple) or state[1:2] not in (("<",), (">",), ("|",)):
            raise BadArchive("a number in it is damaged")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Storages:
    """The storages in the bytes of a pickle, each under the position where it begins."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._found: dict[int, Storage] = {}
        self.places: dict[str, tuple[int, int]] = {}

    def load(self, span: Any) -> Storage:
        """Return the storage in bytes that are a file of PyTorch."""
        if not isinstance(span, Span):
            raise BadArchive("a tensor in it is damaged")
        if span.begin not in self._found:
            self._found[span.begin] = self._read(span)
        return self._found[span.begin]

    def _read(self, span: Span) -> Storage:
        if len(self._found) == MEMBERS:
            raise BadArchive(f"it has more than {MEMBERS:,} tensors")
        position = self._file.tell()
        saved = read_legacy(self._file, *span, pickles=_HEAD)
        self._file.seek(position)
        storage = saved.tree
        if not isinstance(storage, Storage) or storage.key not in saved.places:
            raise BadArchive("a tensor in it is damaged")
        key = str(span.begin)
        self.places[key] = saved.places[storage.key]
        return storage._replace(key=key)


def _vocabulary(storages: _Storages) -> Vocabulary:
    functions: Mapping[Name, Callable[..., Any]] = {
        Name("torch_utils.persistence", "_reconstruct_persistent_obj"): _reconstruct,
        Name("torch.storage", "_load_from_bytes"): storages.load,
        Name("numpy", "dtype"): _dtype,
        Name("numpy.core.multiarray", "scalar"): _scalar,
        Name("numpy._core.multiarray", "scalar"): _scalar,
    }
    records = {
        Name("torch.nn.modules.container", name): functools.partial(_Module, name)
        for name in ("ModuleDict", "ModuleList", "Sequential")
    }
    return Vocabulary(
        functions={**TORCH.functions, **functions},
        records={**TORCH.records, **records, Name("dnnlib.util", "EasyDict"): dict},
        inert=TORCH.inert - functions.keys(),
    )


def _reconstruct(meta: Any) -> _Module:
    match meta:
        case {"type": "class", "class_name": str(name), "state": dict(state)}:
            module = _Module(name)
            module.set_state(state)
            return module
    raise BadArchive("an object in it is damaged")


def _dtype(kind: Any, *_: Any) -> _Dtype:
    if not isinstance(kind, str) or not _SCALAR.fullmatch(kind):
        raise BadArchive("a number in it is of an unknown type")
    return _Dtype(kind)


def _scalar(dtype: Any, data: Any) -> Any:
    if (
        not isinstance(dtype, _Dtype)
        or not isinstance(data, bytes)
        or len(data) != dtype.dtype.itemsize
    ):
        raise BadArchive("a number in it is damaged")
    return np.frombuffer(data, dtype.dtype)[0].item()
