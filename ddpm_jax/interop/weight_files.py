"""Which files of a folder hold the weights of a network, as diffusers and transformers name them.

A folder may have the same weights several times. `find_weights` takes

1. the variant asked for ("fp16", "non_ema", ...); where none is asked for, the files without one,
   else those of the only variant that there is;
2. of these safetensors before PyTorch's .bin, that before Flax's .msgpack, and one file before
   several with an index.
"""

import os
import pathlib
import re
from collections.abc import Iterable, Mapping

from ddpm_jax.errors import UsageError
from ddpm_jax.files import read_file
from ddpm_jax.interop.flax_networks import open_flax
from ddpm_jax.interop.tensor_store import TensorStore, open_tensors
from ddpm_jax.schema import Malformed, Table, Text, parse

# `model.fp16.safetensors`, and the index of several: `model.safetensors.index.fp16.json`, or
# `model.fp16.safetensors.index.json`
_NAME = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>\w+))?"
    r"\.(?P<kind>safetensors|bin)(?P<index>\.index(?:\.(?P<last>\w+))?\.json)?"
    r"|(?:diffusion_flax_model|flax_model)\.msgpack"
)
_ORDER = (".safetensors", ".bin", ".msgpack")
_INDEX = Table(required={"weight_map": Table(others=Text(r"[\w.-]+"))})


def variants(folder: pathlib.Path) -> set[str]:
    """Return the variants of the weights in a folder, "" for those without one."""
    return set(_candidates(_names(folder)))


def find_weights(folder: pathlib.Path, variant: str | None = None) -> TensorStore:
    """Open the weights of the network in a folder; nothing is read.

    Args:
      folder: "unet" of a pipeline, say.
      variant: as above.

    Raises:
      UsageError: there are none, none of this variant, several variants and none was asked for, or
        a file is missing or damaged.
    """
    path = folder / _choose(_candidates(_names(folder)), variant, folder)
    if path.suffix == ".msgpack":
        return open_flax(path)
    return open_shards(path) if path.suffix == ".json" else open_tensors(path)


def open_shards(index: pathlib.Path) -> TensorStore:
    """Open the weights in several local files, by the JSON file that says which lie where.

    Raises:
      UsageError: it is damaged, or a file or a tensor that it names is missing or damaged.
    """
    try:
        places = parse(read_file(index), _INDEX)["weight_map"]
    except Malformed as error:
        raise UsageError(f"{index} is damaged: {error}.") from error
    shards = {}
    for name in sorted(set(places.values())):
        if not (index.parent / name).exists():
            raise UsageError(f"{index.parent} has no {name}, which {index.name} names.")
        shards[name] = open_tensors(index.parent / name)
    for name, shard in places.items():
        if name not in shards[shard]:
            raise UsageError(f"{index.parent / shard} has no tensor {name}, unlike {index.name}.")
    return TensorStore({name: shards[shard].entries[name] for name, shard in places.items()})


def choose_files(names: Iterable[str], variant: str | None, folder: str) -> list[str]:
    """Return those of a folder's files that `find_weights` reads.

    Args:
      names: of all files in it.
      variant: as above; without one if the folder has no weights of this variant.
      folder: its name, for messages.

    Raises:
      UsageError: as `find_weights`.
    """
    names = list(names)
    found = _candidates(names)
    chosen = _choose(found, variant if variant in found else None, folder)
    if not chosen.endswith(".json"):
        return [chosen]
    suffix = ".safetensors" if ".safetensors" in chosen else ".bin"
    return [chosen, *(name for name in names if "-of-" in name and name.endswith(suffix))]


def has_weights(names: Iterable[str]) -> bool:
    """Return whether any of a folder's files is one of weights by its name."""
    return bool(_candidates(names))


def _names(folder: pathlib.Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _candidates(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the files of weights, or their indices, by variant."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        if parts := _NAME.fullmatch(name):
            found.setdefault(parts["variant"] or parts["last"] or "", []).append(name)
    return found


def _choose(found: Mapping[str, list[str]], variant: str | None, folder: str | os.PathLike) -> str:
    if not found:
        raise UsageError(
            f"{folder} has no weights: a file such as diffusion_pytorch_model.safetensors, "
            "model.safetensors or pytorch_model.bin is expected."
        )
    wanted = variant
    if wanted is None:
        wanted = "" if len(found) > 1 else next(iter(found))
    if wanted not in found:
        there = ", ".join(name or "none (weights without one)" for name in sorted(found))
        asked = f"no weights of the variant {variant!r}" if variant else "several variants"
        raise UsageError(f"{folder} has {asked}: name one of {there}.")

    def rank(name: str) -> tuple[int, bool]:
        kind = next(i for i, kind in enumerate(_ORDER) if kind in name)
        return kind, name.endswith(".json")

    return min(found[wanted], key=rank)
