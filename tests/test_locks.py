"""One writer at a time in a directory on a disk; for buckets see tests/storage/test_locks.py."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from ddpm_jax import locks
from ddpm_jax.errors import FailureError, UsageError

HOLD = """
import sys, time
from ddpm_jax.locks import hold
with hold(sys.argv[1], "training in it"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """(process, directory) of another process that holds the lock on a directory."""
    directory = tmp_path / "runs" / "a"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process, directory
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_and_reads_who_is_there(holder):
    process, directory = holder
    words = (
        rf"a is in use: process {process.pid} on \S+ has been training in it since 20\d\d-.* or "
        r"name another"
    )
    with pytest.raises(FailureError, match=words), locks.hold(directory, "training in it"):
        pass
    assert process.poll() is None


def test_a_killed_process_leaves_no_lock(holder):
    process, directory = holder
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (directory / locks.LOCK).exists(), "the file is left, which locks nothing"
    with locks.hold(directory, "sampling into it"):
        assert json.loads((directory / locks.LOCK).read_text())["pid"] == os.getpid()
    assert not (directory / locks.LOCK).exists()


def test_a_directory_is_locked_once_within_a_process_too_and_again_afterwards(tmp_path):
    with locks.hold(tmp_path, "training in it"):
        with (
            pytest.raises(FailureError, match="is in use"),
            locks.hold(tmp_path, "training in it"),
        ):
            pass
        with locks.hold(tmp_path, "evaluating into it", name=".part.lock"):
            pass
    with locks.hold(tmp_path, "training in it") as lock:
        lock.check()


def test_folders_that_were_made_and_not_used_are_removed_and_others_stay(tmp_path):
    (tmp_path / "there").mkdir()
    for directory in (tmp_path / "there", tmp_path / "new" / "er"):
        with pytest.raises(KeyError), locks.hold(directory, "training in it"):
            raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    with locks.hold(tmp_path / "kept", "training in it"):
        (tmp_path / "kept" / "x").touch()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["x"]


def test_a_lock_file_removed_between_opening_and_locking_it_is_not_taken_for_the_lock(
    tmp_path, monkeypatch
):
    flock, removed = locks.fcntl.flock, []

    def flock_after_the_owner_has_left(file, how):
        if not removed:
            removed.append((tmp_path / locks.LOCK).unlink())
        flock(file, how)

    monkeypatch.setattr(locks.fcntl, "flock", flock_after_the_owner_has_left)
    with locks.hold(tmp_path, "training in it"):
        assert (tmp_path / locks.LOCK).exists()
        with (
            pytest.raises(FailureError, match="is in use"),
            locks.hold(tmp_path, "training in it"),
        ):
            pass


def test_a_file_system_without_locks_is_said_so_and_used(tmp_path, monkeypatch, capsys):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with locks.hold(tmp_path, "training in it"):
        pass
    assert "knows no locks (No locks available)" in capsys.readouterr().err


def test_a_system_without_flock_is_not_guarded(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with locks.hold(tmp_path, "training in it"), locks.hold(tmp_path, "training in it"):
        assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_directory_to_write_into(tmp_path):
    (tmp_path / "x").touch()
    with (
        pytest.raises(UsageError, match="x is a file"),
        locks.hold(tmp_path / "x", "training in it"),
    ):
        pass


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b'{"pid": 1}', b"\xff", b'{"pid"'])
def test_a_lock_whose_owner_cannot_be_read_is_still_one(tmp_path, data):
    with locks.hold(tmp_path, "training in it"):
        (tmp_path / locks.LOCK).write_bytes(data)
        with (
            pytest.raises(FailureError, match="in use: another process"),
            locks.hold(tmp_path, "training in it"),
        ):
            pass
