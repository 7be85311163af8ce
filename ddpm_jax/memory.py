"""Out-of-memory errors: recognised on every device and reported in one sentence.

XLA has a different message for each kind of device, NumPy and Python raise `MemoryError`; and a
system that overcommits memory kills the process without a message. For that case `check` and
`checked` refuse in advance what exceeds all memory.
"""

import contextlib
import errno
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

from ddpm_jax import host_memory
from ddpm_jax.errors import FailureError

# In lower case, from messages of XLA for CPU, GPU and TPU, CUDA's libraries, C++ and the system.
_SIGNS = (
    "out of memory",
    "ran out of memory",
    "out_of_memory",
    "failed to allocate",
    "attempting to allocate",
    "unable to allocate",
    "alloc_failed",
    "bad_alloc",
    "cannot allocate memory",
    "exceeded hbm capacity",
)
_UNITS = {unit: 1024**power for power, unit in enumerate("bkmgtpe")}
_AMOUNT = re.compile(
    r"(?<![\w.])(\d+(?:\.\d+)?) ?(?:([kmgtpe])(?:i?b)?\b|(?:b|bytes)\b)", re.IGNORECASE
)
_REMEDY = (
    "compute less at a time (--batch_size, --num_samples, where there are such), or use a device "
    "with more memory"
)


def is_exhaustion(error: BaseException) -> bool:
    """Return whether an error means that memory of the host or a device is used up.

    A full disk does not count.
    """
    if isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    ):
        return True
    words = str(error).lower()
    # XLA raises its own RuntimeError, which JAX sometimes turns into a ValueError.
    if (
        not isinstance(error, RuntimeError | ValueError)
        or isinstance(error, FailureError)
        or "no space left" in words
    ):
        return False
    return any(sign in words for sign in _SIGNS)


def requested_bytes(error: BaseException) -> int | None:
    """Return the number of bytes that an out-of-memory error names first; None if none.

    An exact number is preferred to a rounded one.
    """
    words = str(error)
    sign = min((at for at in map(words.lower().find, _SIGNS) if at >= 0), default=0)
    found = _AMOUNT.search(words, sign)
    if found is None:
        return None
    exact = re.match(r" ?\((\d+) ?(?:b|bytes)\)", words[found.end() :], re.IGNORECASE)
    return int(exact[1]) if exact else round(float(found[1]) * _UNITS[(found[2] or "b").lower()])


@contextlib.contextmanager
def explained(doing: str, remedies: str = _REMEDY) -> Iterator[None]:
    """Turn an out-of-memory error of the body into one sentence.

    Args:
      doing: the computation, as the subject of the sentence: "a training step of 128 images".
      remedies: what to do, in the imperative.

    Raises:
      FailureError: memory is used up.
    """
    try:
        yield
    except Exception as error:
        if not is_exhaustion(error):
            raise
        raise FailureError(sentence(error, doing, remedies)) from error


def sentence(error: BaseException, doing: str, remedies: str = _REMEDY) -> str:
    """Return the sentence about an error of `is_exhaustion`; see `explained`."""
    asked = requested_bytes(error)
    wanted = "more than there was" if asked is None else format_bytes(asked)
    report = _memory_report(error)
    return f"Out of memory: {doing} asked for {wanted}, and {report}. To do: {remedies}."


def format_bytes(size: float) -> str:
    """Format a number of bytes with its unit: 1610612736 is "1.5 GiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def check(size: int, doing: str, remedies: str) -> None:
    """Refuse a computation that needs more memory than a device has.

    On a CPU, all devices share one memory.

    Args:
      size: bytes on each device.
      doing: as in `explained`.
      remedies: likewise.

    Raises:
      FailureError: the device has less.
    """
    with explained(doing, remedies):
        if size * _devices_per_memory() > _capacity():
            raise MemoryError(f"Unable to allocate {size * _devices_per_memory()} bytes")


def checked(program: Callable[..., Any]) -> Callable[..., Any]:
    """Return a compiled function that checks its memory before it runs on a CPU.

    `program` comes from `jax.jit` or `jax.pmap`; its second argument, a batch, decides what it is
    compiled for. Other devices refuse it themselves, but a system that overcommits memory kills the
    process. The program is still compiled only once.

    The returned function raises: MemoryError: the program needs more than the host has.
    """
    seen = set()

    @functools.wraps(program)
    def run(*arguments: Any) -> Any:
        import jax

        if jax.default_backend() == "cpu":
            shapes = tuple(leaf.shape for leaf in jax.tree.leaves(arguments[1]))
            if shapes not in seen:
                _check_program(program, *arguments)
                seen.add(shapes)
        return program(*arguments)

    return run


def _check_program(program: Callable[..., Any], *arguments: Any) -> None:
    needs = program.lower(*arguments).compile().memory_analysis()
    if needs is None:
        return
    size = needs.temp_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes
    if size * _devices_per_memory() > host_memory.total():
        raise MemoryError(f"Unable to allocate {size * _devices_per_memory()} bytes")


def _device_memory() -> tuple[int, int] | None:
    """Return the limit of a local device and the bytes in use; None on a CPU."""
    import jax

    statistics = jax.local_devices()[0].memory_stats() or {}
    limit = statistics.get("bytes_limit")
    return (limit, statistics.get("bytes_in_use", 0)) if limit else None


def _capacity() -> int:
    device = _device_memory()
    return host_memory.total() if device is None else device[0]


def _devices_per_memory() -> int:
    """Return the number of devices that share one memory: all CPU devices of a host."""
    import jax

    return jax.local_device_count() if jax.default_backend() == "cpu" else 1


def _memory_report(error: BaseException) -> str:
    device = None if isinstance(error, MemoryError | OSError) else _device_memory()
    if device is not None:
        limit, used = device
        return f"the device has {format_bytes(limit)} for JAX, {format_bytes(used)} of them in use"
    total, free = host_memory.total(), host_memory.available()
    have, left = format_bytes(total), format_bytes(min(free, total))
    return f"this process can have {have}, of which {left} are free now"
