"""Run a command: exit codes, and one sentence instead of a traceback."""

import errno
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TextIO

from ddpm_jax import memory
from ddpm_jax.distributed import interrupt
from ddpm_jax.errors import FailureError, UsageError, say, sentence, visible
from ddpm_jax.files import BUCKET, error_reason, is_bucket_error

# Exit codes; the last is the shell's convention.
USAGE, FAILURE, INTERRUPTED = 2, 1, 128 + signal.SIGINT
UNREAD = 128 + signal.SIGPIPE  # nobody reads what is printed
OUT_OF_TIME = 75  # EX_TEMPFAIL of sysexits.h: the same command resumes
_STOPPED = {
    interrupt.Wish.TIME: OUT_OF_TIME,
    interrupt.Wish.SIGINT: INTERRUPTED,
    interrupt.Wish.SIGTERM: 128 + signal.SIGTERM,
}
_REFUSALS = {errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EROFS}


def run(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Call main(arguments) and returns the exit code: 2 for a user's mistake, 1 for a failure, 130
    for Ctrl-C.

    What was stopped before it was done ends with 130, 143 after SIGTERM, and 75 after
    --max_seconds. Each comes with one sentence on standard error, but for 141: nobody reads it, as
    after `| head`.
    """
    _print_whatever_is_said()
    if argv is None:
        interrupt.own_process()
    try:
        # until and after what the command does between two looks at signals
        with interrupt.leaving():
            code = _exit_code(main, sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()  # here, where it can still be told that nobody reads it
        return code
    except BrokenPipeError:
        if not _stop_printing():
            raise
        return _fail(UNREAD)


def _exit_code(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Call main(arguments) and tells of what it raises; the exit code."""
    try:
        return main(argv)
    except (UsageError, FailureError) as error:
        say(f"error: {sentence(error)}", file=sys.stderr)
        return _fail(USAGE if isinstance(error, UsageError) else FAILURE)
    except interrupt.Stopped as stopped:
        say(stopped, file=sys.stderr)
        return _fail(_STOPPED[stopped.wish])
    except KeyboardInterrupt:
        say("\ninterrupted", file=sys.stderr)
        return _fail(INTERRUPTED)
    except Exception as error:
        from ddpm_jax.distributed import hosts

        if memory.is_exhaustion(error):
            say(f"error: {memory.sentence(error, 'this command')}", file=sys.stderr)
            return _fail(FAILURE)
        if isinstance(error, BrokenPipeError) and (
            _is_unread(sys.stdout) or _is_unread(sys.stderr)
        ):
            raise
        if is_bucket_error(error):
            say(
                f"error: Storage fails: {error_reason(error, BUCKET)}. Give the same command again.",
                file=sys.stderr,
            )
            return _fail(FAILURE)
        if isinstance(error, OSError) and error.errno in _REFUSALS:
            say(
                f"error: {visible(str(error.filename))}: {error.strerror}. Make it usable, or name "
                "another.",
                file=sys.stderr,
            )
            return _fail(USAGE if error.errno == errno.ENAMETOOLONG else FAILURE)
        if not hosts.joined():
            raise
        if hosts.is_loss(error):
            reason = str(error).strip().split("\n")[0]
            say(f"error: {hosts.LOST} ({reason})", file=sys.stderr)
        else:
            traceback.print_exc()
        return _fail(FAILURE)


def _stop_printing() -> bool:
    """Whether nobody reads a standard stream any more, as after `| head`; what else comes for it
    then goes nowhere."""
    unread = [stream for stream in (sys.stdout, sys.stderr) if _is_unread(stream)]
    for stream in unread:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    return bool(unread)


def _is_unread(stream: TextIO) -> bool:
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError):  # that of a notebook or of a test is no file
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _print_whatever_is_said() -> None:
    """Make a terminal that lacks a character, ± say, or a name that is no text, print its code
    instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # that of a notebook has no encoding
            stream.reconfigure(errors="backslashreplace")


def _fail(code: int) -> int:
    """Return the exit code; one of several processes ends here, because the others may be waiting
    for it in vain."""
    # which imports JAX; where it is not, nothing was joined
    hosts = sys.modules.get("ddpm_jax.distributed.hosts")
    if hosts is not None:
        hosts.leave(code)
    interrupt.leave_at_once(code)
    return code
