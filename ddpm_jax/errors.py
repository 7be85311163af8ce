"""The two errors that a command reports as one sentence, and suggestions of valid names.

Every other exception is a defect of the package and keeps its traceback.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import TextIO, TypeVar

T = TypeVar("T")
LONGEST = 2000  # characters of a sentence: a name in a foreign file may have a million


class UsageError(ValueError):
    """The user's request is invalid: a command prints the sentence and exits with 2."""


class FailureError(RuntimeError):
    """Something outside failed, say a full disk: a command prints the sentence and exits with 1."""


def visible(text: str, *, lines: bool = False) -> str:
    r"""Return `text` with control characters escaped: \x1b, \u202e, \n.

    Names and values in an untrusted file may hold such characters. With `lines` newlines are kept.
    """
    if lines:
        return "\n".join(map(visible, text.split("\n")))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def sentence(error: Exception) -> str:
    """Return the printable form of an error's message: one line of bounded length."""
    text = visible(str(error))
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} [...] {text[-LONGEST // 2 :]}"


def say(text: object, file: TextIO | None = None) -> None:
    """Print printable text of one or more lines to `file`, by default standard output."""
    print(visible(str(text), lines=True), file=file)


def suggest(name: str, valid: Iterable[str]) -> str:
    """Return " Did you mean 'linear'?" for the nearest valid name, or "" if none is near."""
    folded = {each.casefold(): each for each in valid}
    near = difflib.get_close_matches(name, folded.values(), n=1) or [
        folded[each] for each in difflib.get_close_matches(name.casefold(), folded, n=1)
    ]
    return f" Did you mean {near[0]!r}?" if near else ""


def choose(kind: str, name: str, table: Mapping[str, T], *, hint: str = "") -> T:
    """Return `table[name]`.

    Args:
      kind: what the table holds, for the message: "beta schedule".
      name: the user's choice.
      table: the valid choices.
      hint: a sentence about an invalid name, instead of the suggestion.

    Raises:
      UsageError: `name` is not in the table; the message lists the valid names and suggests the
        nearest.
    """
    if name not in table:
        valid = ", ".join(sorted(table))
        raise UsageError(
            f"Unknown {kind} {name!r}: choose one of {valid}.{hint or suggest(str(name), table)}"
        )
    return table[name]


def plural(count: int, noun: str) -> str:
    """Return "1 draw" or "2 draws"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
