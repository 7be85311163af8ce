"""What an annotation says of a value: what kinds it may be, and of what a tuple consists."""

import contextlib
import numbers
import re
import types
import typing
from collections.abc import Callable
from typing import Any

_NUMERALS = re.compile(r"[-+0-9.,_eE]+")


def first(kinds: tuple[Any, ...], convert: Callable[[Any, Any], Any], value: Any) -> Any:
    """Return the value as the first kind that fits; raises what the last one does."""
    for kind in kinds[:-1]:
        with contextlib.suppress(ValueError):
            return convert(kind, value)
    return convert(kinds[-1], value)


def members(hint: Any) -> tuple[Any, ...]:
    """Return the kinds that an annotation joins: (int, None) of `int | None`."""
    of_several = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if of_several else (hint,)


def elements(kind: Any) -> tuple[Any, ...]:
    """Return the kinds that the values of a tuple may be: (int, str) of `tuple[int | str, ...]`."""
    return members(typing.get_args(kind)[0])


def count(kind: Any) -> int | None:
    """Return how many values a tuple of this kind has; None for any number."""
    arguments = typing.get_args(kind)
    return None if Ellipsis in arguments else len(arguments)


def numeral(value: Any) -> str:
    """Write a number as a flag's text, which stands for the same number; "" where it is none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return ""
    return str(int(value)) if isinstance(value, numbers.Integral) else repr(float(value))


def shown(value: Any) -> str:
    """Return a flag's text or a Python value as a sentence quotes it."""
    return value if isinstance(value, str) and _NUMERALS.fullmatch(value) else repr(value)
