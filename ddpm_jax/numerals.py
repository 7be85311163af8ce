"""Numbers written by a user, in a flag or a list: one notation and one error for all.

Python accepts more than is meant by a number: digits of every script, NaN, infinity, and a thousand
digits. A whole number here is ASCII digits, optionally with a sign and with underscores between
digits, as in 50_000; any other number is a finite decimal.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
Valid = Callable[[float], bool]

_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_WHOLE = re.compile(rf"[+-]?{_DIGITS}")
_DECIMAL = re.compile(rf"[+-]?(?:{_DIGITS}\.?(?:{_DIGITS})?|\.{_DIGITS})(?:[eE][+-]?{_DIGITS})?")
_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_LONGEST = 400  # characters; the largest finite double has 309 digits


def is_whole(text: str) -> bool:
    """Return whether a text is ASCII digits only, as in the name of a checkpoint."""
    return text.isascii() and text.isdecimal()


def whole_number(text: str, *, lower: int, upper: int) -> int:
    """Read a whole number in [lower, upper].

    Raises:
      ValueError: it is not one, or outside; the message says what it must be.
    """
    text = text.strip()
    value = int(text) if len(text) <= _LONGEST and _WHOLE.fullmatch(text) else None
    if value is None or not lower <= value <= upper:
        raise ValueError(f"it must be a whole number in {lower}..{upper}")
    return value


def whole_numbers(text: str, *, lower: int, upper: int, count: int | None = None) -> list[int]:
    """Read whole numbers in [lower, upper] separated by commas, `count` of them.

    Raises:
      ValueError: as `whole_number`, or their number is not `count`.
    """
    read = functools.partial(whole_number, lower=lower, upper=upper)
    return _read_list(text, read, count, f"whole numbers in {lower}..{upper}")


def number(text: str, *, valid: Valid = lambda value: True, wanted: str = "") -> float:
    """Read a finite number.

    Args:
      text: decimal, perhaps with an exponent.
      valid: whether a number is accepted.
      wanted: the same in words, for the message: "above 0".

    Raises:
      ValueError: it is not one, or not valid; the message says what it must be.
    """
    text = text.strip()
    value = float(text) if len(text) <= _LONGEST and _DECIMAL.fullmatch(text) else math.nan
    if not (math.isfinite(value) and valid(value)):
        raise ValueError(f"it must be a number {wanted}".rstrip())
    return value


def numbers(
    text: str, *, valid: Valid = lambda value: True, wanted: str = "", count: int | None = None
) -> list[float]:
    """Read finite numbers separated by commas, `count` of them, as `number` does.

    Raises:
      ValueError: as `number`, or their number is not `count`.
    """
    return _read_list(
        text, functools.partial(number, valid=valid), count, f"numbers {wanted}".rstrip()
    )


def boolean(text: str) -> bool:
    """Read true or false, also as t, f, 1 or 0.

    Raises:
      ValueError: it is neither; the message says what it must be.
    """
    value = _BOOLEANS.get(text.strip().lower())
    if value is None:
        raise ValueError("it must be true or false")
    return value


def _read_list(text: str, read: Callable[[str], T], count: int | None, what: str) -> list[T]:
    parts = text.split(",")
    try:
        values = [read(part) for part in parts]
    except ValueError:
        values = []
    if not values or count not in (None, len(values)):
        raise ValueError(
            f"it must be {'' if count is None else f'{count} '}{what} separated by commas"
        )
    return values
