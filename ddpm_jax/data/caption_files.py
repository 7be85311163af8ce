"""Captions of a folder of pictures: `metadata.jsonl` files, or a `.txt` file beside each picture.

    data_dir/metadata.jsonl              {"file_name": "cat/1.png", "text": "a cat"}, one a line;
                                         several lines for an image are several captions
    data_dir/<folder>/metadata.jsonl     the same, for the pictures in and below that folder
    data_dir/<any>/1.png, 1.txt          one caption a line

The former is the layout of Hugging Face's `imagefolder`, whose file names are relative to the
folder of the file. A value may be a text or a list of texts. Of two files that name a picture the
nearer one counts.
"""

import os
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ddpm_jax.data.captions import AUTO, Captions, make_captions
from ddpm_jax.errors import UsageError
from ddpm_jax.files import as_path, is_remote, read_file, reporting
from ddpm_jax.schema import Malformed, parse

METADATA = "metadata.jsonl"
BESIDE = "txt"  # in place of a field's name: a text file beside each picture
FIELDS = ("text", "caption", "captions")  # that `AUTO` looks for, in this order
_MORE = "give each a caption, remove the images without one, or set data.captions='' to use none"


class Captioned(NamedTuple):
    """The captions of the pictures of a folder."""

    captions: Captions | None  # None if none are asked for
    files: list[str]  # that they were read from, relative to the folder of the pictures


def read_captions(root: Any, folder: Any, names: Sequence[str], *, field: str) -> Captioned:
    """Return the captions of pictures.

    Args:
      root: data_dir.
      folder: the root of the names: data_dir, or the folder of a split in it.
      names: the pictures, relative paths with "/".
      field: the field of the metadata files; "txt" for text files; "auto" for the metadata files
        where there are any, and text files otherwise.

    Raises:
      UsageError: a picture has no caption; a line or text is no caption; a file names a picture
        that is not there.
      FailureError: a file cannot be read.
    """
    inside = "" if folder == root else os.path.relpath(folder, root)
    paths = [posixpath.join(inside, name) for name in names]
    files = [] if field == BESIDE else _metadata_files(root, paths)
    if files:
        of_path = _from_metadata(root, files, set(paths), field)
    elif field in (AUTO, BESIDE):
        files, of_path = _from_text_files(root, paths)
    else:
        raise UsageError(
            f"Folder {root} has no {METADATA} with the captions {field!r}: write one, with a line "
            f'{{"file_name": ..., "{field}": ...}} for each image, or set data.captions=txt for '
            "text files beside the images."
        )
    without = [path for path in paths if path not in of_path]
    if without:
        raise UsageError(
            f"Image {as_path(root) / without[0]} has no caption"
            f"{_and_more(len(without) - 1, 'none')}: {_MORE}."
        )
    relative = [posixpath.relpath(name, inside or ".") for name in files]
    return Captioned(make_captions(of_path[path] for path in paths), relative)


def _metadata_files(root: Any, paths: Sequence[str]) -> list[str]:
    """Return the metadata files in the folders around the pictures, the outermost first."""
    folders = {""}
    for path in paths:
        above = posixpath.dirname(path)
        while above not in folders:
            folders.add(above)
            above = posixpath.dirname(above)
    files = [posixpath.join(folder, METADATA) for folder in sorted(folders)]
    return [name for name in files if _exists(root, name)]


def _from_metadata(
    root: Any, files: Sequence[str], wanted: set[str], field: str
) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in files:
        place = as_path(root) / name
        of_file, missing = {}, []
        for line, row in _lines(place):
            path = _picture(row, posixpath.dirname(name), f"Line {line} of {place}")
            if path in wanted:
                of_file.setdefault(path, []).extend(_texts(row, field, f"Line {line} of {place}"))
            elif not _exists(root, path):
                missing.append(path)
        if missing:
            raise UsageError(
                f"{place} names {missing[0]}, which is not there"
                f"{_and_more(len(missing) - 1, 'no file')}: bring the images back, or remove "
                "their lines."
            )
        found |= of_file
    return found


def _lines(place: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a metadata file with the number of their line, from 1."""
    for number, line in enumerate(_text(place).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse(line.encode())
        except Malformed as error:
            raise UsageError(
                f"Line {number} of {place} is damaged ({error}): correct or remove it."
            ) from error
        if not isinstance(row, dict):
            raise UsageError(
                f"Line {number} of {place} is not a JSON object with a file_name: correct or "
                "remove it."
            )
        yield number, row


def _picture(row: dict[str, Any], folder: str, where: str) -> str:
    """Return the path of the picture that a row is about, relative to data_dir."""
    name = row.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        raise UsageError(f"{where} has no file_name, the path of an image: add it.")
    path = posixpath.normpath(posixpath.join(folder, name))
    if posixpath.isabs(name) or path.split("/")[0] == "..":
        raise UsageError(
            f"{where} names {name}, which is outside of the folder: give a path relative to the "
            "folder of that file."
        )
    return path


def _texts(row: dict[str, Any], field: str, where: str) -> list[str]:
    """Return the captions of a row, without spaces around them."""
    if field == AUTO:
        field = next((name for name in FIELDS if name in row), FIELDS[0])
    value = row.get(field)
    if value is None:
        raise UsageError(
            f"{where} has no {field!r}, only {', '.join(sorted(row))}: set data.captions to the "
            "field that holds the caption."
        )
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{where} has a {field!r} that is neither a text nor a list of texts.")
    if not texts or not all(text.strip() for text in texts):
        raise UsageError(f"{where} has an empty caption: {_MORE}.")
    return texts


def _from_text_files(root: Any, paths: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the text files beside pictures, and the captions in them."""
    files, found = [], {}
    for path in paths:
        name = f"{posixpath.splitext(path)[0]}.txt"
        place = as_path(root) / name
        if not _exists(root, name):
            continue
        texts = [line for line in _text(place).splitlines() if line.strip()]
        if not texts:
            raise UsageError(f"{place} holds no caption: {_MORE}.")
        files.append(name)
        found[path] = texts
    return files, found


def _text(place: Any) -> str:
    with reporting(place, "read"):
        data = read_file(place)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{place} is not UTF-8 at byte {error.start}: write the captions in UTF-8."
        ) from error


def _exists(root: Any, name: str) -> bool:
    if is_remote(root):
        return (root / name).exists()
    return os.path.exists(os.path.join(root, name))  # unlike `Path`, for any name whatever


def _and_more(count: int, what: str) -> str:
    return f", and {count} more {'has' if count == 1 else 'have'} {what}" if count else ""
