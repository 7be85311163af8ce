"""Type annotations read at run time: the members of a union, the elements of a tuple."""

import contextlib
import numbers
import re
import types
import typing
from collections.abc import Callable
from typing import Any

_NUMERALS = re.compile(r"[-+0-9.,_eE]+")


def convert_first(kinds: tuple[Any, ...], convert: Callable[[Any, Any], Any], value: Any) -> Any:
    """Convert the value to the first kind that fits; raise what the last one raises."""
    for kind in kinds[:-1]:
        with contextlib.suppress(ValueError):
            return convert(kind, value)
    return convert(kinds[-1], value)


def union_members(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union: (int, None) of `int | None`."""
    of_several = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if of_several else (hint,)


def tuple_elements(kind: Any) -> tuple[Any, ...]:
    """Return the types of the elements of a tuple: (int, str) of `tuple[int | str, ...]`."""
    return union_members(typing.get_args(kind)[0])


def tuple_length(kind: Any) -> int | None:
    """Return the length of a tuple of this type; None for any length."""
    arguments = typing.get_args(kind)
    return None if Ellipsis in arguments else len(arguments)


def name_of(function: Callable[..., Any]) -> str:
    """Return module and qualified name of a function, module:function, or of an object's class."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def format_number(value: Any) -> str:
    """Write a number as the text of a flag, without rounding; "" if it is not a number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return ""
    return str(int(value)) if isinstance(value, numbers.Integral) else repr(float(value))


def format_flag_value(value: Any) -> str:
    """Return the text of a flag, or a Python value, in the form that messages show."""
    return value if isinstance(value, str) and _NUMERALS.fullmatch(value) else repr(value)
