"""One writer at a time in a folder of a bucket, where the lock is an object that its owner writes
again and again."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from ddpm_jax import locks
from ddpm_jax.errors import FailureError


@pytest.fixture
def place(folder, request):
    """A folder of its own, with signs of life a hundred times as often as they are."""
    request.getfixturevalue("monkeypatch").setattr(locks, "BEAT_SECONDS", 0.1)
    request.getfixturevalue("monkeypatch").setattr(locks, "STALE_SECONDS", 1.5)
    return folder / request.node.name


def _left_behind(place, **changed):
    """The lock of a process that ended without removing it."""
    owner = locks._Owner.of_this_process("training in it")._replace(
        host="far", token="0", **changed
    )
    (place / locks.LOCK).write_bytes(owner.data())


def test_a_second_owner_is_refused_and_reads_who_is_there_and_the_first_leaves_nothing(place):
    with locks.hold(place, "training in it") as lock:
        words = rf"in use: process {os.getpid()} on \S+ has been training in it since 20"
        with pytest.raises(FailureError, match=words), locks.hold(place, "training in it"):
            pass
        lock.check()
    assert not (place / locks.LOCK).exists()
    with locks.hold(place, "training in it"):
        pass


def test_of_many_that_begin_at_once_one_has_it(place):
    had, begin, end = [], threading.Barrier(6), threading.Event()

    def contend():
        begin.wait()
        try:
            with locks.hold(place, "training in it"):
                had.append(True)
                end.wait(60)
        except FailureError:
            had.append(False)
        if len(had) == 6:
            end.set()

    # All find the lock of a process that is gone, and each may be the one that removes it.
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    _left_behind(place, pid=ended.pid)
    threads = [threading.Thread(target=contend) for _ in range(6)]
    for thread in threads:
        thread.start()
    while len(had) < 6 and any(thread.is_alive() for thread in threads):
        time.sleep(0.05)
    end.set()
    for thread in threads:
        thread.join()
    assert sorted(had) == [False] * 5 + [True]


def test_the_lock_of_a_process_of_this_machine_that_is_gone_is_taken_at_once(place, monkeypatch):
    monkeypatch.setattr(locks, "STALE_SECONDS", 600.0)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    _left_behind(place, pid=ended.pid)
    with locks.hold(place, "training in it"):
        assert json.loads((place / locks.LOCK).read_bytes())["pid"] == os.getpid()


def test_the_lock_of_a_silent_process_elsewhere_is_taken_after_a_while(place, capsys):
    _left_behind(place, machine="elsewhere", pid=7)
    start = time.monotonic()
    with locks.hold(place, "training in it"):
        assert time.monotonic() - start > locks.STALE_SECONDS
    assert "looking for up to 2 s whether process 7 on far" in capsys.readouterr().err


def test_an_owner_that_was_replaced_learns_it_and_does_not_remove_the_lock_of_the_other(place):
    with locks.hold(place, "training in it") as lock:
        _left_behind(place, machine="elsewhere", pid=7)
        with pytest.raises(
            FailureError, match="taken over by process 7 on far while this process gave no sign"
        ):
            lock.check()
    assert json.loads((place / locks.LOCK).read_bytes())["host"] == "far"


def test_a_lock_that_somebody_has_removed_is_made_again(place):
    with locks.hold(place, "training in it") as lock:
        (place / locks.LOCK).unlink()
        lock.check()
        with pytest.raises(FailureError, match="in use"), locks.hold(place, "training in it"):
            pass
