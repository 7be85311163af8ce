"""One writer at a time: the lock that a command holds on the directory it writes to.

On a disk it is a lock of the operating system (flock) on the file `.lock`: it ends with its
process, however that ends, and a file that a killed process leaves behind locks nothing. Network
file systems pass it on to their server; on one without locks a warning is printed.

A bucket has no such locks. There the owner creates the object `.lock`, which succeeds for one
process only, and rewrites it every `BEAT_SECONDS`. Another process waits: if the object is
rewritten, its owner is alive; after `STALE_SECONDS` without that, or immediately if the owner was a
process of this machine that has ended, it removes the object, provided it is still the same
version. `check` tells an owner that was silent for longer whether it has been replaced.
"""

import contextlib
import datetime
import errno
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from ddpm_jax.errors import FailureError, UsageError, say
from ddpm_jax.files import as_path, is_refusal, is_remote, reporting
from ddpm_jax.schema import Malformed, Table, Text, Whole, parse

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing is guarded there
    fcntl = None

LOCK = ".lock"
# between two heartbeats in a bucket, which allows one write per second to an object
BEAT_SECONDS = 15.0
STALE_SECONDS = 60.0  # without a heartbeat, after which the owner counts as gone
_OWNER = Table({"pid": Whole(1, 2**31 - 1)}, others=Text())
# from file systems without locks
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Lock:
    """A lock that is held."""

    def check(self) -> None:
        """Return if this process still owns the directory; on a disk it always does.

        Raises:
          FailureError: another process has taken it over.
        """


@contextlib.contextmanager
def hold(directory: str | os.PathLike, doing: str, *, name: str = LOCK) -> Iterator[Lock]:
    """Hold the lock on a directory while the body runs.

    Nothing is left behind that the body has not created.

    Args:
      directory: on a disk or in a bucket; created if necessary.
      doing: shown to other processes: "training in it".
      name: of the lock, if only a part of the directory is locked.

    Raises:
      UsageError: `directory` is a file.
      FailureError: another process holds the lock (the message names it), or the directory cannot
        be written.
    """
    directory = as_path(directory)
    take = _in_a_bucket if is_remote(directory) else _on_a_disk
    with take(directory, name, _Owner.of_this_process(doing)) as lock:
        yield lock


class _Owner(NamedTuple):
    """The holder of a lock, as stored in the lock itself."""

    host: str
    pid: int
    since: str  # local time, with its zone
    doing: str
    machine: str  # where `pid` is unique; "" if unknown
    token: str  # unique to one acquisition

    @classmethod
    def of_this_process(cls, doing: str) -> "_Owner":
        since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        return cls(
            socket.gethostname(), os.getpid(), since, doing, _machine(), secrets.token_hex(8)
        )

    @classmethod
    def read(cls, data: bytes) -> "_Owner | None":
        """Parse an owner; None if the data is incomplete or not a lock's."""
        try:
            return cls(**parse(data, _OWNER))
        except (Malformed, TypeError):
            return None

    def data(self) -> bytes:
        return (json.dumps(self._asdict()) + "\n").encode()

    def is_gone(self) -> bool:
        """Return whether it was a process of this machine that has ended; False if unknown."""
        if not self.machine or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False


