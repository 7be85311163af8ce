"""Checks of a data_dir from outside: a folder of pictures, or of datasets prepared by TFDS.

Only names are looked at; no picture is opened and nothing is written. The contents of a folder of
pictures are the subject of `layout`.
"""

import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from ddpm_jax.errors import UsageError
from ddpm_jax.files import is_remote

# fmt: off
# usual extensions of pictures, to recognise a folder of them; any that Pillow reads can be read
PICTURES = {
    ".avif", ".bmp", ".gif", ".heic", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png",
    ".ppm", ".tga", ".tif", ".tiff", ".webp",
}
# fmt: on
_DEPTH = 2  # folders between data_dir and a picture: one for the split and one for the class
_ENTRIES = 20_000  # entries examined before a folder counts as one without pictures
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_INFO = "dataset_info.json"
_RUN_DIRECTORIES = (  # directories written by a run and by the commands that read it
    "checkpoints",
    "ema",
    "evaluation",
    "generated",
    "pictures",
    "samples",
    "snapshots",
    "tensorboard",
    "wandb",
)


def check_no_pictures(data_dir: str, *, name: str, writing: bool = False) -> None:
    """Refuse to look for, or write, a dataset in a folder of pictures.

    A folder in which TFDS has prepared a dataset other than the digits belongs to TFDS, whatever
    else it holds.

    Args:
      data_dir: "" for TFDS's default, which is not checked.
      name: of the dataset, for the message.
      writing: whether the dataset is about to be written there, so that pictures are looked for at
        every depth.

    Raises:
      UsageError: `data_dir`, a folder at most two levels below, or with `writing` any folder below,
        holds a picture.
    """
    if not data_dir or is_remote(data_dir):
        return
    folder = pathlib.Path(data_dir).expanduser()
    picture = (
        None if set(datasets_in(folder)) - {"digits"} else _first_picture(folder, deep=writing)
    )
    if picture is not None:
        left = folder / "digits" if (folder / "digits").is_dir() and datasets_in(folder) else None
        raise UsageError(
            f"data_dir {data_dir} is a folder of pictures ({picture} is one), but data.name is "
            f"{name!r}: set data.name=folder to use these pictures, or leave data_dir "
            f"out{f'; {left} is the bundled digits and no class, so remove it' if left else ''}."
        )


def check_no_datasets(folder: pathlib.Path) -> None:
    """Refuse to read a dataset prepared by TFDS as a folder of pictures.

    Raises:
      UsageError: `folder` is or contains such a dataset.
    """
    if is_remote(folder):
        return
    if _is_prepared(folder) or any(_is_version(entry) for entry in _entries(folder)):
        raise UsageError(
            f"data_dir {folder} is a dataset that tensorflow-datasets prepared, but data.name is "
            "'folder': set data.name to the name of the dataset and data_dir to the folder that it "
            "was prepared in."
        )
    found = datasets_in(folder)
    if found and _first_picture(folder) is None:
        raise UsageError(
            f"data_dir {folder} holds what tensorflow-datasets prepared ({', '.join(found)}) and "
            "no pictures, but data.name is 'folder': set data.name to one of these, or data_dir to "
            "a folder of pictures."
        )
    if found:
        raise UsageError(
            f"{folder / found[0]} is a dataset that tensorflow-datasets prepared and no class of "
            f"pictures: move it out of {folder}, or remove it."
        )


def check_outside(data_dir: str, place: Any, *, flag: str) -> None:
    """Refuse to write below a folder of pictures, where files would count as pictures.

    Hidden folders in it may be written to: their files do not count.

    Args:
      data_dir: the folder of pictures.
      place: a directory on this machine or in a bucket, which need not exist.
      flag: the flag that named it, for the message.

    Raises:
      UsageError: `place` is `data_dir` or lies in it.
    """
    inside = _inside(data_dir, place)
    if inside is not None and not any(part.startswith(".") for part in inside.parts):
        raise UsageError(
            f"{flag} {place} lies in the folder of images {data_dir}, where what is written would "
            "count as images: name a directory outside it."
        )


def check_not_run_output(data_dir: str, workdir: Any) -> None:
    """Refuse to train on the output of the run itself.

    Raises:
      UsageError: `data_dir` lies in a directory that the run in `workdir` writes to.
    """
    inside = _inside(workdir, data_dir)
    if inside is not None and inside.parts and inside.parts[0] in _RUN_DIRECTORIES:
        raise UsageError(
            f"data_dir {data_dir} lies where the run in {workdir} writes its own files: name "
            "another workdir, or copy the images elsewhere."
        )


def _inside(folder: Any, place: Any) -> pathlib.PurePath | None:
    """Return the path from `folder` to `place` below it; None if it is elsewhere."""
    if is_remote(folder) != is_remote(place):
        return None
    if is_remote(folder):
        ends = [pathlib.PurePosixPath(os.fspath(path)) for path in (folder, place)]
    else:
        ends = [
            pathlib.PurePath(os.path.realpath(os.path.expanduser(path))) for path in (folder, place)
        ]
    return ends[1].relative_to(ends[0]) if ends[1].is_relative_to(ends[0]) else None


def datasets_in(folder: pathlib.Path) -> list[str]:
    """Return the names of the datasets that TFDS has prepared below `folder`, sorted."""
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir() and _is_dataset(entry))


def _is_dataset(place: os.PathLike) -> bool:
    """Return whether `place` holds a version of a dataset, or a configuration that does."""
    inside = list(_entries(place))
    return any(_is_version(entry) or any(map(_is_version, _entries(entry))) for entry in inside)


def _is_version(place: os.DirEntry) -> bool:
    return bool(_VERSION.fullmatch(place.name)) and _is_prepared(place)


def _is_prepared(version: os.PathLike) -> bool:
    return os.path.isfile(os.path.join(version, _INFO))


def _first_picture(folder: pathlib.Path, *, deep: bool = False) -> str | None:
    """Return a picture in `folder` or near below it, as a relative path; None if there is none.

    Args:
      folder: the folder to search.
      deep: whether to search every depth without a limit; each linked folder is searched once.
    """
    level, looked_at, depth, seen = [folder], 0, 0, set()
    while level and (deep or depth <= _DEPTH):
        folders, depth = [], depth + 1
        for entry in (entry for place in level for entry in _entries(place)):
            looked_at += 1
            if looked_at > _ENTRIES and not deep:
                return None
            # TFDS unpacks archives there
            if entry.name.startswith(".") or entry.name == "downloads":
                continue
            if entry.is_dir():
                real = os.path.realpath(entry.path)
                if real not in seen:
                    seen.add(real)
                    folders.append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in PICTURES:
                return os.path.relpath(entry.path, folder)
        level = sorted(place for place in folders if not _is_dataset(place))
    return None


def _entries(folder: os.PathLike) -> Iterator[os.DirEntry]:
    """Return the entries of a folder, sorted; none where it cannot be listed.

    Reading it later raises the error.
    """
    try:
        with os.scandir(folder) as found:
            return iter(sorted(found, key=lambda entry: entry.name))
    except OSError:
        return iter(())
