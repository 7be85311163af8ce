"""What a file or a directory of another project holds: tensors by name, and what is said of it.

`open_container` opens every format that is read here. The content decides which it is, not the
name. Nothing in a file is executed, and tensors are not read before they are looked up.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ddpm_jax.archives import BadArchive, safetensors_metadata
from ddpm_jax.errors import UsageError
from ddpm_jax.files import (
    as_path,
    is_remote,
    local_copy,
    local_copy_of_files,
    open_file,
    reporting,
)
from ddpm_jax.interop.contents import Contents, contents_of_pickle
from ddpm_jax.interop.diffusers_directory import INDEX, read_json
from ddpm_jax.interop.edm_snapshot import read_snapshot
from ddpm_jax.interop.flax_msgpack import is_msgpack, read_msgpack
from ddpm_jax.interop.network_folders import (
    is_network_folder,
    read_network_folder,
    without_weights,
)
from ddpm_jax.interop.tensor_store import npz_store, safetensors_store
from ddpm_jax.interop.tensorflow_bundle import find_index, indices_in, prefix_of, read_bundle
from ddpm_jax.interop.torch_files import is_torch_legacy, is_torch_zip, read_torch
from ddpm_jax.interop.weight_files import open_shards

Reader = Callable[[pathlib.Path], Contents]


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
    # What else there is, by the keys that lead to it, in words: "the state of an optimiser".
    unread: Mapping[str, str] = dataclasses.field(default_factory=dict)


def open_container(path: str | os.PathLike, *, variant: str | None = None) -> Container:
    """Open the weights that another project has saved.

    - files: PyTorch's, safetensors, NPZ, Flax's msgpack, a snapshot of EDM;
    - several files: a JSON index of files of weights; a checkpoint of TensorFlow, as
      "model.ckpt-1000", its index, or the directory whose file `checkpoint` names it, or which
      holds no other;
    - a directory of a pipeline or of one network in diffusers' layout.

    Args:
      path: one of these, here or in a bucket, from which it is copied (`files.local_copy`).
      variant: of the weights in a directory, "fp16" say; as `network_folders.read_network_folder`.

    Returns:
      what is there; no tensor is read.

    Raises:
      UsageError: there is no such file, it is of no format that is known here, damaged, has no
        tensors by name, or asks for code to be executed.
      FailureError: a bucket does not answer.
    """
    path = as_path(path)
    if is_remote(path):
        with reporting(path, "read"):
            path = _copied(path)
    try:
        kind, contents = _read(path, variant)
    except BadArchive as error:
        raise UsageError(
            f"{path} is no whole file of weights that can be read ({error}): download it again, or "
            "name another."
        ) from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror or error}).") from error
    return Container(path, kind, *contents)


def is_container(path: pathlib.Path) -> bool:
    """Return whether something is at a local path that `open_container` would try to open.

    Raises:
      OSError: a file there cannot be read.
    """
    if path.is_dir():
        return (path / "checkpoint").is_file() or is_network_folder(path) or bool(indices_in(path))
    return path.is_file() or find_index(path) is not None


def _copied(path: Any) -> pathlib.Path:
    """Return a local copy of what is in a bucket: a folder, or a file with those it belongs to."""
    if path.is_dir():
        return local_copy(path)
    prefix = path.name.split(".")[0] if path.suffix == ".json" else prefix_of(path.name)
    try:
        return local_copy_of_files(path, prefix)
    except FileNotFoundError as error:
        raise UsageError(f"{path} is neither a file nor a folder in a bucket.") from error


def _read(path: pathlib.Path, variant: str | None) -> tuple[str, Contents]:
    """Return what a path is, in words, and what it holds; raise as the readers."""
    if index := find_index(path):
        return "a checkpoint of TensorFlow", read_bundle(index)
    if not path.is_dir():
        kind, read = _format(path)
        return kind, read(path)
    if is_network_folder(path):
        return "a directory of diffusers", read_network_folder(path, variant)
    indices = indices_in(path)
    if len(indices) == 1:
        return "a checkpoint of TensorFlow", read_bundle(indices[0])
    if indices:
        there = ", ".join(index.name.removesuffix(".index") for index in indices[:20])
        raise UsageError(
            f"{path} holds {len(indices)} checkpoints of TensorFlow: name one of them, as "
            f"{indices[0].with_suffix('')}; there are {there}."
        )
    if part := without_weights(path):
        raise UsageError(
            f"{part} has no weights beside its config: a file such as "
            "diffusion_pytorch_model.safetensors is missing."
        )
    if (path / INDEX).is_file():
        raise UsageError(
            f"{path} has a {INDEX}, but no folder of a network, as unet, with config.json and "
            "diffusion_pytorch_model.safetensors: they are missing."
        )
    raise UsageError(
        f"{path} is a directory, but none of diffusers, whose weights have names such as "
        "diffusion_pytorch_model.safetensors, nor one of TensorFlow's checkpoints: name a file in "
        "it."
    )


def _format(path: pathlib.Path) -> tuple[str, Reader]:
    """Return what a file is, in words, and what reads it; raise as `files.open_file`."""
    with open_file(path) as file:
        start = file.read(32)
    if not start:
        raise BadArchive("it is empty")
    # 8 bytes have the length of the header, of which less than 4 are used, and a brace begins it.
    if start[4:9] == b"\0\0\0\0{":
        return "a safetensors file", _read_safetensors
    if start[:1] == b"{":
        return "several files of weights with an index", _read_shards
    if start[:2] == b"PK" and not is_torch_zip(path):
        return "an NPZ file", _read_npz
    if start[:2] == b"PK" or is_torch_legacy(start):
        return "a file of PyTorch", _read_torch
    if start[:1] == b"\x80":
        return "a snapshot of EDM", read_snapshot
    if is_msgpack(start):
        return "a msgpack file of Flax", read_msgpack
    raise UsageError(
        f"{path} is of no format that is read here: PyTorch, safetensors, NPZ, Flax's msgpack, "
        "TensorFlow's checkpoints and EDM's snapshots are."
    )


def _read_safetensors(path: pathlib.Path) -> Contents:
    return Contents({"": safetensors_store(path)}, safetensors_metadata(path))


def _read_shards(path: pathlib.Path) -> Contents:
    if "weight_map" not in read_json(path, infinite=True):
        raise UsageError(
            f"{path} has settings and no weights: name the folder that holds both, {path.parent}."
        )
    return Contents({"": open_shards(path)})


def _read_npz(path: pathlib.Path) -> Contents:
    return Contents({"": npz_store(path)})


def _read_torch(path: pathlib.Path) -> Contents:
    return contents_of_pickle(path, read_torch(path))