def _machine() -> str:
    """Return an identifier of the scope of process numbers: the boot and the container."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _held(directory: Any, owner: _Owner | None) -> FailureError:
    who = f"process {owner.pid} on {owner.host}" if owner else "another process"
    what = f"has been {owner.doing} since {owner.since}" if owner else "is writing into it"
    return FailureError(
        f"{directory} is in use: {who} {what}. Wait until it ends, or stop it, or name another "
        "directory."
    )


@contextlib.contextmanager
def _on_a_disk(directory: pathlib.Path, name: str, owner: _Owner) -> Iterator[Lock]:
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file: name a directory.")
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        with reporting(directory):
            directory.mkdir(parents=True, exist_ok=True)
            file = None if fcntl is None else _locked(directory / name, directory)
        try:
            if file is not None:
                # the lock holds without the owner's data, say on a full disk
                with contextlib.suppress(OSError):
                    file.truncate(0)
                    file.write(owner.data())
                    file.flush()
            yield Lock()
        finally:
            if file is not None:
                with contextlib.suppress(OSError):
                    if _is_at(file, directory / name):
                        # while still locked: `_locked` notices that it is gone
                        (directory / name).unlink()
                file.close()
    finally:
        with contextlib.suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


def _locked(path: pathlib.Path, directory: pathlib.Path) -> Any:
    """Return the file `path`, open and locked; None on a file system without locks."""
    while True:
        file = open(path, "a+b")  # noqa: SIM115  it stays open as long as it is locked
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            with file:
                if isinstance(error, BlockingIOError) or error.errno == errno.EACCES:
                    file.seek(0)
                    raise _held(directory, _Owner.read(file.read(4096))) from error
                if error.errno not in _NO_LOCKS:
                    raise
                say(
                    f"warning: the file system of {directory} knows no locks ({error.strerror}), "
                    "so a second process that writes there would go unnoticed.",
                    file=sys.stderr,
                )
                return None
        if _is_at(file, path):
            return file
        file.close()  # its owner has removed it since we opened it


def _is_at(file: Any, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _in_a_bucket(directory: Any, name: str, owner: _Owner) -> Iterator[Lock]:
    lock = _ObjectLock(directory, name, owner)
    with reporting(directory):
        lock.take()
    try:
        yield lock
    finally:
        lock.release()


class _ObjectLock(Lock):
    """An object that one process has created and rewrites from a thread of its own."""

    def __init__(self, directory: Any, name: str, owner: _Owner):
        import fsspec

        self._directory, self._owner = directory, owner
        self._store, self._name = fsspec.url_to_fs(str(directory / name))
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def take(self) -> None:
        """Create the object, unless a living process owns it.

        Raises:
          FailureError: one does.
        """
        while not self._make():
            generation, other = self._read()
            if other == self._owner:
                break  # the answer to the first request was lost, and it was sent again
            if generation is not None and (other is None or not other.is_gone()):
                self._await_silence(generation, other)
            if generation is not None:
                self._remove(generation)
        self._thread.start()

    def check(self) -> None:
        try:
            mine, other = self._is_mine()
        except Exception as error:
            if not is_refusal(error):
                raise
            return  # the next write will report that the bucket does not answer
        if not mine:
            raise FailureError(
                f"{self._directory} was taken over by "
                f"{f'process {other.pid} on {other.host}' if other else 'another'} while this "
                f"process gave no sign of life for {STALE_SECONDS:.0f} s, so this one stops and "
                "writes no more."
            )

    def release(self) -> None:
        self._end.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # then it becomes stale
            generation, other = self._read()
            if other == self._owner:
                self._remove(generation)

    def _make(self) -> bool:
        """Return whether the object did not exist and is now ours."""
        try:
            self._store.pipe_file(self._name, self._owner.data(), mode="create")
        except FileExistsError:
            return False
        return True

    def _read(self) -> tuple[str | None, _Owner | None]:
        """Return version and owner of the object; None and None if there is none."""
        try:
            generation = self._store.info(self._name)["generation"]
            return generation, _Owner.read(self._store.cat_file(self._name))
        except FileNotFoundError:
            return None, None

    def _await_silence(self, generation: str, other: _Owner | None) -> None:
        """Wait until the object is gone or has not been written for `STALE_SECONDS`.

        The owner is reported meanwhile.

        Raises:
          FailureError: it has been written: its owner is alive.
        """
        who = f"process {other.pid} on {other.host}" if other else "another process"
        say(
            f"{self._directory}: looking for up to {STALE_SECONDS:.0f} s whether {who}, which has "
            "its lock, still lives.",
            file=sys.stderr,
        )
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(min(1.0, BEAT_SECONDS))
            now, other = self._read()
            if now is None:
                return
            if now != generation:
                raise _held(self._directory, other)

    def _remove(self, generation: str) -> None:
        """Remove the object if it still has this version."""
        bucket, _, key = self._name.partition("/")
        # FileExistsError is the answer to a condition that does not hold.
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            self._store.call("DELETE", "b/{}/o/{}", bucket, key, ifGenerationMatch=generation)

    def _is_mine(self) -> tuple[bool, _Owner | None]:
        """Return whether the object is this process's, and its owner; create it if removed."""
        generation, other = self._read()
        if generation is None and self._make():
            return True, self._owner
        return other == self._owner, other

    def _beat(self) -> None:
        while not self._end.wait(BEAT_SECONDS):
            with contextlib.suppress(Exception):  # the bucket may answer next time
                if not self._is_mine()[0]:
                    return
                self._store.pipe_file(self._name, self._owner.data())
