"""Writing a whole file or nothing, and saying in a sentence why it could not be written.

What a reader finds under a name is never half of it. Checkpoints do not go through here: Orbax has its own ways.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from ddpm_jax.errors import FailureError


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Writes `data` to `path`, creating parent folders; a kill or a full disk leaves what was there before.

    Raises:
      OSError: the file cannot be written; `path` is then untouched.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def reporting(path: str | os.PathLike, doing: str = "write") -> Iterator[None]:
    """Its body works on `path`; an operating system's refusal becomes the sentence that the user reads.

    Raises:
      FailureError: the disk is full, or `path` cannot be read or written. `doing` says what was tried.
    """
    try:
        yield
    except OSError as error:
        raise FailureError(
            f"Cannot {doing} {path}: {error.strerror or error}. What is already there stays: make room or make the "
            "directory writable, then start the same command again to resume."
        ) from error
