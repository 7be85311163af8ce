"""Files here and in a bucket: naming them, writing a whole one or nothing, saying in a sentence why
that failed.

Names of this machine are `pathlib.Path`, names that begin with gs:// are `epath.Path`, which has
the same methods. Only where a store of objects cannot do what a disk does need they be told apart:
it has no folders, and neither appends nor renames. What a reader finds under a name is never half
of it: here by a rename, there because an object appears when all of it has arrived. Checkpoints do
not go through here: Orbax has its own ways.
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

from ddpm_jax.errors import FailureError, UsageError

BUCKET = "gs://"
_AT_A_TIME = 8  # objects fetched at once
_WAYS = ("aiohttp", "requests")  # whose errors say that a bucket does not answer
# whose errors, beside those of the system, are a bucket's
_CLIENTS = (*_WAYS, "fsspec", "gcsfs", "google")


class NotAFile(OSError):
    """Where a file is expected there is something else. The message names it: "a named pipe"."""


def as_path(name: str | os.PathLike) -> pathlib.Path | Any:
    """Return a path that can be read and written: of this machine, or in a bucket of Google Cloud
    Storage.

    Raises:
      UsageError: another kind of address, no bucket in it, or gcsfs is not installed.
    """
    text = os.fspath(name)
    scheme, separator, rest = text.partition("://")
    if not separator:
        # pathlib makes one slash of two; what went through it by mistake would be a folder called
        # "gs:".
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
    """Whether `path` lies in a bucket."""
    return os.fspath(path).startswith(BUCKET)


def check_length(path: str) -> None:
    """Refuse a path that no file system takes.

    Raises:
      ValueError: it, or a name in it, is too long; the message lacks its subject.
    """
    if is_remote(path):
        return
    longest = max(len(os.fsencode(part)) for part in path.split("/"))
    # a byte ends a path
    most_of_a_name, most = os.pathconf("/", "PC_NAME_MAX"), os.pathconf("/", "PC_PATH_MAX") - 1
    if longest > most_of_a_name:
        size, allowed = f"a name in it has {longest}", most_of_a_name
    elif len(os.fsencode(path)) > most:
        size, allowed = f"it has {len(os.fsencode(path))}", most
    else:
        return
    raise ValueError(f"{size} bytes, and the system allows {allowed}: choose a shorter one")


def is_folder(path: Any) -> bool:
    """Whether there is a folder `path`; in a bucket, anything below that name.

    A bucket that does not answer raises its client's error, where `is_dir` would say no.
    """
    return path.exists() if is_remote(path) else path.is_dir()


def absolute(path: Any) -> Any:
    """The path from the root of this machine; of one in a bucket, itself."""
    return path if is_remote(path) else path.absolute()


@functools.cache
def _bucket_paths() -> Any:
    if importlib.util.find_spec("gcsfs") is None:
        raise UsageError(
            f"{BUCKET} needs the package gcsfs: install it with pip install -e '.[gcs]'."
        )
    # Which library reads a bucket must not depend on whether TensorFlow is there too.
    os.environ.setdefault("EPATH_USE_TF", "false")
    # Otherwise gcsfs asks for the kind of the bucket, on another service that needs rights of its
    # own.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec
    from etils import epath

    # it prints the traceback of every error that it raises
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    # What it remembers of a folder does not notice what other processes write there.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path


def open_file(path: str | os.PathLike) -> BinaryIO:
    """Open a file to read its bytes. A pipe or a device, which may have no end, is not opened at
    all.

    Raises:
      NotAFile: it is no regular file, nor a link to one.
      OSError: as `open`; of a bucket also what its client raises.
    """
    path = as_path(path)
    if is_remote(path):
        return path.open("rb")
    check_is_file(os.stat(path))
    # Something else may stand there by now, and opening a pipe waits for a writer unless it may
    # not.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        check_is_file(os.fstat(descriptor))
    except NotAFile:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def check_is_file(status: os.stat_result) -> None:
    """Refuse what `os.stat` or, for links to be refused too, `os.lstat` says of something else
    than a regular file.

    Raises:
      NotAFile: see there.
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
    """The bytes of a file, or no more than `largest` of them; raises as `open_file`."""
    with open_file(path) as file:
        return file.read(-1 if largest is None else largest)


def sha256_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits; raises as `open_file`."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` to `path`, creating parent folders; a kill or a full disk leaves what was there
    before.

    Raises:
      OSError: the file cannot be written; `path` is then untouched. In a bucket, also what its
        client raises.
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
    """Copy all files of a folder of this machine below `target`."""
    source = pathlib.Path(source)
    for path in sorted(source.rglob("*")):
        if path.is_file():
            write_atomically(target / path.relative_to(source).as_posix(), path.read_bytes())


