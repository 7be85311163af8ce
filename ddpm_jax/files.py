"""Files on disk and in buckets: paths, atomic writes, and errors as sentences.

Local paths are `pathlib.Path`, paths that begin with gs:// are `epath.Path`, which has the same
methods. They differ only where an object store cannot do what a disk does: it has no folders, and
neither appends nor renames. A reader never finds a partial file: on disk because of a rename, in a
bucket because an object appears only when it is complete. Checkpoints are written by Orbax instead.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import importlib.util
import logging
import os
import pathlib
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from ddpm_jax.errors import FailureError, UsageError, visible

BUCKET = "gs://"
_PARALLEL_DOWNLOADS = 8  # objects downloaded at the same time
_HTTP_LIBRARIES = ("aiohttp", "requests")  # their errors mean that a bucket does not answer
# libraries whose errors come from a bucket
_CLIENTS = (*_HTTP_LIBRARIES, "fsspec", "gcsfs", "google")


class NotAFile(OSError):
    """Something other than a file is found; the message names it: "a named pipe"."""


def as_path(name: str | os.PathLike) -> pathlib.Path | Any:
    """Return a path on this machine or in a bucket of Google Cloud Storage.

    Raises:
      UsageError: it is no path, another kind of URL, names no bucket, or gcsfs is not installed.
    """
    if not isinstance(name, str | os.PathLike):
        raise UsageError(f"{name!r} is no path: give the name of a file or a directory, a text.")
    text = os.fspath(name)
    scheme, separator, rest = text.partition("://")
    if not separator:
        # pathlib turns two slashes into one: a URL passed through it names a folder called "gs:".
        return pathlib.Path(name)
    if scheme != "gs":
        raise UsageError(
            f"{text} is no place that can be read or written: name a directory, or "
            f"{BUCKET}BUCKET/DIR."
        )
    if not rest.strip("/"):
        raise UsageError(f"{text} names no bucket: {BUCKET}BUCKET/DIR is expected.")
    return _bucket_paths()(text)


def is_remote(path: str | os.PathLike) -> bool:
    """Return whether `path` is in a bucket."""
    return os.fspath(path).startswith(BUCKET)


def check_length(path: str) -> None:
    """Refuse a path that is too long for every file system.

    Raises:
      ValueError: it, or a name in it, is too long; the message lacks its subject.
    """
    if is_remote(path):
        return
    longest = max(len(os.fsencode(part)) for part in path.split("/"))
    # less the terminating byte
    most_of_a_name, most = os.pathconf("/", "PC_NAME_MAX"), os.pathconf("/", "PC_PATH_MAX") - 1
    if longest > most_of_a_name:
        size, allowed = f"a name in it has {longest}", most_of_a_name
    elif len(os.fsencode(path)) > most:
        size, allowed = f"it has {len(os.fsencode(path))}", most
    else:
        return
    raise ValueError(f"{size} bytes, and the system allows {allowed}: choose a shorter one")


def is_folder(path: Any) -> bool:
    """Return whether `path` is a folder; in a bucket, whether any object is below it.

    A bucket that does not answer raises the error of its client, where `is_dir` returns False.
    """
    return path.exists() if is_remote(path) else path.is_dir()


def absolute(path: Any) -> Any:
    """Return the absolute path; a path in a bucket unchanged."""
    return path if is_remote(path) else path.absolute()


@functools.cache
def _bucket_paths() -> Any:
    if importlib.util.find_spec("gcsfs") is None:
        raise UsageError(
            f"{BUCKET} needs the package gcsfs: install it with pip install -e '.[gcs]'."
        )
    # The library that reads a bucket must not depend on whether TensorFlow is installed.
    os.environ.setdefault("EPATH_USE_TF", "false")
    # Otherwise gcsfs asks another service, with permissions of its own, for the kind of the bucket.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec
    from etils import epath

    # it logs the traceback of every error that it raises
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    # Its cache of a folder misses what other processes write there.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path


def user_cache() -> pathlib.Path | None:
    """Return the user's directory for what can be made again, perhaps not there yet.

    It is $DDPM_JAX_CACHE, or ddpm_jax in $XDG_CACHE_HOME or ~/.cache; None where that is no
    absolute path: there is no home.
    """
    own = os.environ.get("DDPM_JAX_CACHE")
    around = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    place = pathlib.Path(own) if own else pathlib.Path(around) / "ddpm_jax"
    return place if place.is_absolute() else None


def open_file(path: str | os.PathLike) -> BinaryIO:
    """Open a file to read its bytes.

    A pipe or a device, which may have no end, is not opened.

    Raises:
      NotAFile: it is neither a regular file nor a link to one.
      OSError: as `open`; for a bucket also the errors of its client.
    """
    path = as_path(path)
    if is_remote(path):
        return path.open("rb")
    check_is_file(os.stat(path))
    # It may have been replaced by now, and opening a pipe waits for a writer unless O_NONBLOCK is
    # set.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        check_is_file(os.fstat(descriptor))
    except NotAFile:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def check_is_file(status: os.stat_result) -> None:
    """Refuse the status of anything other than a regular file.

    The status is that of `os.stat` or, to refuse links too, `os.lstat`.

    Raises:
      NotAFile: naming what it is.
    """
    kinds = (
        (stat.S_ISLNK, "a link"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    if not stat.S_ISREG(status.st_mode):
        raise NotAFile(
            next((what for is_kind, what in kinds if is_kind(status.st_mode)), "something else")
        )


def read_file(path: str | os.PathLike, *, largest: int | None = None) -> bytes:
    """Return the bytes of a file, at most `largest` of them; raise as `open_file`."""
    with open_file(path) as file:
        return file.read(-1 if largest is None else largest)


def file_sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits; raise as `open_file`."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` to `path`, creating parent folders.

    A kill or a full disk leaves the previous content.

    Raises:
      OSError: the file cannot be written; `path` is then unchanged. For a bucket also the errors of
        its client.
    """
    path = as_path(path)
    if is_remote(path):
        path.write_bytes(data)
        return
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


