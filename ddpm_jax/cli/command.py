"""What every command shares: parsing, the choice of platform, one sentence instead of a
traceback."""

import errno
import functools
import os
import select
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from absl import flags

from ddpm_jax import memory
from ddpm_jax.cli.synonyms import FLAGS
from ddpm_jax.distributed import interrupt
from ddpm_jax.errors import FailureError, UsageError, say, sentence, suggest, visible
from ddpm_jax.experiments.synonyms import ours
from ddpm_jax.files import BUCKET, as_path, check_place, error_reason, is_bucket_error, is_remote
from ddpm_jax.limits import MAX_STEP
from ddpm_jax.numerals import Valid, number, numbers, whole_number, whole_numbers

# exit codes; the last is the shell's convention
USAGE, FAILURE, INTERRUPTED = 2, 1, 128 + signal.SIGINT
UNREAD = 128 + signal.SIGPIPE  # nobody reads what is printed
OUT_OF_TIME = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on
_STOPPED = {
    interrupt.Wish.TIME: OUT_OF_TIME,
    interrupt.Wish.SIGINT: INTERRUPTED,
    interrupt.Wish.SIGTERM: 128 + signal.SIGTERM,
}
MAX_SECONDS = 10**8  # three years
BETWEEN = "\0"  # of several paths in one argument: no path holds it
_MAX_PROCESSES, _LONGEST_WAIT = 100_000, 7 * 24 * 3600
_REFUSALS = {errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EROFS}
_TRANSFER_GUARDS = (
    "jax_transfer_guard",
    "jax_transfer_guard_host_to_device",
    "jax_transfer_guard_device_to_device",
    "jax_transfer_guard_device_to_host",
)
_HELP_COLUMN, _HELP_WIDTH = 26, 110


class Numeral(flags.ArgumentParser):
    """What `read` makes of a text; its complaint, a sentence without its subject, is absl's to
    complete."""

    def __init__(self, read: Callable[[str], Any]):
        self._read = read

    def parse(self, argument: str | int) -> Any:
        return self._read(str(argument))


class Place(flags.ArgumentParser):
    """The names of files or directories, refused where they are longer than any file system
    takes."""

    def parse(self, argument: str) -> str:
        for path in argument.split(BETWEEN):
            if not is_remote(path):
                _check_length(path)
        return argument


def _check_length(path: str) -> None:
    longest = max(len(os.fsencode(part)) for part in path.split("/"))
    # a byte ends a path
    most_of_a_name, most = os.pathconf("/", "PC_NAME_MAX"), os.pathconf("/", "PC_PATH_MAX") - 1
    if longest > most_of_a_name:
        raise ValueError(
            f"a name in it has {longest} bytes, and the system allows {most_of_a_name}: choose a "
            "shorter one"
        )
    if len(os.fsencode(path)) > most:
        raise ValueError(
            f"it has {len(os.fsencode(path))} bytes, and the system allows {most}: choose a "
            "shorter one"
        )


