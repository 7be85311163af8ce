"""Out of memory: telling it from other errors, in a sentence that says what was asked for, what
there is, what helps.

XLA reports it in words of its own for each kind of device, NumPy and Python by `MemoryError`; and a
system that promises more memory than it has ends the process instead, without a word. For the last
there are `check` and `checked`, which refuse what is larger than all memory there is.
"""

import contextlib
import errno
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

from ddpm_jax import host_memory
from ddpm_jax.errors import FailureError

# In lower case, of messages of XLA for CPU, GPU and TPU, of CUDA's libraries, of C++ and of the
# system.
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
_REMEDY = "compute less at a time (--batch_size, --num_samples, where there are such), or use a device with more memory"


def is_exhaustion(error: BaseException) -> bool:
    """Whether an error says that memory, of the host or of a device, is used up; a full disk is
    something else."""
    if isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    ):
        return True
    words = str(error).lower()
    # XLA raises a RuntimeError of its own, which JAX at times makes a ValueError of.
    if (
        not isinstance(error, RuntimeError | ValueError)
        or isinstance(error, FailureError)
        or "no space left" in words
    ):
        return False
    return any(sign in words for sign in _SIGNS)


def bytes_asked_for(error: BaseException) -> int | None:
    """How many bytes an error of `is_exhaustion` speaks of first, None if of none; exact numbers go
    before rounded."""
    words = str(error)
    sign = min((at for at in map(words.lower().find, _SIGNS) if at >= 0), default=0)
    found = _AMOUNT.search(words, sign)
    if found is None:
        return None
    exact = re.match(r" ?\((\d+) ?(?:b|bytes)\)", words[found.end() :], re.IGNORECASE)
    return int(exact[1]) if exact else round(float(found[1]) * _UNITS[(found[2] or "b").lower()])


@contextlib.contextmanager
def explained(doing: str, remedies: str = _REMEDY) -> Iterator[None]:
    """Its body computes; that it runs out of memory becomes the sentence the user reads.

    Args:
      doing: what is computed, as the subject of the sentence: "a training step of 128 images".
      remedies: what to do, as a command.

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
    """What the user reads of an error of `is_exhaustion`; see `explained`."""
    asked = bytes_asked_for(error)
    wanted = "more than there was" if asked is None else in_words(asked)
    return f"Out of memory: {doing} asked for {wanted}, and {_there_is(error)}. To do: {remedies}."


def in_words(size: float) -> str:
    """A number of bytes with its unit: 1610612736 is "1.5 GiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def check(size: int, doing: str, remedies: str) -> None:
    """Refuse what takes more bytes of a device than it has; on a CPU, than all devices have
    together.

    Args:
      size: bytes on each device.
      doing: as in `explained`.
      remedies: likewise.

    Raises:
      FailureError: there is less.
    """
    with explained(doing, remedies):
        if size * _sharing() > _capacity():
            raise MemoryError(f"Unable to allocate {size * _sharing()} bytes")


def checked(program: Callable[..., Any]) -> Callable[..., Any]:
    """What `jax.jit` or `jax.pmap` returns, refused before it runs where its memory is not there:
    on CPUs.

    Other devices refuse it themselves. A CPU's memory is the system's, which promises more than it
    has and then ends the process. The program is compiled once all the same. Its second argument is
    what it is compiled for: a batch.

    The function that is returned raises:
      MemoryError: the program needs more than the host has.
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
    if size * _sharing() > host_memory.total():
        raise MemoryError(f"Unable to allocate {size * _sharing()} bytes")


def _device_memory() -> tuple[int, int] | None:
    """(bytes that JAX may use of a local device, bytes in use); None of a CPU, whose memory is the
    host's."""
    import jax

    statistics = jax.local_devices()[0].memory_stats() or {}
    limit = statistics.get("bytes_limit")
    return (limit, statistics.get("bytes_in_use", 0)) if limit else None


def _capacity() -> int:
    device = _device_memory()
    return host_memory.total() if device is None else device[0]


def _sharing() -> int:
    """How many devices have one memory: all of a host's CPU devices."""
    import jax

    return jax.local_device_count() if jax.default_backend() == "cpu" else 1


def _there_is(error: BaseException) -> str:
    device = None if isinstance(error, MemoryError | OSError) else _device_memory()
    if device is not None:
        limit, used = device
        return f"the device has {in_words(limit)} for JAX, {in_words(used)} of them in use"
    total, free = host_memory.total(), host_memory.available()
    return f"this process can have {in_words(total)}, of which {in_words(min(free, total))} are free now"
