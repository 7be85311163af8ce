"""Several processes as one run: joining, comparing, deciding together, and ending.

One process drives the devices of one host, or some of them; `jax.distributed` connects the
processes, and process 0 is the coordinator. They run the same program in step. Here is what that
takes besides the step itself: a common start, the division of work that needs no common program, a
common decision to stop, and an end when one of them is lost. With one process everything here is
the identity.
"""

import contextlib
import ctypes
import functools
import itertools
import json
import math
import os
import pathlib
import signal
import socket
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax import locks
from ddpm_jax.errors import FailureError, UsageError, visible
from ddpm_jax.numerals import is_whole

CONNECT_SECONDS = 300  # how long a process waits at the start for all others
LOST_SECONDS = 60  # without a sign of life, after which a process counts as lost
VISIBLE_SECONDS = 60  # until the others see what one host has written
VOTE_SECONDS = 0.5  # between two votes about stopping, about
# how long the coordinator stays on when it fails, so that the others can state their reason
FAREWELL_SECONDS = 1.0
LOST = (
    "Another process of this run was lost or could not be reached, so this one stops too. The "
    "checkpoints are intact: start all processes with the same command again to resume."
)
STDERR, FAILURE = 2, 1  # a file descriptor, an exit code


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = CONNECT_SECONDS,
) -> None:
    """Join the processes of a run; call it before any other use of JAX's devices.

    Args:
      coordinator: "HOST:PORT" at which process 0 listens. None, with the next two, on a TPU slice,
        under Slurm or Open MPI, where JAX finds all three.
      num_processes: of the run.
      process_id: of this process, 0..num_processes-1.
      timeout: seconds to wait for the others.

    Raises:
      UsageError: the arguments are invalid, or absent where JAX cannot determine them.
      FailureError: the cluster's own services do not answer. Where the processes do not find one
        another within `timeout`, or one is lost later, JAX aborts, and this process ends with a
        message and exit code 1.
    """
    given = (coordinator, num_processes, process_id)
    if None not in given:
        _check_address(coordinator, process_id)
    # Loopback and Ethernet, for devices that have no interconnect of their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Its handler would swallow SIGTERM. `StopVote` does its work, for SIGINT too.
    jax.config.update("jax_enable_preemption_service", False)
    waiting_for = "the coordinator" if process_id else "all processes"
    waiting_for += f" at {coordinator}" if coordinator else ""
    _abort_with(
        f"This process waited {timeout} s for {waiting_for}: start all processes, give each the "
        "same --coordinator and --num_processes and its own --process_id, and let no firewall "
        "stand between them."
    )
    try:
        with warnings.catch_warnings():
            # JAX searches even where all is given, and in a container warns of a missing package
            # for the search.
            warnings.filterwarnings("ignore", "Kubernetes environment detected")
            jax.distributed.initialize(
                *given,
                initialization_timeout=timeout,
                heartbeat_timeout_seconds=LOST_SECONDS,
                shutdown_timeout_seconds=300,
            )
    except ValueError as error:
        raise UsageError(
            "JAX finds no TPU slice, Slurm or Open MPI here to tell the processes from one "
            "another: give --coordinator HOST:PORT, --num_processes N and --process_id I."
        ) from error
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise FailureError(f"The processes could not be connected ({reason}).") from error
    _abort_with(LOST)