class Parser:
    """A command's flags, held apart from absl's global ones so that commands can be called from
    Python."""

    def __init__(
        self,
        summary: str | None,
        *,
        computes: bool = True,
        arguments: bool = False,
        elsewhere: Callable[[str], str | None] = lambda name: None,
    ):
        """Begins a command's flags.

        Args:
          summary: the module's docstring, which heads the help.
          computes: the command uses JAX.
          arguments: it takes words that follow no flag, kept in `arguments`.
          elsewhere: what a name that is no flag may stand for beside the flags, if anything.
        """
        self.summary = (
            summary
            or "This Python drops the text of the help (-OO): run it without that to read it."
        )
        self.values = flags.FlagValues()
        self.arguments: list[str] = []
        self._computes, self._takes_arguments, self._elsewhere = computes, arguments, elsewhere
        self._lines: list[str] = []
        # flag -> what its text names
        self._texts = {"compilation_cache": "DIR"} if computes else {}
        self.values.set_gnu_getopt(arguments)  # flags may also come after them
        if computes:
            flags.DEFINE_enum("platform", None, ["cpu", "gpu", "tpu"], "", flag_values=self.values)
            flags.DEFINE(Place(), "compilation_cache", None, "", flag_values=self.values)
        flags.DEFINE_boolean("help", False, "", short_name="h", flag_values=self.values)

    def string(self, name: str, default: str | None, help: str, *, metavar: str) -> None:
        """Defines --name METAVAR."""
        flags.DEFINE_string(name, default, help, flag_values=self.values)
        self._texts[name] = metavar
        self._document(f"--{name} {metavar}", help, default)

    def path(self, name: str, default: str | None, help: str, *, metavar: str) -> None:
        """Defines --name METAVAR, a file or directory of this machine or a bucket, or several
        between `BETWEEN`."""
        flags.DEFINE(Place(), name, default, help, flag_values=self.values)
        self._texts[name] = metavar
        self._document(f"--{name} {metavar}", help, default)

    def integer(self, name: str, default: int | None, help: str, *, lower: int, upper: int) -> None:
        """Defines --name N, a whole number in [lower, upper]."""
        self._numeral(
            name, default, help, "N", functools.partial(whole_number, lower=lower, upper=upper)
        )

    def integers(
        self,
        name: str,
        default: str | None,
        help: str,
        *,
        metavar: str,
        lower: int,
        upper: int,
        count: int | None = None,
    ) -> None:
        """Defines --name METAVAR, whole numbers in [lower, upper] separated by commas, `count` of
        them."""
        read = functools.partial(whole_numbers, lower=lower, upper=upper, count=count)
        self._numeral(name, default, help, metavar, read)

    def number(
        self, name: str, default: str | None, help: str, *, valid: Valid, wanted: str
    ) -> None:
        """Defines --name X, a finite number that is `valid`: one `wanted`, in words; `default` as
        it is shown."""
        self._numeral(
            name, default, help, "X", functools.partial(number, valid=valid, wanted=wanted)
        )

    def numbers(
        self,
        name: str,
        default: str | None,
        help: str,
        *,
        metavar: str,
        valid: Valid,
        wanted: str,
        count: int | None = None,
    ) -> None:
        """Defines --name METAVAR, finite numbers separated by commas, each `valid`, `count` of
        them."""
        read = functools.partial(numbers, valid=valid, wanted=wanted, count=count)
        self._numeral(name, default, help, metavar, read)

    def _numeral(
        self, name: str, default: Any, help: str, metavar: str, read: Callable[[str], Any]
    ) -> None:
        flags.DEFINE(Numeral(read), name, default, help, flag_values=self.values)
        self._document(f"--{name} {metavar}", help, default)

    def boolean(self, name: str, help: str) -> None:
        """Defines --name, off by default."""
        flags.DEFINE_boolean(name, False, help, flag_values=self.values)
        self._document(f"--{name}", help)

    def _document(self, flag: str, help: str, default: str | int | None = None) -> None:
        text = help if default is None else f"{help} (default: {default})"
        width = _HELP_WIDTH - _HELP_COLUMN
        wrapped = textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)
        lines = [" " * _HELP_COLUMN + line for line in wrapped]
        left = f"  {flag}"
        if len(left) < _HELP_COLUMN - 1:
            lines[0] = left.ljust(_HELP_COLUMN) + lines[0].lstrip()
        else:
            lines.insert(0, left)
        self._lines += lines

    def _suggest(self, name: str) -> str:
        known = ours(name, FLAGS, self.values) or self._elsewhere(name)
        return f" Did you mean {known!r}?" if known else suggest(name, self.values)

    def parse(self, argv: Sequence[str]) -> flags.FlagValues:
        """Parses a command line without the program's name; shows the help and exits where it is
        asked for.

        Raises:
          UsageError: an unknown flag (the nearest is suggested), a bad or empty value, or a stray
            argument.
        """
        try:
            self.arguments = self.values(["", *argv])[1:]
        except flags.UnrecognizedFlagError as error:
            near = self._suggest(error.flagname)
            raise UsageError(
                f"There is no flag --{error.flagname}.{near} --help lists the flags."
            ) from error
        except flags.Error as error:
            raise UsageError(f"{str(error).rstrip('.')}. --help lists the flags.") from error
        if self.values.help:
            if self._computes:
                self._document(
                    "--platform cpu|gpu|tpu",
                    "Where to compute; by default the best device there is.",
                )
                self._document(
                    "--compilation_cache DIR",
                    "Keep compiled programs there: the next process with the same model and "
                    "devices starts without compiling them.",
                )
            self._document("--help", "Show this help.")
            say("\n".join([self.summary.strip(), "", "Flags:", *self._lines]))
            raise SystemExit(0)
        for name, metavar in self._texts.items():
            # Nothing is what a variable of the shell is that was not set, and no path: "" would be
            # where one stands.
            if self.values[name].present and not (self.values[name].value or "").strip():
                raise UsageError(
                    f"--{name} is empty: give it a value, as in --{name} {metavar}, or leave it "
                    "out."
                )
        for argument in self.arguments:
            if not argument.strip():
                raise UsageError(
                    "An argument is empty: name a file or a directory, or leave it out."
                )
            try:
                Place().parse(argument)
            except ValueError as error:
                raise UsageError(f"{argument}: {error}.") from None
        if self.arguments and not self._takes_arguments:
            raise UsageError(
                f"Unexpected argument {self.arguments[0]!r}: values follow their flag, as in "
                "--seed 1."
            )
        return self.values


