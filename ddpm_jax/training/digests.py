"""Digests of the files of a folder, kept in it: what is read later can be told from what was written.

Run in the folder, `sha256sum --check SHA256SUMS` understands it. What the files are is not known here.
"""

import concurrent.futures
import hashlib
import pathlib
from collections.abc import Iterator

from ddpm_jax.files import is_remote

SUMS = "SHA256SUMS"
_AT_A_TIME = 4  # files read at once: hashing keeps a core busy, and a network has more to give than one stream takes


def write(folder: pathlib.Path) -> None:
    """Writes the digests of all files in `folder` and below into `folder`/SHA256SUMS."""
    lines = [f"{_digest(path)}  {name}\n" for name, path in _files(folder)]
    (folder / SUMS).write_text("".join(lines))


def damage(folder: pathlib.Path) -> str | None:
    """Returns what is no longer as it was when the digests were written, as half a sentence, or None.

    Files that came later are not looked at. Without digests nothing is known of files on a disk, so nothing is wrong;
    in a bucket there has never been a checkpoint without.

    Raises:
      PermissionError: a file on a disk may not be read.
      Exception: a bucket does not answer, or refuses.
    """
    if not (folder / SUMS).exists():
        return f"its file {folder.name}/{SUMS} is missing" if is_remote(folder) else None
    try:
        expected = [line.split("  ", 1) for line in (folder / SUMS).read_text().splitlines()]
        with concurrent.futures.ThreadPoolExecutor(_AT_A_TIME) as pool:
            found = pool.map(lambda entry: _digest_if_there(folder / entry[1]), expected)
            for (digest, name), is_now in zip(expected, found, strict=True):
                if is_now is None:
                    return f"its file {folder.name}/{name} is missing"
                if is_now != digest:
                    return f"its file {folder.name}/{name} is not what was written"
    except (ValueError, IndexError):
        return f"its file {folder.name}/{SUMS} is not what was written"
    except PermissionError:
        raise
    except OSError as error:
        if is_remote(folder):
            raise
        return f"a file in its {folder.name} cannot be read: {error.strerror or error}"
    return None


def _files(folder: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
    # Not `rglob`: folders in a cloud's storage have none.
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from ((f"{path.name}/{name}", file) for name, file in _files(path))
        else:
            yield path.name, path


def _digest_if_there(path: pathlib.Path) -> str | None:
    try:
        return _digest(path)
    except FileNotFoundError:
        return None


def _digest(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
