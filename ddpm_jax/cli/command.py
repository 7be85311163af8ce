"""What every command shares: parsing, the choice of platform, one sentence instead of a traceback."""

import os
import sys
from collections.abc import Callable, Sequence

from absl import flags

from ddpm_jax.errors import FailureError, UsageError

USAGE, FAILURE = 2, 1  # exit codes


class Parser:
    """A command's flags, held apart from absl's global ones so that commands can be called from Python."""

    def __init__(self, summary: str):
        self.summary = summary
        self.values = flags.FlagValues()
        flags.DEFINE_boolean("help", False, "Show this help.", short_name="h", flag_values=self.values)
        flags.DEFINE_enum(
            "platform",
            None,
            ["cpu", "gpu", "tpu"],
            "Where to compute; by default the best device there is.",
            flag_values=self.values,
        )

    def string(self, name: str, default: str | None, help: str) -> None:
        """Defines --name TEXT."""
        flags.DEFINE_string(name, default, help, flag_values=self.values)

    def integer(self, name: str, default: int | None, help: str, lower: int | None = None) -> None:
        """Defines --name N, at least `lower`."""
        flags.DEFINE_integer(name, default, help, lower_bound=lower, flag_values=self.values)

    def boolean(self, name: str, help: str) -> None:
        """Defines --name, off by default."""
        flags.DEFINE_boolean(name, False, help, flag_values=self.values)

    def parse(self, argv: Sequence[str]) -> flags.FlagValues:
        """Parses a command line without the program's name; shows the help and exits where it is asked for.

        Raises:
          UsageError: an unknown flag (the nearest is suggested), a bad value, or a stray argument.
        """
        try:
            stray = self.values(["", *argv])[1:]
        except flags.Error as error:
            raise UsageError(f"{error}. --help lists the flags.".replace("..", ".")) from error
        if self.values.help:
            print(f"{self.summary}\n\nflags:\n{self.values.get_help(prefix='  ', include_special_flags=False)}")
            raise SystemExit(0)
        if stray:
            raise UsageError(f"Unexpected argument {stray[0]!r}: values follow their flag, as in --seed 1.")
        return self.values


def choose_platform(platform: str | None) -> None:
    """Makes JAX use `platform` ("cpu", "gpu", "tpu"), or its own choice for None.

    Raises:
      UsageError: that platform, or the one JAX_PLATFORMS names, is not there.
    """
    import jax

    if platform:
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(platform, platform))
    try:
        jax.devices()
    except RuntimeError as error:
        asked = platform or os.environ.get("JAX_PLATFORMS", "the platform")
        extra = {"gpu": "cuda", "cuda": "cuda", "tpu": "tpu"}.get(asked)
        install = f" Install it with pip install -e '.[{extra}]' where there is one, or" if extra else " Or"
        raise UsageError(
            f"{asked} was asked for, but JAX finds no such device here.{install} use --platform cpu."
        ) from (error)


def run(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Calls main(arguments) and returns the exit code: 2 for a user's mistake, 1 for a failure, one sentence each."""
    try:
        return main(sys.argv[1:] if argv is None else argv)
    except (UsageError, FailureError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else FAILURE
