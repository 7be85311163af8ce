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
    """Call main(arguments) and return the exit code.

    It is 2 for a user's mistake, 1 for a failure. A command stopped before its end returns 130
    after Ctrl-C, 143 after SIGTERM and 75 after --max_seconds. Each comes with one sentence on
    standard error, except 141, when nobody reads the output, as after `| head`.
    """
    _print_whatever_is_said()
    if argv is None:
        interrupt.own_process()
    try:
        # before and after the part of the command that checks for signals itself
        with interrupt.leaving():
            code = _exit_code(main, sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()  # here, where a closed pipe can still be handled
        return interrupt.finished(code)
    except BrokenPipeError:
        if not _stop_printing():
            raise
        return _fail(UNREAD)


def _exit_code(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Call main(arguments), print what it raises, and return the exit code."""
    try:
        return main(argv)
    except SystemExit:  # of --help, which argparse prints without noticing a closed pipe
        if _is_unread(sys.stdout):
            raise BrokenPipeError from None
        raise
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
                f"error: Storage fails: {error_reason(error, BUCKET)}. Give the same command "
                "again.",
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
    """Return whether a standard stream has no reader, as after `| head`, and silence it."""
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
    """Print code points for characters that a terminal lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # that of a notebook has no encoding
            stream.reconfigure(errors="backslashreplace")


def _fail(code: int) -> int:
    """Return the exit code, or leave at once if other processes may be waiting for this one."""
    # which imports JAX; where it is not, nothing was joined
    hosts = sys.modules.get("ddpm_jax.distributed.hosts")
    if hosts is not None:
        hosts.leave(code)
    interrupt.leave_at_once(code)
    return code
