"""Arrays of a saved state, read without Orbax, which takes longer to import than they to read.

Orbax describes the leaves of a state in `_METADATA` and keeps them as Zarr arrays in one OCDBT
store. What is exactly so and exactly as expected is read here; of everything else `read` returns
None, and Orbax reads it or says what is wrong.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import tensorstore

from ddpm_jax.files import is_remote, read_file
from ddpm_jax.schema import LARGEST, Malformed, Table, parse

_METADATA = "_METADATA"
_KIND = Table(required={"tree_metadata": Table()})
_STORED_AS = {"use_ocdbt": True, "use_zarr3": False}
_ARRAY = "jax.Array"
_OLDER = ("objective_state", "frozen")  # see `layouts`

Path = tuple[str, ...]


def read(state: pathlib.Path, fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return fields of a state as arrays on the first device, or None.

    Args:
      state: the folder that Orbax wrote, its digests compared.
      fields: by name, trees of dicts whose leaves have a shape and a dtype and no sharding.
    """
    if is_remote(state) or jax.process_count() > 1:
        return None
    wanted, structure = jax.tree_util.tree_flatten_with_path(dict(fields))
    if any(not isinstance(key, jax.tree_util.DictKey) for path, _ in wanted for key in path):
        return None
    wanted = {tuple(key.key for key in path): leaf for path, leaf in wanted}
    saved = _saved_leaves(state)
    if saved is None or any(path[: len(_OLDER)] == _OLDER for path in saved):
        return None
    of_fields = {path for path in saved if path[0] in fields}
    if of_fields != wanted.keys() or any(saved[path] != _ARRAY for path in of_fields):
        return None
    arrays = _open(state, list(wanted))
    if arrays is None or any(
        array.shape != leaf.shape or array.dtype.numpy_dtype != leaf.dtype
        for array, leaf in zip(arrays, wanted.values(), strict=True)
    ):
        return None
    reads = [array.read() for array in arrays]
    try:
        values = [value.result() for value in reads]
    except ValueError:  # as tensorstore reports damage
        return None
    return jax.tree.unflatten(structure, jax.device_put(values, jax.local_devices()[0]))


def _saved_leaves(state: pathlib.Path) -> dict[Path, str] | None:
    """Return what kind of value lies at which path of the state."""
    try:
        found = parse(read_file(state / _METADATA, largest=LARGEST + 1), _KIND)
        if any(found.get(name) != value for name, value in _STORED_AS.items()):
            return None
        return {
            tuple(part["key"] for part in leaf["key_metadata"]): leaf["value_metadata"][
                "value_type"
            ]
            for leaf in found["tree_metadata"].values()
        }
    except (OSError, Malformed, KeyError, TypeError):
        return None


def _open(state: pathlib.Path, paths: list[Path]) -> list[tensorstore.TensorStore] | None:
    # tensorstore takes no path with a .. in it
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{os.path.realpath(state)}/"}}
    context = tensorstore.Context()

    def start(path: Path) -> tensorstore.Future:
        spec = {
            "driver": "zarr",
            "kvstore": {**store, "path": f"{'.'.join(path)}/"},
            "fill_missing_data_reads": False,
            "recheck_cached_data": False,
            "recheck_cached_metadata": False,
        }
        return tensorstore.open(spec, context=context, open=True, read=True)

    try:
        return [array.result() for array in [start(path) for path in paths]]
    except ValueError:
        return None
