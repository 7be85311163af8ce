"""Memory of the host that a computation may use, and the error if it needs more.

Memory of devices is in `memory`.
"""

import ctypes
import os
import pathlib
import sys

from ddpm_jax.errors import UsageError

try:
    import resource
except ImportError:  # not a POSIX system
    resource = None

MEMINFO = pathlib.Path("/proc/meminfo")
LIMITS = (  # of the container, of both generations of Linux's control groups
    pathlib.Path("/sys/fs/cgroup/memory.max"),
    pathlib.Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h


def available() -> int:
    """Return the bytes that this process may still use, within its container's limit.

    If the system does not report free memory, all memory of the machine counts.
    """
    limits = [int(text) for text in map(_read, LIMITS) if text.strip().isdigit()]
    return min([_free(), *limits])


def total() -> int:
    """Return the most bytes this process can have: memory and swap, or its limits."""
    limits = [int(text) for text in map(_read, LIMITS) if text.strip().isdigit()]
    if resource is not None:
        limits += [
            limit
            for limit in resource.getrlimit(resource.RLIMIT_AS)[:1]
            if limit != resource.RLIM_INFINITY
        ]
    return min([machine() + _line("SwapTotal", 0), *limits])


def machine() -> int:
    """Return the bytes of the machine's memory, used or not."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def give_back() -> None:
    """Return freed memory to the system, which glibc keeps for the process.

    After a compilation that is hundreds of MB. Other C libraries are left to themselves.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def keep_freed() -> None:
    """Let glibc keep what this process frees, up to 2 GiB, for what it allocates next.

    XLA for CPUs allocates the temporary memory of a program at every call. By default glibc returns
    blocks above 32 MiB to the system as soon as they are freed, which then clears the pages of the
    next ones: a tenth of a training step. Only the heap of the main thread can hold such blocks, so
    all threads share it. To be called before there are other threads. Where the user has chosen
    options of malloc in the environment, and with other C libraries, nothing changes.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    chosen |= "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
    choose = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if choose is not None and not chosen:
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            choose(parameter, 2**31 - 1)
        choose(_M_ARENA_MAX, 1)


def _free() -> int:
    return _line("MemAvailable", machine())


def _line(name: str, otherwise: int) -> int:
    """Return the bytes in one line of /proc/meminfo, or `otherwise`."""
    found = [line for line in _read(MEMINFO).splitlines() if line.startswith(f"{name}:")]
    return int(found[0].split()[1]) * 1024 if found else otherwise


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def check(needed: int, *, what: str, remedy: str) -> None:
    """Refuse a computation that needs more memory than is available, before it begins.

    Args:
      needed: bytes.
      what: the subject of the sentence.
      remedy: what to do about it, in the imperative.

    Raises:
      UsageError: `needed` is more than `available`.
    """
    there = available()
    if needed > there:
        raise UsageError(
            f"{what} needs {needed / 2**30:,.1f} GiB of memory, and {there / 2**30:,.1f} GiB are "
            f"available: {remedy}."
        )
