"""What every command shares: parsing, the choice of platform, one sentence instead of a traceback."""

import math
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence

from absl import flags

from ddpm_jax.errors import FailureError, UsageError, suggest

USAGE, FAILURE, INTERRUPTED = 2, 1, 128 + signal.SIGINT  # exit codes; the last is the shell's convention
MAX_SEED = 2**32 - 1  # JAX keeps 32 bits of a seed: a larger one would repeat the draws of a smaller
_HELP_COLUMN, _HELP_WIDTH = 26, 110


class _Integer(flags.ArgumentParser):
    """A whole number in a range, refused in the words of a sentence."""

    def __init__(self, lower: int, upper: int | None):
        self.lower, self.upper = lower, upper

    def parse(self, argument: str | int) -> int:
        wanted = f"in {self.lower}..{self.upper}" if self.upper is not None else f"of at least {self.lower}"
        try:
            value = int(argument)
        except ValueError:
            value = None
        if value is None or value < self.lower or (self.upper is not None and value > self.upper):
            raise ValueError(f"it must be a whole number {wanted}")
        return value


class _Positive(flags.ArgumentParser):
    """A finite number above 0, refused in the words of a sentence."""

    def parse(self, argument: str | float) -> float:
        try:
            value = float(argument)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise ValueError("it must be a number above 0")
        return value


class Parser:
    """A command's flags, held apart from absl's global ones so that commands can be called from Python."""

    def __init__(self, summary: str, *, computes: bool = True, arguments: bool = False):
        """`computes`: the command uses JAX; `arguments`: it takes words that follow no flag, kept in `arguments`."""
        self.summary = summary
        self.values = flags.FlagValues()
        self.arguments: list[str] = []
        self._computes, self._takes_arguments = computes, arguments
        self._lines: list[str] = []
        self.values.set_gnu_getopt(arguments)  # flags may also come after them
        if computes:
            flags.DEFINE_enum("platform", None, ["cpu", "gpu", "tpu"], "", flag_values=self.values)
        flags.DEFINE_boolean("help", False, "", short_name="h", flag_values=self.values)

    def string(self, name: str, default: str | None, help: str, *, metavar: str) -> None:
        """Defines --name METAVAR."""
        flags.DEFINE_string(name, default, help, flag_values=self.values)
        self._document(f"--{name} {metavar}", help, default)

    def integer(self, name: str, default: int | None, help: str, *, lower: int, upper: int | None = None) -> None:
        """Defines --name N, at least `lower` and at most `upper`."""
        flags.DEFINE(_Integer(lower, upper), name, default, help, flag_values=self.values)
        self._document(f"--{name} N", help, default)

    def number(self, name: str, default: str, help: str) -> None:
        """Defines --name X, a finite number above 0; `default` as it is to be shown."""
        flags.DEFINE(_Positive(), name, default, help, flag_values=self.values)
        self._document(f"--{name} X", help, default)

    def boolean(self, name: str, help: str) -> None:
        """Defines --name, off by default."""
        flags.DEFINE_boolean(name, False, help, flag_values=self.values)
        self._document(f"--{name}", help)

    def _document(self, flag: str, help: str, default: str | int | None = None) -> None:
        text = help if default is None else f"{help} (default: {default})"
        lines = [" " * _HELP_COLUMN + line for line in textwrap.wrap(text, _HELP_WIDTH - _HELP_COLUMN)]
        left = f"  {flag}"
        if len(left) < _HELP_COLUMN - 1:
            lines[0] = left.ljust(_HELP_COLUMN) + lines[0].lstrip()
        else:
            lines.insert(0, left)
        self._lines += lines

    def parse(self, argv: Sequence[str]) -> flags.FlagValues:
        """Parses a command line without the program's name; shows the help and exits where it is asked for.

        Raises:
          UsageError: an unknown flag (the nearest is suggested), a bad value, or a stray argument.
        """
        try:
            self.arguments = self.values(["", *argv])[1:]
        except flags.UnrecognizedFlagError as error:
            near = suggest(error.flagname, self.values)
            raise UsageError(f"There is no flag --{error.flagname}.{near} --help lists the flags.") from error
        except flags.Error as error:
            raise UsageError(f"{str(error).rstrip('.')}. --help lists the flags.") from error
        if self.values.help:
            if self._computes:
                self._document("--platform cpu|gpu|tpu", "Where to compute; by default the best device there is.")
            self._document("--help", "Show this help.")
            print("\n".join([self.summary.strip(), "", "Flags:", *self._lines]))
            raise SystemExit(0)
        if self.arguments and not self._takes_arguments:
            raise UsageError(f"Unexpected argument {self.arguments[0]!r}: values follow their flag, as in --seed 1.")
        return self.values


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
        asked = f"--platform {platform}" if platform else f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', before)}"
        extra = {"gpu": "cuda", "cuda": "cuda", "tpu": "tpu"}.get(platform or before)
        install = f"install JAX for it with pip install -e '.[{extra}]', or " if extra else ""
        raise UsageError(f"{asked} was asked for, but JAX finds no such device here: {install}use --platform cpu.")


def run(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Calls main(arguments) and returns the exit code: 2 for a user's mistake, 1 for a failure, 130 for Ctrl-C.

    Each comes with one sentence on standard error.
    """
    try:
        return main(sys.argv[1:] if argv is None else argv)
    except (UsageError, FailureError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else FAILURE
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
