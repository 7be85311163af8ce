"""The list of files, of pictures and captions, that a run was trained on, and what has changed.

It is stored in the run's directory as one line of JSON per picture, [name, bytes, nanoseconds],
compressed: some 10 MB for a million.
"""

import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.data.dataset_info import dataset_info
from ddpm_jax.data.layout import is_picture
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.files import is_remote, read_file, reporting, write_atomically

FILE = "data_files.jsonl.gz"
_LARGEST = 2**31  # bytes of a listing before compression
_UNKNOWN = -1  # bytes and time of an object in a bucket


class Listing(NamedTuple):
    """The files of a split, in its order."""

    names: Sequence[str]  # relative, with "/"
    sizes: np.ndarray  # int64 [N], bytes
    times: np.ndarray  # int64 [N], of the last modification, in nanoseconds


def list_files(folder: Any, names: Sequence[str]) -> Listing:
    """Look up sizes and times of files; they are unknown in a bucket and for missing files."""
    found = np.full((2, len(names)), _UNKNOWN, np.int64)
    if not is_remote(folder):
        for i, name in enumerate(names):
            try:
                status = os.stat(os.path.join(folder, name))
            except OSError:
                continue
            found[:, i] = status.st_size, status.st_mtime_ns
    return Listing(names, *found)


def write_listing(path: Any, listing: Listing) -> None:
    """Write a listing, whole or not at all.

    Raises:
      FailureError: it cannot be written.
    """
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file:
        for name, size, time in zip(
            listing.names, listing.sizes.tolist(), listing.times.tolist(), strict=True
        ):
            file.write(f"{json.dumps([name, size, time])}\n".encode())
    with reporting(path):
        write_atomically(path, buffer.getvalue())


def read_listing(path: Any) -> Listing | None:
    """Read what `write_listing` wrote; None where there is no such file.

    Raises:
      FailureError: it is damaged or cannot be read.
    """
    with reporting(path, "read"):
        data = read_file(path) if path.exists() else None
    if data is None:
        return None
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            rows = [json.loads(line) for line in file.read(_LARGEST).splitlines()]
        names = [name for name, _, _ in rows]
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError("it names no files")
        return Listing(
            names, *np.array([[size, time] for _, size, time in rows], np.int64).reshape(-1, 2).T
        )
    except (
        ValueError,
        TypeError,
        OverflowError,
        EOFError,
        OSError,
        RecursionError,
        zlib.error,
    ) as error:
        raise FailureError(
            f"{path}, which lists the files that the run was trained on, is damaged ({error}): "
            "remove it to go on without comparing them."
        ) from error


def check_unchanged(path: Any, source: Any, fingerprint: str, warn: Callable[[str], None]) -> None:
    """Compare the files of a source with those that a run began with, before it resumes.

    Args:
      path: of the listing; old runs have none.
      source: as opened now.
      fingerprint: of the source that the run began with.
      warn: called with a sentence without its full stop.

    Raises:
      UsageError: files have been added or removed, or have another size.
      FailureError: the listing is damaged or cannot be read.
    """
    now, then = dataset_info(source).files, read_listing(path)
    if now is None:
        return
    if then is None:
        if fingerprint != source.fingerprint and len(dataset_info(source).splits) > 1:
            raise UsageError(
                "The folder of images is read in splits now, and is not the data that the run "
                f"began with ({fingerprint!r} then, {source.fingerprint!r} now): if its folders "
                "were classes to the run, give --config.data.layout=classes to resume it, "
                "otherwise bring back the images it was started with."
            )
        return
    _check_names(then, now)
    other_size = _differing(then.sizes, now.sizes)
    if len(other_size):
        i, more = other_size[0], len(other_size) - 1
        if not is_picture(now.names[i]):
            raise UsageError(
                f"{now.names[i]}, which holds captions, has {now.sizes[i]:,} bytes, but had "
                f"{then.sizes[i]:,} when the run began: bring it back to resume the run, or start "
                "in another workdir."
            )
        raise UsageError(
            f"Image {now.names[i]} has {now.sizes[i]:,} bytes, but had {then.sizes[i]:,} when the "
            f"run began{f', and {more} more have another size' if more else ''}: bring back the "
            f"images that it was trained on, or remove {path} to go on with the changed ones."
        )
    other_time = _differing(then.times, now.times)
    if len(other_time):
        which = (
            "all" if len(other_time) == len(now.names) else f"{len(other_time)} of {len(now.names)}"
        )
        warn(
            f"{which} images were written at another time than when the run began, "
            f"{now.names[other_time[0]]} first, with the same sizes: nothing is amiss if they were "
            "copied, but their pixels are not compared"
        )


def _check_names(then: Listing, now: Listing) -> None:
    ours, theirs = set(now.names), set(then.names)
    added = [name for name in now.names if name not in theirs]
    gone = [name for name in then.names if name not in ours]
    if not added and not gone:
        return
    changes = [
        f"{len(names)} {'is' if len(names) == 1 else 'are'} {what} "
        f"({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
        for names, what in ((added, "new"), (gone, "gone or cannot be used"))
        if names
    ]
    raise UsageError(
        f"The images are not those that the run began with: {' and '.join(changes)}. Put that "
        "right to resume it, or start in another workdir."
    )


def _differing(then: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Return the indices at which two known numbers differ."""
    return np.flatnonzero((then != now) & (then != _UNKNOWN) & (now != _UNKNOWN))
