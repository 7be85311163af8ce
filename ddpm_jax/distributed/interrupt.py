"""Ctrl-C, SIGTERM and a time limit as wishes to stop, honoured between two dispatches.

So all finished work is kept.

Signals belong to the process, and so do the wishes: computations call `check` between dispatches,
and the command that has entered an `Interrupt` handles what it raises. Where none is entered,
Ctrl-C has Python's own handler.
"""

import atexit
import contextlib
import enum
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

STDERR = 2
_NEW_OBJECTS = 500_000  # between two searches for cycles, some 50 MB
LEAVING = 128 + signal.SIGINT  # the shell's convention


class Wish(enum.IntEnum):
    """A reason to stop. Of several, the greatest counts."""

    TIME = 1
    SIGINT = signal.SIGINT
    CALLBACK = 3  # of a user's program
    SIGTERM = signal.SIGTERM


class Stopped(Exception):
    """A long computation was stopped by a wish; `kept` describes what is kept of it."""

    def __init__(self, wish: Wish, kept: str = ""):
        super().__init__(wish, kept)
        self.wish, self.kept = wish, kept

    def __str__(self) -> str:
        by = {Wish.TIME: "by max_seconds", Wish.CALLBACK: "by a callback"}.get(
            self.wish, f"by {self.wish.name}"
        )
        return f"stopped {by}: {self.kept}" if self.kept else f"stopped {by}"


_entered: list["Interrupt"] = []
_alone = False
_code: int | None = None  # of a command that has finished


def own_process() -> None:
    """Declare that this process is a command and nothing else.

    A second Ctrl-C may then end it at once, and Python looks for reference cycles more rarely: what
    a command imports and traces lives to its end, and looking through it again and again was a
    seventh of the time to a first image. What was imported before the last call is never looked
    through.
    """
    global _alone
    gc.freeze()
    if not _alone:
        _alone = True
        gc.set_threshold(_NEW_OBJECTS)
        # the first that is registered runs last, after all threads and handlers of others
        atexit.register(_skip_teardown)


def finished(code: int) -> int:
    """Return the exit code of a command that has done all it had to; its process ends with it."""
    global _code
    _code = code
    return code


def _skip_teardown() -> None:
    """End the process without freeing what it imported and compiled, object by object.

    That took a seventh of a short command's time, for memory that the system takes back at once.
    """
    if _code is not None:
        leave_at_once(_code)
    gc.unfreeze()


def leave_at_once(code: int) -> None:
    """End a process that is a command without waiting; return in any other process.

    Python's own exit would wait for threads that compute or save, and tear down the interpreter
    under the threads of XLA: a segmentation fault. Files on disk are whole, because they get their
    names when complete.
    """
    if not _alone:
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or entered by the main thread just now
            stream.flush()
    os._exit(code)


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Let Ctrl-C end a command at once while the body runs and no `Interrupt` is entered.

    An exception during the initialisation of an extension makes it fail with its own message, or
    crash; one in a callback of the garbage collector, such as JAX's, is lost.
    """
    if not _alone:
        yield
        return
    previous = signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if previous is None else previous)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(STDERR, b"\ninterrupted\n")
    leave_at_once(LEAVING)


def check(*, together: bool = False) -> None:
    """Return if there is no wish to stop.

    Args:
      together: whether all processes of a run call this equally often, and stop after the same
        call.

    Raises:
      Stopped: the wish that the innermost `Interrupt` has received.
    """
    if not _entered:
        return
    wish = _entered[-1].vote() if together else _entered[-1].received
    if wish:
        raise Stopped(Wish(wish))


class Interrupt:
    """A context that notes the first SIGINT or SIGTERM instead of obeying it.

    A second SIGINT stops at once.
    """

    def __init__(self, promise: str, *, max_seconds: float | None = None):
        """Start the clock.

        Args:
          promise: what follows a signal, printed at once, as in "SIGINT: saving after this step;
            ...".
          max_seconds: the time after which there is a wish to stop even without a signal.
        """
        # this imports JAX, for which a command's --help need not wait
        from ddpm_jax.distributed import hosts

        self._promise, self._signal = promise, None
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._common, self._verdict = hosts.StopVote(), 0
        self._previous: dict[signal.Signals, object] = {}
        self._pipe: tuple[int, int] | None = None

    @property
    def received(self) -> Wish | None:
        """The wish of this process."""
        if self._signal is not None:
            return self._signal
        return (
            Wish.TIME if self._deadline is not None and time.monotonic() >= self._deadline else None
        )

    def request(self, wish: Wish) -> None:
        """Note a wish, as a signal is noted."""
        self._signal = self._signal or wish

    def vote(self) -> int:
        """Return the processes' common wish, 0 for none; see `hosts.StopVote`.

        Once there is one it stays.
        """
        self._verdict = self._verdict or self._common(self.received or 0)
        return self._verdict

    def __enter__(self) -> "Interrupt":
        _entered.append(self)
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread receives signals: others have the time limit
        handler = self._note
        if _alone:
            # Python runs no handler while the main thread compiles or waits for a device. A thread
            # learns of the signal through the pipe that the operating system's handler writes to.
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            threading.Thread(
                target=self._listen, args=(self._pipe[0],), name="signals", daemon=True
            ).start()
            handler = _heard
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_) -> None:
        _entered.remove(self)
        for number, handler in self._previous.items():
            # None is a handler that was not set from Python and cannot be set again from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self._pipe is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._pipe[1])  # which ends the thread

    def _listen(self, pipe: int) -> None:
        while heard := os.read(pipe, 1):
            if heard[0] in (signal.SIGINT, signal.SIGTERM):
                self._note(heard[0], None)
        os.close(pipe)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal == Wish.SIGINT and number == signal.SIGINT:
            _leave(number, frame)
            raise KeyboardInterrupt
        self._signal = Wish(number)
        message = f"\n{self._signal.name}: {self._promise}.\n"
        # Not print: sys.stderr refuses to be entered again where the signal arrived in the middle
        # of a line.
        os.write(STDERR, message.encode())


def _heard(number: int, frame: FrameType | None) -> None:
    """Do nothing: the handler of a signal that a thread listens for."""
