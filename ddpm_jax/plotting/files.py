"""Writing a whole file or nothing: what a reader finds under a name is never half of it.

The pictures of this folder and the metric records of `training` go through here; checkpoints do not, Orbax has its own.
"""

import os
import pathlib


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