def _check_address(coordinator: str, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not is_whole(port) or len(port) > 5 or not 1 <= int(port) <= 65535:
        raise UsageError(
            f"--coordinator {coordinator} is no address: give HOST:PORT, as in 10.0.0.2:1234."
        )
    if process_id == 0:
        with socket.socket(socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", int(port)))
            except OSError as error:
                raise UsageError(
                    f"--coordinator {coordinator}: port {port} of this host cannot be used "
                    f"({error.strerror}): choose another, for all processes."
                ) from error


_on_abort = None  # the function that the C library calls must not be garbage-collected


def _abort_with(sentence: str) -> None:
    """Make an abort end this process with a message, "" for none, and exit code 1.

    When JAX loses another process, or waits in vain for one, it calls abort() from a thread of its
    own, whatever Python is doing. A handler of the `signal` module would never run.
    """
    global _on_abort

    def end(_number: int) -> None:
        if sentence:
            os.write(STDERR, f"error: {visible(sentence)}\n".encode())
        os._exit(FAILURE)

    _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    set_handler(signal.SIGABRT, ctypes.cast(_on_abort, ctypes.c_void_p))


def joined() -> bool:
    """Return whether this process is one of several that `join` connects."""
    return jax.distributed.is_initialized()


def leave(code: int) -> None:
    """End this process at once if `join` was called; return otherwise.

    The reason has been printed already.

    An ordinary exit waits for the others, which may be waiting for this one in a step that never
    comes.
    """
    if not joined():
        return
    _abort_with("")
    sys.stdout.flush()
    sys.stderr.flush()
    if is_primary():
        time.sleep(FAREWELL_SECONDS)
    os._exit(code)


def is_loss(error: BaseException) -> bool:
    """Return whether a computation failed because another process is gone.

    This is judged from the message of the error.
    """
    words, libraries = str(error).lower(), ("gloo", "nccl")
    if isinstance(error, jax.errors.JaxRuntimeError):
        return any(
            sign in words
            for sign in (*libraries, "connection", "socket", "unavailable", "coordination")
        )
    # JAX makes a ValueError of it where the program that fails is called, and not where its result
    # is read.
    return isinstance(error, ValueError) and any(library in words for library in libraries)


def is_primary() -> bool:
    """Return whether this is process 0, the one that writes records, pictures and progress."""
    return jax.process_index() == 0


class Silent:
    """A writer of records or a progress bar that ignores every call.

    It is used on every process but the primary one.
    """

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *_) -> None:
        pass


def check_equal(values: Mapping[str, Any]) -> None:
    """Compare, on all processes together, values that must be equal, such as config fields.

    Args:
      values: name -> JSON-able.

    Raises:
      UsageError: on every process, where one has another value than process 0; it states the names
        and both values.
    """
    if jax.process_count() == 1:
        return
    # Gloo waits 30 s for all processes at the first program over the same devices, and without
    # limit at later ones. So the first ones are here, where all arrive at once, and not after
    # compiling or reading.
    np.asarray(maximum(np.zeros(2)).addressable_data(0))
    first, *others = gather_json(values)
    for process, theirs in enumerate(others, start=1):
        names = [name for name in {**first, **theirs} if first.get(name) != theirs.get(name)]
        if names:
            listed = "; ".join(
                f"{n} is {first.get(n)!r} there and {theirs.get(n)!r} here" for n in names[:3]
            )
            more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
            raise UsageError(
                f"Process 0 and process {process} were not started alike ({listed}{more}): start "
                "all processes with the same command."
            )


def gather_json(value: Any) -> list[Any]:
    """Return the values of all processes, in their order; all call it together.

    The value can be stored as JSON; tuples may become lists.
    """
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = text
    texts = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:length])) for row, length in zip(texts, lengths, strict=True)]


@contextlib.contextmanager
def hold(
    directory: str | os.PathLike, doing: str, *, name: str = locks.LOCK
) -> Iterator[locks.Lock]:
    """Hold the lock on a directory for all processes of a run, by the primary one (`locks.hold`).

    All call it together.

    Raises:
      UsageError: on every process, as `locks.hold`.
      FailureError: likewise.
    """
    with contextlib.ExitStack() as stack:
        lock, refusal = locks.Lock(), None
        if is_primary():
            try:
                lock = stack.enter_context(locks.hold(directory, doing, name=name))
            except (UsageError, FailureError) as error:
                refusal = error
        refused = gather_json([isinstance(refusal, UsageError), str(refusal)] if refusal else None)[
            0
        ]
        if refused is not None:
            raise refusal or (UsageError if refused[0] else FailureError)(refused[1])
        yield lock