def copy_folder(source: str | os.PathLike, target: Any) -> None:
    """Copy all files of a local folder below `target`."""
    source = pathlib.Path(source)
    for path in sorted(source.rglob("*")):
        if path.is_file():
            write_atomically(target / path.relative_to(source).as_posix(), path.read_bytes())


def local_copy(folder: Any) -> pathlib.Path:
    """Copy a folder of a bucket into the local directory for temporary files (TMPDIR).

    An existing copy of the same objects is reused. Several processes may copy at the same time.
    """
    import fsspec

    store, name = fsspec.url_to_fs(str(folder))
    return _copied(store, folder, name, store.find(name, detail=True))


def local_copy_of_files(path: Any, prefix: str) -> pathlib.Path:
    """Copy some files in the folder of `path`, which is in a bucket, as `local_copy` does.

    Args:
      path: a file, or what the names of several have in common.
      prefix: of the names of these files.

    Returns:
      the place of `path` among the copies.

    Raises:
      FileNotFoundError: there are none.
    """
    import fsspec

    folder = path.parent
    store, name = fsspec.url_to_fs(str(folder))
    objects = {
        info["name"]: info
        for info in store.ls(name, detail=True)
        if info["type"] == "file" and info["name"].rpartition("/")[2].startswith(prefix)
    }
    if not objects:
        raise FileNotFoundError("there is no such object")
    return _copied(store, folder, name, objects) / path.name


def _copied(store: Any, folder: Any, name: str, objects: dict[str, Any]) -> pathlib.Path:
    """Copy objects below a folder, which the store calls `name`; return that of the copies.

    Raises:
      FailureError: the name of an object leads out of the folder.
    """
    for path in objects:
        if ".." in path.split("/"):
            raise FailureError(
                f"{folder} has an object named {visible(path)}, which leads out of it: rename it."
            )
    listing = repr(
        [
            str(folder),
            *((path, info["size"], info.get("etag")) for path, info in sorted(objects.items())),
        ]
    )
    digest = hashlib.sha256(listing.encode()).hexdigest()[:16]
    # The last parts of the path are kept: some readers identify the content by them.
    copies = pathlib.Path(tempfile.gettempdir()) / f"ddpm_jax-{os.getuid()}"
    target = copies / digest / pathlib.Path(name).relative_to(pathlib.Path(name).parts[0])
    if target.is_dir():
        return target
    copies.mkdir(parents=True, exist_ok=True)
    half = pathlib.Path(tempfile.mkdtemp(dir=copies))
    try:

        def fetch(path: str) -> None:
            there = half / path.removeprefix(name).lstrip("/")
            there.parent.mkdir(parents=True, exist_ok=True)
            store.get_file(path, str(there))

        with concurrent.futures.ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
            list(pool.map(fetch, objects))
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # another process was first
            half.rename(target)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return target


