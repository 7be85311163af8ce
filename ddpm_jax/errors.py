"""The two errors a command reports as one sentence, and the look-up that suggests the nearest valid
name.

Every other exception is a defect of the package and keeps its traceback.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import TextIO, TypeVar

T = TypeVar("T")
LONGEST = 2000  # characters of a sentence: a name in a foreign file may have a million


class UsageError(ValueError):
    """The user asked for something that cannot be: a command prints the sentence and exits with
    2."""


class FailureError(RuntimeError):
    """The world failed us, say a full disk or a diverged loss: a command prints the sentence and
    exits with 1."""


def visible(text: str, *, lines: bool = False) -> str:
    r"""Return `text` with what a terminal obeys instead of showing it written out: \x1b, \u202e,
    \n.

    Names and values in a stranger's file may hold such characters. With `lines` a newline stays
    one.
    """
    if lines:
        return "\n".join(map(visible, text.split("\n")))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def sentence(error: Exception) -> str:
    """What a command prints of an error: one line that a terminal shows as it is, and not an
    endless one."""
    text = visible(str(error))
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} [...] {text[-LONGEST // 2 :]}"


def say(text: object, file: TextIO | None = None) -> None:
    """Print a text of one or more lines, which a terminal shows as it is, to `file`, by default
    standard output."""
    print(visible(str(text), lines=True), file=file)


def suggest(name: str, valid: Iterable[str]) -> str:
    """Return " Did you mean 'linear'?" for the valid name nearest to `name`, or "" when none is
    near."""
    near = difflib.get_close_matches(name, list(valid), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def choose(kind: str, name: str, table: Mapping[str, T], *, hint: str = "") -> T:
    """Return `table[name]`.

    Args:
      kind: what the table holds, for the message: "beta schedule".
      name: the user's choice.
      table: the valid choices.
      hint: what to say of a name that is not among them, where something is known of it.

    Raises:
      UsageError: `name` is not in the table; the sentence lists the valid names and suggests the
        nearest.
    """
    if name not in table:
        valid = ", ".join(sorted(table))
        raise UsageError(
            f"Unknown {kind} {name!r}: choose one of {valid}.{hint or suggest(str(name), table)}"
        )
    return table[name]