def define_checkpoint_flags(parser: Parser) -> None:
    """Adds the flags that say which weights of which run."""
    parser.path(
        "ckpt", None, "Directory of a training run: the --workdir of train.py.", metavar="DIR"
    )
    parser.integer(
        "ckpt_step",
        None,
        "Which of its checkpoints; the newest by default.",
        lower=0,
        upper=MAX_STEP,
    )
    parser.boolean("raw_weights", "Use the weights as trained instead of their moving average.")


def check_names_a_run(flags: Any) -> None:
    """Refuses a command line without --ckpt.

    Raises:
      UsageError: it is missing.
    """
    if not flags.ckpt:
        raise UsageError(
            "--ckpt is missing: name the directory of a training run, as in --ckpt runs/digits."
        )


def define_limit(parser: Parser) -> None:
    """Adds --max_seconds."""
    parser.integer(
        "max_seconds",
        None,
        "Stop in order after this time, with what is done kept: the same command goes on with the "
        "rest.",
        lower=1,
        upper=MAX_SECONDS,
    )


def stop_of(parsed: flags.FlagValues) -> interrupt.Interrupt:
    """What to enter while a command computes that keeps what it has done; the time limit begins
    here."""
    promise = "stopping, with what is done kept; Ctrl-C again leaves at once"
    return interrupt.Interrupt(promise, max_seconds=parsed.max_seconds)


def define_process_flags(parser: Parser) -> None:
    """Adds the flags of a command that several processes can run together."""
    parser.boolean(
        "distributed",
        "One of several processes that work together, say one on each host: give every one the "
        "same command. On a TPU slice, under Slurm and under Open MPI nothing else is needed.",
    )
    parser.string(
        "coordinator", None, "With --distributed: where process 0 listens.", metavar="HOST:PORT"
    )
    parser.integer(
        "num_processes",
        None,
        "With --distributed: how many processes there are.",
        lower=1,
        upper=_MAX_PROCESSES,
    )
    parser.integer(
        "process_id",
        None,
        "With --distributed: which of them this is, from 0.",
        lower=0,
        upper=_MAX_PROCESSES - 1,
    )
    parser.integer(
        "connect_timeout",
        None,
        "With --distributed: seconds to wait for the others (default: 300).",
        lower=1,
        upper=_LONGEST_WAIT,
    )


def join_processes(parsed: flags.FlagValues) -> None:
    """Connects the processes that the flags of `define_process_flags` speak of; before
    `choose_platform`.

    Raises:
      UsageError: some of the flags without the others; what `hosts.join` raises.
    """
    names = ("coordinator", "num_processes", "process_id")
    given = [name for name in names if parsed[name].value is not None]
    if not parsed.distributed:
        for name in (*given, *(["connect_timeout"] if parsed.connect_timeout is not None else [])):
            raise UsageError(
                f"--{name} is for several processes: give --distributed too, or leave it out."
            )
        return
    if given and len(given) < len(names):
        missing = " and ".join(f"--{name}" for name in names if name not in given)
        raise UsageError(
            f"{missing} {'is' if len(given) == 2 else 'are'} missing: give all of --coordinator, "
            "--num_processes and --process_id, or none of them on a TPU slice and under Slurm."
        )
    if given and parsed.process_id >= parsed.num_processes:
        raise UsageError(
            f"--process_id is {parsed.process_id}: of {parsed.num_processes} processes it is one "
            f"of 0 to {parsed.num_processes - 1}."
        )
    # JAX takes a second to import, which --help need not wait for
    from ddpm_jax.distributed import hosts

    timeout = hosts.CONNECT_SECONDS if parsed.connect_timeout is None else parsed.connect_timeout
    hosts.join(parsed.coordinator, parsed.num_processes, parsed.process_id, timeout=timeout)


def common_flags(parsed: flags.FlagValues) -> dict[str, object]:
    """The flags that all processes must have been given alike, as `hosts.check_equal` compares
    them."""
    own = ("process_id", "connect_timeout", "platform", "compilation_cache", "data_dir")
    return {
        f"--{name}": value for name, value in parsed.flag_values_dict().items() if name not in own
    }


