"""Results on disk: records as JSON that say how to repeat them, and tallies as NPZ.

A tally is a NamedTuple of arrays with the results of a likelihood so far: `tally.Tally` of the
bound, `ode_bits.Bits`. What a number means is documented there and in `frechet`; its settings are
chosen by the caller.
"""

import hashlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from ddpm_jax.archives import Header, read_npz
from ddpm_jax.errors import FailureError, UsageError, visible
from ddpm_jax.files import as_path, read_file, reporting, write_atomically
from ddpm_jax.schema import Malformed, Table, differing, parse

_SETTINGS = "settings"
_PLACE = "checkpoint"  # where the weights lie: which they are, their digest says
# what older versions did not record, or not all of it
_IDENTITY = ("weights_sha256", "config", "random_numbers")
_REMEDY = "name another directory"
_OUT = f"{_REMEDY} with --out"
AnyTally = TypeVar("AnyTally", bound=tuple)


def weights_digest(params: Any) -> str:
    """Return the SHA-256 of all parameters in the order of the tree, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        # as bytes: NumPy's buffers do not have bfloat16
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def machine() -> dict[str, str]:
    """Return the kind of device and JAX's precision of matrix products, which change digits."""
    precision = jax.config.jax_default_matmul_precision or "default"
    return {"device": jax.local_devices()[0].device_kind, "matmul_precision": precision}


def write_record(path: str | os.PathLike, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, atomically.

    Arrays become lists; numbers that are not finite become null.

    Raises:
      FailureError: the file cannot be written.
    """
    with reporting(path):
        write_atomically(
            path, (json.dumps(_plain(record), indent=2, allow_nan=False) + "\n").encode()
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def format_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay out rows under a header, right-aligned; floats to four significant digits, NaN as "-".

    Control characters in foreign names are escaped: a cell has one line.
    """
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    )


def _cell(value: Any) -> str:
    if not isinstance(value, float | np.floating):
        return visible(str(value))
    return f"{value:.4g}" if math.isfinite(value) else "-"


def save_tally(path: str | os.PathLike, tally: AnyTally, settings: Mapping[str, Any]) -> None:
    """Write a tally and the settings it was made with, atomically.

    Raises:
      FailureError: the file cannot be written.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **{_SETTINGS: np.array(json.dumps(_plain(settings)))}, **tally._asdict())
    with reporting(path):
        write_atomically(path, buffer.getvalue())


def load_tally(path: str | os.PathLike, settings: Mapping[str, Any], empty: AnyTally) -> AnyTally:
    """Return the tally saved with these settings, or `empty` if there is no file.

    Args:
      path: of the file.
      settings: those that it must have been made with.
      empty: the tally of no image, of the same type: arrays whose first axis is images have length
        0.

    Raises:
      UsageError: it was made with other settings; the first that differ are named.
      FailureError: the file is damaged, or cannot be read.
    """
    data = _read(path)
    if data is None:
        return empty
    fields = empty._asdict()
    headers = {
        name: Header(leaf.dtype, tuple(side or None for side in leaf.shape))
        for name, leaf in fields.items()
    }
    try:
        arrays = read_npz(data, {_SETTINGS: Header(np.dtype(str), ()), **headers})
        found = parse(str(arrays[_SETTINGS]).encode(), Table())
        # Where the model has no codes, their axis is empty for any number of images.
        if len({len(arrays[name]) for name, leaf in fields.items() if len(leaf) == 0} - {0}) > 1:
            raise ValueError("its arrays are not of the same images")
    except ValueError as error:
        raise FailureError(f"{path} is damaged ({error}): delete it and evaluate again.") from error
    check_same(f"{path} holds results", found, _plain(settings), remedy=_OUT)
    return type(empty)(**{name: arrays[name] for name in fields})


def check_record(path: str | os.PathLike, settings: Mapping[str, Any]) -> None:
    """Allow a record to be overwritten with the same `settings`; refuse others.

    Raises:
      UsageError: the record there was made with other settings; the first that differ are named.
      FailureError: the file is damaged, or cannot be read.
    """
    data = _read(path)
    if data is None:
        return
    try:
        found = parse(data, Table())
    except Malformed as error:
        raise FailureError(f"{path} is damaged ({error}): delete it and evaluate again.") from error
    found = {name: found[name] for name in settings if name in found}
    check_same(f"{path} holds results", found, _plain(settings), remedy=_OUT)


def _read(path: str | os.PathLike) -> bytes | None:
    """Return the contents of a file, None if there is none.

    A file that is out of reach is not damaged: nobody may delete it.
    """
    path = as_path(path)
    with reporting(path, "read"):
        return read_file(path) if path.exists() else None


def check_same(
    there: str, found: Mapping[str, Any], wanted: Mapping[str, Any], *, remedy: str = _REMEDY
) -> None:
    """Refuse existing results unless they were made with the settings that are wanted.

    The path of the checkpoint makes no difference, because the digest of its weights is among the
    settings.

    Args:
      there: how the sentence begins: "runs/digits/generated holds images".
      found: settings of what is there, as JSON gives them back.
      wanted: of what is asked for, likewise.
      remedy: how the sentence ends.

    Raises:
      UsageError: they differ, and the first three differences are named; or the existing results,
        of an older version, do not say which model made them.
    """
    unknown = [name for name in _IDENTITY if name in wanted and name not in found]
    if unknown:
        raise UsageError(
            f"{there} of an older version, which did not record {' and '.join(unknown)}, so "
            f"whether they are of this model is not known: {remedy}, or remove them to make them "
            "again."
        )
    sides = (
        {name: value for name, value in side.items() if name != _PLACE} for side in (found, wanted)
    )
    named = [f"{name} is {old} there, {new} here" for name, (old, new) in differing(*sides).items()]
    if named:
        raise UsageError(f"{there} made otherwise ({', '.join(named[:3])}): {remedy}.")
