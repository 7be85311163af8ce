"""`ddpm-jax verify DIR`: the checks of an imported run's certificate, again.

    ddpm-jax verify runs/church
    ddpm-jax verify runs/church --source google_ddpm-church-256

Compared are the weights of the run with the digest in certificate.json; the tensors of the source,
read and written back, with theirs, if the source is still there; and what the model makes of one
seed. The exit code is 1 where anything differs.
"""

import dataclasses
import sys
from collections.abc import Sequence

from ddpm_jax.cli.arguments import Parser
from ddpm_jax.cli.command import FAILURE, run
from ddpm_jax.cli.shared_flags import prepare
from ddpm_jax.errors import UsageError, say
from ddpm_jax.settings import Settings, setting
from ddpm_jax.tasks.verification import verify


@dataclasses.dataclass(frozen=True)
class Command(Settings):
    """What to verify"""

    source: str | None = setting(
        None, "The files it was read from, if they are elsewhere now.", path=True, metavar="PATH"
    )


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code; see `command.run` for the errors."""
    flags = Parser(__doc__, Command, words=True).parse(argv)
    if len(flags.words) != 1:
        raise UsageError(
            "Name the directory of an imported run, as in ddpm-jax verify runs/church."
        )
    prepare(flags)
    checks = verify(flags.words[0], flags.source)
    for check in checks:
        say(f"{check.what}: {check.outcome}")
    return 0 if all(check.is_good for check in checks) else FAILURE


if __name__ == "__main__":
    sys.exit(run(main))
