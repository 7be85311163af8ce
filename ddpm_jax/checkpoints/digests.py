"""Digests of a folder's files, kept in the folder, by which damage is detected later.

Run in the folder, `sha256sum --check SHA256SUMS` verifies them. The meaning of the files does not
matter here. Only regular files in the folder are ever opened, whatever it or its digests name: no
link, pipe or device.
"""

import concurrent.futures
import os
import pathlib
import re
import stat
from collections.abc import Iterator

from ddpm_jax.errors import visible
from ddpm_jax.files import NotAFile, check_is_file, file_sha256, is_remote, read_file

SUMS = "SHA256SUMS"
# Orbax adds it when all others are there; it is empty, or holds the time
LATER = "commit_success.txt"
_LINE = re.compile("([0-9a-f]{64})  (.+)")
_LARGEST = 16 << 20  # bytes of the digests: of 100,000 files
# files read at once: hashing keeps a core busy, and a network has more to give than one stream
# takes
_AT_A_TIME = 4


def write(folder: pathlib.Path) -> None:
    """Write the digests of all files in `folder` and below into `folder`/SHA256SUMS."""
    files = [(name, path) for name, path in _files(folder) if name != SUMS]
    lines = [f"{file_sha256(path)}  {name}\n" for name, path in files]
    (folder / SUMS).write_text("".join(lines))


def damage(folder: pathlib.Path) -> str | None:
    """Return what differs from the files written, as half a sentence, or None.

    Every file must be among the digests, but for those whose names begin with a dot and for
    `LATER`. Without digests nothing is known of files on a disk, so nothing is wrong; in a bucket
    there has never been a checkpoint without.

    Raises:
      PermissionError: a file on a disk may not be read.
      Exception: a bucket does not answer, or refuses.
    """
    try:
        there = dict(_files(folder))
        if SUMS not in there:
            return f"its file {folder.name}/{SUMS} is missing" if is_remote(folder) else None
        expected = _parse(read_file(there[SUMS], largest=_LARGEST))
        if not expected:
            return f"its file {folder.name}/{SUMS} is not what was written"
        lacking = [name for name in expected if name not in there]
        if lacking:
            return f"its file {_name(folder, lacking[0])} is missing"
        unknown = [
            name for name in there if name not in {SUMS, LATER, *expected} and not _is_hidden(name)
        ]
        if unknown:
            return f"its file {_name(folder, unknown[0])} is not among those that were written"
        with concurrent.futures.ThreadPoolExecutor(_AT_A_TIME) as pool:
            found = pool.map(lambda name: file_sha256(there[name]), expected)
            for (name, digest), is_now in zip(expected.items(), found, strict=True):
                if is_now != digest:
                    return f"its file {_name(folder, name)} is not what was written"
    except NotAFile as error:
        return str(error)
    except PermissionError:
        raise
    except OSError as error:
        if is_remote(folder):
            raise
        return f"a file in its {folder.name} cannot be read: {error.strerror or error}"
    return None


def _name(folder: pathlib.Path, name: str) -> str:
    return visible(f"{folder.name}/{name}")


def _parse(data: bytes) -> dict[str, str]:
    """Return {name: digest}; {} where a line is not one of each."""
    lines = [_LINE.fullmatch(line) for line in data.decode(errors="replace").splitlines()]
    return {line[2]: line[1] for line in lines} if all(lines) else {}


def _is_hidden(name: str) -> bool:
    """Return whether the system, and not Orbax, has put a file there."""
    return name.rpartition("/")[2].startswith(".")


def check_files(folder: pathlib.Path) -> None:
    """Refuse a folder of this machine that holds something other than files and folders.

    Only its top level is checked.

    Raises:
      NotAFile: half a sentence names it.
    """
    for path in sorted(folder.iterdir()):
        _check(path, f"{folder.name}/{path.name}")


def _check(path: pathlib.Path, name: str) -> bool:
    """Return whether a path of this machine is a folder; raise NotAFile if it is no file either.

    Messages call it `name`.
    """
    status = os.lstat(path)
    if stat.S_ISDIR(status.st_mode):
        return True
    try:
        check_is_file(status)
    except NotAFile as error:
        raise NotAFile(f"its {visible(name)} is {error}, and a file is expected") from None
    return False


def _files(folder: pathlib.Path, within: str = "") -> Iterator[tuple[str, pathlib.Path]]:
    """Yield (name, path) of the files in `folder` and below, names from there on."""
    # Not `rglob`: folders in a cloud's storage have none.
    for path in sorted(folder.iterdir()):
        name = within + path.name
        if path.is_dir() if is_remote(path) else _check(path, f"{folder.name}/{path.name}"):
            yield from _files(path, f"{name}/")
        else:
            yield name, path
