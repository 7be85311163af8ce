"""How much memory of the host a computation may take, and the sentence where it needs more.

What a device holds is not looked at here.
"""

import os
import pathlib

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


def available() -> int:
    """Bytes that this process may still take: what the machine has free, and no more than its
    container may hold.

    Where the system does not tell what is free, all of the machine's memory.
    """
    limits = [int(text) for text in map(_read, LIMITS) if text.strip().isdigit()]
    return min([_free(), *limits])


def total() -> int:
    """Bytes that this process can have at most: the machine's with its swap space, or what it is
    limited to."""
    limits = [int(text) for text in map(_read, LIMITS) if text.strip().isdigit()]
    if resource is not None:
        limits += [
            limit
            for limit in resource.getrlimit(resource.RLIMIT_AS)[:1]
            if limit != resource.RLIM_INFINITY
        ]
    return min([machine() + _line("SwapTotal", 0), *limits])


def machine() -> int:
    """Bytes of the machine's memory, whoever has them."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _free() -> int:
    return _line("MemAvailable", machine())


def _line(name: str, otherwise: int) -> int:
    """Bytes of one line of the system's account of its memory."""
    found = [line for line in _read(MEMINFO).splitlines() if line.startswith(f"{name}:")]
    return int(found[0].split()[1]) * 1024 if found else otherwise


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def check(needed: int, *, what: str, remedy: str) -> None:
    """Refuse what needs more memory than there is, before it is begun.

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
