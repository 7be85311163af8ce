"""JSON from untrusted files: plain data of the expected kind, or half a sentence why not.

A kind is `Whole`, `Number`, `Text`, `Table` or, for anything, None. Data of every kind is bounded:
in bytes, depth and the size of whole numbers, and every number is finite. The caller completes the
sentence.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

LARGEST = 16 << 20  # bytes of a text
DEEPEST = 32  # levels of nested lists and objects
WHOLE = 2**63 - 1  # the largest 64-bit integer
_DIGITS = 20  # of a whole number as text, its sign included
_SHOWN = 40  # characters of a value in a message
_ABSENT = object()


class Malformed(ValueError):
    """Data is not of its kind; the message is half a sentence.

    For example "its seed is null, and ... is expected".
    """


class Whole(NamedTuple):
    """A whole number in a range; true and 1.0 are not accepted."""

    low: int = 0
    high: int = WHOLE

    def __str__(self) -> str:
        return (
            str(self.low) if self.low == self.high else f"a whole number in {self.low}..{self.high}"
        )


class Number(NamedTuple):
    """A number, whole or not; or null where `null` is true."""

    null: bool = False

    def __str__(self) -> str:
        return "a number"


class Text(NamedTuple):
    """A string that matches the whole pattern."""

    pattern: str = "(?s:.*)"

    def __str__(self) -> str:
        return "a text"


class Table(NamedTuple):
    """An object with `required` fields, perhaps `optional` ones, and others of kind `others`."""

    required: Mapping[str, Any] = {}
    optional: Mapping[str, Any] = {}
    others: Any = None

    def __str__(self) -> str:
        return "an object"


SHA256 = Text("[0-9a-f]{64}")
Kind = Whole | Number | Text | Table | None


def parse(data: bytes, kind: Kind = None, *, largest: int = LARGEST) -> Any:
    """Parse JSON to plain dicts, lists, strings and numbers.

    Raises:
      Malformed: it is longer than `largest` bytes, not JSON, beyond the bounds above, or not of
        this kind.
    """
    if len(data) > largest:
        raise Malformed(f"it has more than {largest:,} bytes")
    try:
        value = json.loads(data, parse_int=_whole, parse_constant=_refuse_constant)
    except RecursionError:
        raise Malformed("it is nested too deeply") from None
    except Malformed:
        raise
    except ValueError as error:
        raise Malformed(f"it is no JSON ({error})") from None
    _check_plain(value, DEEPEST)
    check(value, kind)
    return value


def check(value: Any, kind: Kind, name: str = "") -> None:
    """Refuse plain data that is not of a kind; `name` is its path, "" for the whole.

    Raises:
      Malformed: see the class.
    """
    match kind:
        case None:
            good = True
        case Whole(low, high):
            good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        case Number(null):
            good = (isinstance(value, int | float) and not isinstance(value, bool)) or (
                null and value is None
            )
        case Text(pattern):
            good = isinstance(value, str) and re.fullmatch(pattern, value) is not None
        case Table():
            good = isinstance(value, dict)
    if not good:
        raise Malformed(
            f"{f'its {name}' if name else 'it'} is {format_value(value)}, and {kind} is expected"
        )
    if isinstance(kind, Table):
        for field in kind.required:
            if field not in value:
                raise Malformed(f"it has no {_dotted(name, field)}")
        for field, item in value.items():
            check(
                item,
                kind.required.get(field, kind.optional.get(field, kind.others)),
                _dotted(name, field),
            )


def differing(found: Any, wanted: Any, name: str = "") -> dict[str, tuple[str, str]]:
    """Return name -> (there, here), as text, for all differences between plain data.

    Fields of nested objects have dotted names, {"guidance.scale": ("2.0", "3.0")}; a missing field
    is "absent", unless it is null in the other; a SHA-256 is abbreviated.
    """
    if not (isinstance(found, dict) and isinstance(wanted, dict)):
        return {} if found == wanted else {name: (format_value(found), format_value(wanted))}
    pairs = {
        field: (found.get(field, _ABSENT), wanted.get(field, _ABSENT))
        for field in {**found, **wanted}
    }
    return {
        dotted: texts
        for field, pair in pairs.items()
        if not all(value is None or value is _ABSENT for value in pair)
        for dotted, texts in differing(*pair, _dotted(name, field)).items()
    }


def format_value(value: Any) -> str:
    """Return a short, printable form of a value for a sentence."""
    if value is _ABSENT:
        return "absent"
    if isinstance(value, str) and re.fullmatch(SHA256.pattern, value):
        return f"{value[:12]}..."
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _dotted(name: str, field: str) -> str:
    field = field if field.isprintable() and len(field) <= _SHOWN else format_value(field)
    return f"{name}.{field}" if name else field


def _whole(text: str) -> int:
    if len(text) > _DIGITS or abs(int(text)) > WHOLE:
        raise Malformed(f"it holds a whole number of {len(text.lstrip('-'))} digits")
    return int(text)


def _refuse_constant(text: str) -> float:
    raise Malformed(f"it holds {text}, and JSON has finite numbers only")


def _check_plain(value: Any, deepest: int) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise Malformed("it holds a number beyond the largest float")
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
        raise Malformed("it holds half of a character")
    if isinstance(value, dict | list):
        if not deepest:
            raise Malformed("it is nested too deeply")
        for item in value.values() if isinstance(value, dict) else value:
            _check_plain(item, deepest - 1)
        for key in value if isinstance(value, dict) else ():
            _check_plain(key, 0)
