"""The two errors a command reports as one sentence, and the look-up that suggests the nearest valid name.

Every other exception is a defect of the package and keeps its traceback.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class UsageError(ValueError):
    """The user asked for something that cannot be: a command prints the sentence and exits with 2."""


class FailureError(RuntimeError):
    """The world failed us, say a full disk or a diverged loss: a command prints the sentence and exits with 1."""


def suggest(name: str, valid: Iterable[str]) -> str:
    """Returns " Did you mean 'linear'?" for the valid name nearest to `name`, or "" when none is near."""
    near = difflib.get_close_matches(name, list(valid), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def choose(kind: str, name: str, table: Mapping[str, T], *, hint: str = "") -> T:
    """Returns `table[name]`.

    Args:
      kind: what the table holds, for the message: "beta schedule".
      name: the user's choice.
      table: the valid choices.
      hint: what to say of a name that is not among them, where something is known of it.

    Raises:
      UsageError: `name` is not in the table; the sentence lists the valid names and suggests the nearest.
    """
    if name not in table:
        valid = ", ".join(sorted(table))
        raise UsageError(f"Unknown {kind} {name!r}: choose one of {valid}.{hint or suggest(str(name), table)}")
    return table[name]
