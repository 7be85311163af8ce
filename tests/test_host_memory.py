"""The memory available to a computation on the host, and the error if it does not suffice."""

import os
import pathlib
import subprocess
import sys

import pytest

from ddpm_jax import host_memory
from ddpm_jax.errors import UsageError


def _system(tmp_path, monkeypatch, *, meminfo, limit):
    paths = tmp_path / "meminfo", tmp_path / "memory.max", tmp_path / "none"
    for path, text in zip(paths, (meminfo, limit), strict=False):
        path.write_text(text)
    monkeypatch.setattr(host_memory, "MEMINFO", paths[0])
    monkeypatch.setattr(host_memory, "LIMITS", paths[1:])


@pytest.mark.parametrize(
    ("limit", "expected"), [("max\n", 3072), ("2048\n", 2048), ("9223372036854771712\n", 3072)]
)
def test_what_is_available_is_what_is_free_and_no_more_than_the_container_may_hold(
    tmp_path, monkeypatch, limit, expected
):
    _system(
        tmp_path, monkeypatch, meminfo="MemTotal:  9 kB\nMemAvailable:       3 kB\n", limit=limit
    )
    assert host_memory.available() == expected


def test_where_the_system_does_not_tell_it_is_all_of_the_machine(tmp_path, monkeypatch):
    _system(tmp_path, monkeypatch, meminfo="", limit="max")
    assert host_memory.available() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_what_needs_more_is_refused_with_both_numbers_and_the_remedy(tmp_path, monkeypatch):
    _system(tmp_path, monkeypatch, meminfo="MemAvailable: 1048576 kB", limit="max")
    host_memory.check(2**30, what="It", remedy="take less")
    with pytest.raises(
        UsageError, match=r"^It needs 1\.5 GiB of memory, and 1\.0 GiB are available: take less\.$"
    ):
        host_memory.check(3 * 2**29, what="It", remedy="take less")


@pytest.mark.parametrize(("limit", "expected"), [("max", None), ("2048", 2048)])
def test_what_a_process_can_have_at_most_counts_the_swap_space(
    tmp_path, monkeypatch, limit, expected
):
    _system(tmp_path, monkeypatch, meminfo="MemAvailable: 3 kB\nSwapTotal:  4 kB\n", limit=limit)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert host_memory.total() == (expected or machine + 4096)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is of glibc alone")
def test_what_was_freed_is_given_back_to_the_system():
    """50 MB in pieces below those that glibc maps one by one, each second of which is freed."""

    def resident():
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )

    pieces = [b"\1" * 50_000 for _ in range(1_000)]
    del pieces[::2]
    before = resident()
    host_memory.give_back()
    assert before - resident() > 15e6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is of glibc alone")
@pytest.mark.parametrize(("chosen", "kept"), [({}, True), ({"MALLOC_TOP_PAD_": "131072"}, False)])
def test_large_blocks_that_another_thread_frees_are_used_again(chosen, kept):
    """100 MiB are 25,600 pages; the system counts those that it hands out."""
    program = """
import resource, threading
from ddpm_jax import host_memory
host_memory.keep_freed()
faults = []
def allocate():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = bytearray(b"1" * (100 * 2**20))
        del block
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=allocate)
thread.start()
thread.join()
print(faults[-1])
"""
    options = ("MALLOC_", "GLIBC_TUNABLES")
    environment = {name: os.environ[name] for name in os.environ if not name.startswith(options)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | chosen,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (int(done.stdout) < 1_000) == kept
