"""Where a command keeps its compiled programs, so that the next one need not compile them.

JAX writes and reads the entries. The user's own directory for them (`own_directory`) is used
unasked, so it must never be in the way: `tidy` keeps it small and free of what a killed process
left half written, and whatever cannot be read or written there is compiled as if it were not there.
"""

import contextlib
import hashlib
import importlib.util
import os
import pathlib
import platform
import stat
import zlib
from collections.abc import Callable

import jaxlib

from ddpm_jax.files import user_cache

LIMIT = 2**31  # bytes; a training step of the largest networks takes some MB
_ENTRY = "*-cache"  # as JAX names them
_CHECKED = "checked"  # an empty file: older entries have been read
_ZSTANDARD = b"\x28\xb5\x2f\xfd"  # the first bytes of its frames (RFC 8878, 3.1.1)


def own_directory() -> pathlib.Path | None:
    """Return the user's directory of programs for this processor and this JAX, made if need be.

    None where there is none: no home, a disk that cannot be written, or a directory that others
    may write to, whose programs JAX would run.
    """
    root = user_cache()
    if root is None:
        return None
    directory = root / "compiled" / _machine()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError:
        return None
    others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    mine = status.st_uid == os.getuid() and not others_write and os.access(directory, os.W_OK)
    return directory if mine else None


def _machine() -> str:
    """Return a name of what programs are compiled for: a home may be shared by many machines."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = {line for line in file if line.startswith(("flags", "Features", "model name"))}
    except OSError:
        lines = {platform.processor()}
    described = [platform.machine(), jaxlib.__version__, *sorted(lines)]
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:16]


def tidy(directory: pathlib.Path, *, limit: int = LIMIT) -> None:
    """Remove damaged entries, and those used longest ago until `limit` bytes are left.

    Only entries since the last time are read. Other processes may write and read meanwhile: one
    whose entry vanishes compiles the program again.
    """
    with contextlib.suppress(OSError):
        mark = directory / _CHECKED
        checked = mark.stat().st_mtime_ns if mark.exists() else 0
        mark.touch()
        sizes, total = [], 0
        for entry in directory.glob(_ENTRY):
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat()
                # one just written may be unfinished: with the mark's own time it is read next time
                if status.st_mtime_ns >= checked and _is_damaged(entry.read_bytes()):
                    entry.unlink()
                else:
                    used = max(status.st_atime_ns, status.st_mtime_ns)
                    sizes.append((used, status.st_size, entry))
                    total += status.st_size
        for _, size, entry in sorted(sizes):
            if total <= limit:
                break
            entry.unlink(missing_ok=True)
            total -= size


def _is_damaged(data: bytes) -> bool:
    """Return whether an entry cannot be unpacked; False where what packed it is not at hand."""
    unpack = _unpacker(data)
    if unpack is None:
        return False
    try:
        unpack(data)
    except Exception:  # each library has its own
        return True
    return False


def _unpacker(data: bytes) -> Callable[[bytes], bytes] | None:
    if not data.startswith(_ZSTANDARD):
        return zlib.decompress
    if importlib.util.find_spec("compression") is not None:
        from compression import zstd

        return zstd.decompress
    if importlib.util.find_spec("zstandard") is not None:
        import zstandard

        return zstandard.ZstdDecompressor().decompress
    return None