def move_folder(source: Any, target: Any) -> None:
    """Rename a folder; in a bucket, copy its objects and then remove them.

    A kill in between loses nothing.
    """
    if not is_remote(source):
        source.rename(target)
        return
    import fsspec

    store, name = fsspec.url_to_fs(str(source))
    for path in store.find(name):
        store.cp_file(path, str(target).removeprefix(BUCKET) + path.removeprefix(name))
    store.rm(name, recursive=True)


@contextlib.contextmanager
def reporting(path: str | os.PathLike, doing: str = "write") -> Iterator[None]:
    """Turn errors of the operating system or a bucket about `path` into one sentence.

    Raises:
      FailureError: the disk is full, or `path` cannot be read or written; `doing` is the verb of
        the message.
    """
    try:
        yield
    except NotAFile as error:
        raise FailureError(
            f"{path} is {error}, and a file is expected: move it away, or name another."
        ) from error
    except Exception as error:
        if is_remote(path) and is_refusal(error):
            raise FailureError(
                f"Cannot {doing} {path}: {error_reason(error, path)}. What is already there stays: "
                "put that right, then start the same command again to resume."
            ) from error
        if not isinstance(error, OSError):
            raise
        raise FailureError(
            f"Cannot {doing} {path}: {error.strerror or error}. What is already there stays: make "
            "room or make the directory writable, then start the same command again to resume."
        ) from error


def is_refusal(error: Exception) -> bool:
    """Return whether an error comes from the operating system or a bucket, not from a bug."""
    return isinstance(error, OSError) or is_bucket_error(error)


def is_bucket_error(error: Exception) -> bool:
    """Return whether a client library of buckets raised this error."""
    return type(error).__module__.split(".")[0] in _CLIENTS


def error_reason(error: Exception, path: str | os.PathLike) -> str:
    """Return the reason of an error in a few words.

    They are those of the operating system, an explanation of a bucket's answer, or the message's
    first line.

    Args:
      error: raised by an operation on `path`.
      path: on this machine or in a bucket.
    """
    # tensorstore's format
    number = getattr(error, "errno", None) or re.search(r"os_error_code='(\d+)'", str(error))
    if number and not type(error).__module__.startswith(_HTTP_LIBRARIES):
        return os.strerror(number if isinstance(number, int) else int(number[1]))
    text, code = str(error).strip(), getattr(error, "code", None)
    first_line = text.split("\n")[0]
    if not is_remote(path):
        return first_line.rstrip(".")
    if isinstance(error, FileNotFoundError):
        return "there is no such bucket or object"
    # not a number in a file name
    if code == 401 or re.search(r"(?<![\w/.-])401(?![\w/-])", first_line):
        return (
            "Google Cloud does not know who asks: log in with gcloud auth application-default login"
        )
    if code == 403 or text.startswith("Forbidden") or " 403 " in f" {text} ":
        return (
            "Google Cloud forbids it: the account that asks needs the role Storage Object User on "
            "the bucket"
        )
    if _is_timeout(error):
        said = text or type(error).__name__
        return f"Google Cloud Storage does not answer ({said}): look at the network and its proxy"
    return first_line.rstrip(".")


def _is_timeout(error: Exception) -> bool:
    """Return whether a bucket has not answered.

    asyncio's own error is a TimeoutError without details.
    """
    return type(error).__module__.startswith(_HTTP_LIBRARIES) or isinstance(error, TimeoutError)


def check_place(path: Any, *, flag: str, writing: bool = False) -> None:
    """Check access to a bucket before anything expensive begins; disks are not checked.

    Raises:
      UsageError: there is no such bucket, or it cannot be listed or, with `writing`, written.
      FailureError: it does not answer within about half a minute.
    """
    if not is_remote(path):
        return
    bucket = as_path(BUCKET + str(path).removeprefix(BUCKET).split("/")[0])
    doing = "read"
    try:
        if not _exists(path) and not bucket.is_dir():
            raise UsageError(
                f"{flag}: there is no bucket {bucket}: make it with gcloud storage buckets create "
                f"{bucket}."
            )
        if writing:
            doing = "written"
            # Next to it, not in it: otherwise another process would briefly see a folder there.
            name = f".write-test-{secrets.token_hex(4)}"
            probe = path / name if path == bucket else path.with_name(path.name + name)
            probe.write_bytes(b"")
            probe.unlink()
    except Exception as error:
        if not is_refusal(error):
            raise
        sentence = f"{flag}: {path} cannot be {doing}: {error_reason(error, path)}."
        raise (FailureError if _is_timeout(error) else UsageError)(sentence) from error


def _exists(path: Any) -> bool:
    try:
        return next(path.iterdir(), None) is not None
    except FileNotFoundError:
        return False