def check_shared(path: pathlib.Path) -> None:
    """Refuse a directory that is not the same on all hosts, as `path` in it shows.

    The primary process has written `path`.

    Raises:
      UsageError: this process does not see it within a minute, which a network file system may
        take.
    """
    if jax.process_count() == 1:
        return
    wait_for_all(f"{path.name} is written")
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise UsageError(
                f"{path.parent} is not the same directory for all processes: {path.name}, which "
                f"process 0 has written there, is not to be seen by process {jax.process_index()}. "
                "Name one on a file system that they share."
            )
        time.sleep(0.1)


def share(count: int) -> np.ndarray:
    """Return the contiguous part of 0..count-1 for this process, int [n].

    n is the same for all; the last number is repeated where needed.
    """
    size = -(-count // jax.process_count())
    return np.minimum(jax.process_index() * size + np.arange(size), count - 1)


def gather(batches: Iterable[np.ndarray], count: int) -> np.ndarray:
    """Concatenate the results of all processes for their `share(count)`: [count, ...] on each.

    All call it together; the number and length of the batches [n, ...] of a share are the same
    everywhere. They are exchanged one by one, so that the devices hold only one.
    """
    if jax.process_count() == 1:
        return np.concatenate(list(batches))
    parts = np.concatenate([multihost_utils.process_allgather(batch) for batch in batches], axis=1)
    return parts.reshape(-1, *parts.shape[2:])[:count]


def span(first: int, last: int) -> list[tuple[int, int]]:
    """Return the parts of first..last-1, (first, last) of each in order, one for each process.

    Processes need not be equally fast.
    """
    processes = jax.process_count()
    bounds = [first + (last - first) * p // processes for p in range(processes + 1)]
    return list(itertools.pairwise(bounds))


def wait_for_all(name: str) -> None:
    """Return when every process has called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def local(tree: Any) -> Any:
    """Return a tree replicated on every device in a form that this process can use alone."""
    return jax.tree.map(lambda x: x if x.is_fully_addressable else x.addressable_data(0), tree)


def maximum(values: np.ndarray) -> jax.Array:
    """Start computing the maximum over all processes of each of values [n].

    float32, replicated on every device.
    """
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    rows = np.broadcast_to(values.astype(np.float32), (jax.local_device_count(), len(values)))
    rows = jax.make_array_from_process_local_data(
        NamedSharding(mesh, PartitionSpec("devices")), rows
    )
    return _compiled_maximum(NamedSharding(mesh, PartitionSpec()))(rows)


@functools.cache
def _compiled_maximum(replicated: NamedSharding):
    return jax.jit(lambda rows: jnp.max(rows, axis=0), out_shardings=replicated)


class StopVote:
    """The processes' common decision to stop, reached after the same call on all of them.

    A signal to any of them counts for all.

    About every `VOTE_SECONDS` the devices take the maximum of the processes' wishes, in a program
    that is queued behind a step and read after the next one is queued, so that nothing waits for
    it. The maximum time of a call is computed with it, and determines on all processes after how
    many calls the next vote is due.
    """

    def __init__(self) -> None:
        self._pending: jax.Array | None = None
        self._due = 1  # calls until the next vote
        self._since, self._calls = time.monotonic(), 0

    def __call__(self, wish: int) -> int:
        """Take a wish, 0 for none, after each dispatch; return the greatest, 0 until it is known.

        All processes get the same answer after the same number of calls.
        """
        if jax.process_count() == 1:
            return wish
        self._calls += 1
        if self._pending is not None:
            verdict, seconds = np.asarray(self._pending.addressable_data(0))
            self._pending = None
            self._due = max(1, math.floor(VOTE_SECONDS / max(float(seconds), 1e-6)))
            return int(verdict)
        if self._calls >= self._due:
            seconds = (time.monotonic() - self._since) / self._calls
            self._pending = maximum(np.array([wish, seconds]))
            self._since, self._calls = time.monotonic(), 0
        return 0