def local_copy(folder: Any) -> pathlib.Path:
    """Copy a folder of a bucket, with what is in it, to this machine's directory for temporary
    files (TMPDIR).

    A copy that is there already, of the same objects, is taken. Processes that copy at once all
    succeed.
    """
    import fsspec

    store, name = fsspec.url_to_fs(str(folder))
    objects = store.find(name, detail=True)
    listing = repr(
        [
            str(folder),
            *((path, info["size"], info.get("etag")) for path, info in sorted(objects.items())),
        ]
    )
    digest = hashlib.sha256(listing.encode()).hexdigest()[:16]
    # The last parts of the name: some readers learn from them what is in the folder.
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

        with concurrent.futures.ThreadPoolExecutor(_AT_A_TIME) as pool:
            list(pool.map(fetch, objects))
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # another process was first
            half.rename(target)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return target


def move_folder(source: Any, target: Any) -> None:
    """Rename a folder; in a bucket, copies its objects there and then removes them, so that a kill
    loses none."""
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
    """Its body works on `path`; the refusal of the operating system or a bucket becomes the
    sentence the user reads.

    Raises:
      FailureError: the disk is full, or `path` cannot be read or written. `doing` says what was
        tried.
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
                f"Cannot {doing} {path}: {reason_of(error, path)}. What is already there stays: "
                "put that right, then start the same command again to resume."
            ) from error
        if not isinstance(error, OSError):
            raise
        raise FailureError(
            f"Cannot {doing} {path}: {error.strerror or error}. What is already there stays: make "
            "room or make the directory writable, then start the same command again to resume."
        ) from error


def is_refusal(error: Exception) -> bool:
    """Whether the operating system, a bucket or the way to it refused, as opposed to a mistake of
    this program."""
    return isinstance(error, OSError) or is_of_a_bucket(error)


def is_of_a_bucket(error: Exception) -> bool:
    """Whether a client of buckets raised this, of whatever name."""
    return type(error).__module__.split(".")[0] in _CLIENTS


def reason_of(error: Exception, path: str | os.PathLike) -> str:
    """Why, in a few words: those of the operating system, what a bucket's answer means, or the
    first of the message.

    Args:
      error: raised by what was done to `path`.
      path: of this machine or in a bucket.
    """
    # so tensorstore has it
    number = getattr(error, "errno", None) or re.search(r"os_error_code='(\d+)'", str(error))
    if number and not type(error).__module__.startswith(_WAYS):
        return os.strerror(number if isinstance(number, int) else int(number[1]))
    text, code = str(error).strip(), getattr(error, "code", None)
    first_line = text.split("\n")[0]
    if not is_remote(path):
        return first_line.rstrip(".")
    if isinstance(error, FileNotFoundError):
        return "there is no such bucket or object"
    # and not a step in a name
    if code == 401 or re.search(r"(?<![\w/.-])401(?![\w/-])", first_line):
        return (
            "Google Cloud does not know who asks: log in with gcloud auth application-default login"
        )
    if code == 403 or text.startswith("Forbidden") or " 403 " in f" {text} ":
        return "Google Cloud forbids it: the account that asks needs the role Storage Object User on the bucket"
    if _is_silence(error):
        said = text or type(error).__name__
        return f"Google Cloud Storage does not answer ({said}): look at the network and its proxy"
    return first_line.rstrip(".")


def _is_silence(error: Exception) -> bool:
    """Whether a bucket has not answered; asyncio's own error says no more than that time is up."""
    return type(error).__module__.startswith(_WAYS) or isinstance(error, TimeoutError)


def check_place(path: Any, *, flag: str, writing: bool = False) -> None:
    """Ask a bucket for what will be asked of it later, before anything expensive begins. Disks are
    not asked.

    Raises:
      UsageError: there is no such bucket, or it may not be listed; with `writing`, or not be
        written.
      FailureError: it does not answer, which is known after about half a minute.
    """
    if not is_remote(path):
        return
    bucket = as_path(BUCKET + str(path).removeprefix(BUCKET).split("/")[0])
    doing = "read"
    try:
        if not _listed(path) and not bucket.is_dir():
            raise UsageError(
                f"{flag}: there is no bucket {bucket}: make it with gcloud storage buckets create "
                f"{bucket}."
            )
        if writing:
            doing = "written"
            # Beside it: in it, another process would take it for a folder that is there, and then
            # is not.
            name = f".write-test-{secrets.token_hex(4)}"
            probe = path / name if path == bucket else path.with_name(path.name + name)
            probe.write_bytes(b"")
            probe.unlink()
    except Exception as error:
        if not is_refusal(error):
            raise
        sentence = f"{flag}: {path} cannot be {doing}: {reason_of(error, path)}."
        raise (FailureError if _is_silence(error) else UsageError)(sentence) from error


def _listed(path: Any) -> bool:
    try:
        return next(path.iterdir(), None) is not None
    except FileNotFoundError:
        return False