def prepare_jax(parsed: flags.FlagValues) -> None:
    """Does what a computing command's common flags ask of JAX; before anything else asks for its
    devices.

    Raises:
      UsageError: what `randomness.check_settings`, `keep_compiled`, `join_processes` and
        `choose_platform` raise.
    """
    import jax

    from ddpm_jax import randomness  # JAX takes a second to import, which --help need not wait for

    randomness.check_settings()
    if jax.config.jax_disable_jit:
        raise UsageError(
            "JAX_DISABLE_JIT is set, without which a chain takes minutes an image: unset it; a "
            "function of the package may be run so in Python."
        )
    for guard in _TRANSFER_GUARDS:
        if str(getattr(jax.config, guard)).startswith("disallow"):
            raise UsageError(
                f"{guard.upper()} is {getattr(jax.config, guard)}, and a command copies its data "
                "to the device and its results back: unset it, or set it to log."
            )
    keep_compiled(parsed.compilation_cache)
    if "distributed" in parsed:
        join_processes(parsed)
    choose_platform(parsed.platform)


def choose_platform(platform: str | None) -> None:
    """Makes JAX use `platform` ("cpu", "gpu", "tpu"), or its own choice for None.

    Raises:
      UsageError: that platform, or the one JAX_PLATFORMS names, is not there.
    """
    import jax

    before = jax.config.jax_platforms
    if platform:
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(platform, platform))
    try:
        jax.devices()
        found = jax.default_backend()
    except (RuntimeError, AssertionError):  # the latter where JAX was built without CUDA
        found = None
    if found is None or (platform and found != platform):
        jax.config.update("jax_platforms", before)
        asked = (
            f"--platform {platform}"
            if platform
            else f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', before)}"
        )
        extra = {"gpu": "cuda", "cuda": "cuda", "tpu": "tpu"}.get(platform or before)
        install = f"install JAX for it with pip install -e '.[{extra}]', or " if extra else ""
        raise UsageError(
            f"{asked} was asked for, but JAX finds no such device here: {install}use --platform "
            "cpu."
        )


def keep_compiled(directory: str | None) -> None:
    """Makes JAX keep compiled programs in `directory`, or on a bucket "gs://..."; None leaves it as
    it is.

    Raises:
      UsageError: the directory, for None that of JAX_COMPILATION_CACHE_DIR, cannot be made, or its
        name is no text, which JAX has to have.
    """
    import jax

    if directory is None:
        if jax.config.jax_compilation_cache_dir is not None:
            _check_cache(jax.config.jax_compilation_cache_dir, "JAX_COMPILATION_CACHE_DIR")
        return
    _check_cache(directory, "--compilation_cache")
    place = as_path(directory)
    check_place(place, flag="--compilation_cache", writing=True)
    jax.config.update(
        "jax_compilation_cache_dir", directory if is_remote(place) else os.path.abspath(directory)
    )
    # By default JAX keeps only what took a second to compile; a start consists of many smaller
    # programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _check_cache(directory: str, name: str) -> None:
    """Refuses a place for compiled programs that JAX would fail at when it first compiles; `name`
    is who named it."""
    try:
        directory.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{name} {directory} is no name in UTF-8, as JAX needs one: rename it."
        ) from error
    try:
        place = as_path(directory)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error
    if is_remote(place):
        return
    try:
        os.makedirs(place, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{name} {directory} cannot be made: {error.strerror}.") from error


def how_to_call(name: str) -> str:
    """Return what a user types for a command: "python sample.py" in a checkout, or "ddpm-jax sample"."""
    return f"python {name}.py" if os.path.isfile(f"{name}.py") else f"ddpm-jax {name}"


def run(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Calls main(arguments) and returns the exit code: 2 for a user's mistake, 1 for a failure, 130
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
            code = _code_of(main, sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()  # here, where it can still be told that nobody reads it
        return code
    except BrokenPipeError:
        if not _stop_printing():
            raise
        return _fail(UNREAD)


def _code_of(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Calls main(arguments) and tells of what it raises; the exit code."""
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
    """Makes a terminal that lacks a character, ± say, or a name that is no text, print its code
    instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # that of a notebook has no encoding
            stream.reconfigure(errors="backslashreplace")


def _fail(code: int) -> int:
    """Returns the exit code; one of several processes ends here, because the others may be waiting
    for it in vain."""
    # which imports JAX; where it is not, nothing was joined
    hosts = sys.modules.get("ddpm_jax.distributed.hosts")
    if hosts is not None:
        hosts.leave(code)
    interrupt.leave_at_once(code)
    return code
