"""A field of the config: its metadata, how its text is read, and which values are refused."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from ddpm_jax import numerals
from ddpm_jax.errors import suggest
from ddpm_jax.limits import MAX_STEP


class Multiple:
    """A number of units: the whole number where it is one, 2 and not 2.0."""

    def __new__(cls, value: float) -> float:
        """Return `value`, of type int or float."""
        return int(value) if float(value).is_integer() else float(value)


_WANTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    (int,): "whole numbers separated by commas, or () for none",
    (float,): "numbers separated by commas, or () for none",
    (Multiple,): "numbers separated by commas",
}


class Owner(NamedTuple):
    """The models that have a field: those whose `field` is one of `values`, or is set at all."""

    field: str
    values: tuple[str, ...] = ()

    def has(self, config: Mapping[str, Any]) -> bool:
        """Return whether a config, every field by its dotted name, describes such a model."""
        value = config[self.field]
        return value in self.values if self.values else bool(value)


def only(field: str, *values: str) -> tuple[Owner, ...]:
    """Return the owner of fields for models whose `field` is one of `values`, or is set at all."""
    return (Owner(field, values),)


class Range(NamedTuple):
    """The range of a number."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def has(self, value: float) -> bool:
        """Return whether a number lies in the range."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def wanted(self, value: float) -> str:
        """Say what a number outside of the range must be: "at least 1", "in [0, 1)"."""
        low = self.at_least if self.above is None else self.above
        high = self.at_most if self.below is None else self.below
        if high is not None and (self.above is not None or self.below is not None):
            ends = "[("[self.at_least is None], "])"[self.at_most is None]
            return f"in {ends[0]}{low:.4g}, {high:.4g}{ends[1]}"
        if self.at_most is not None and value > self.at_most:
            return f"at most {self.at_most}"
        return f"at least {low}" if self.above is None else f"above {low}"


ANY, POSITIVE, SHARE = Range(), Range(above=0), Range(at_least=0, below=1)


def at_least(low: int, at_most: int | None = None) -> Range:
    """Return the range from `low`, to `at_most` if given."""
    return Range(at_least=low, at_most=at_most)


def up_to(at_most: int) -> Range:
    """Return the range from 1 to `at_most`."""
    return Range(at_least=1, at_most=at_most)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """A field of the config; see `field`."""

    default: Any
    gloss: str
    choices: Collection[Any]
    range: Range
    longest: int | None
    resumable: bool | None  # None: as its group says
    owners: tuple[Owner, ...]
    kind: type
    item: type | None  # of a tuple's values
    optional: bool  # it may be None
    name: str = ""  # dotted: "model.ch"

    @property
    def wanted(self) -> str:
        """Return what a value must be, in words: "a whole number"; "" for a text."""
        return _WANTED.get((self.item,) if self.item else self.kind, "")

    def parse(self, text: str) -> Any:
        """Read a value on a command line: true, 64, 1e-4, "1,2,2" or "(1,2,2)", a name, None.

        Raises:
          ValueError: it is of another type.
        """
        if self.optional and text.strip().lower() == "none":
            return None
        if not self.item:
            return _parse(self.kind, text)
        inside, text = _unwrapped(text.strip()), text.strip()
        if not inside and text:
            return ()
        return tuple(_parse(self.item, part) for part in inside.removesuffix(",").split(","))

    def fit(self, value: Any) -> Any:
        """Return a Python value as the config keeps it: a tuple for a list, a float for an int.

        Raises:
          ValueError: it is of another type.
        """
        if value is None and self.optional:
            return None
        if not self.item:
            return _fit(self.kind, value)
        if not isinstance(value, list | tuple):
            raise ValueError(value)
        return tuple(_fit(self.item, item) for item in value)

    def complaint(self, value: Any) -> str | None:
        """Say what a value of the right type must be instead; None for a good one."""
        if value is None:
            return None
        if self.choices:
            return None if value in self.choices else self._choose(value)
        if self.item:
            return self._complaint_of_items(value)
        if self.kind not in (int, float):
            return None
        if not math.isfinite(value):
            return "it must be a finite number."
        return None if self.range.has(value) else f"it must be {self.range.wanted(value)}."

    def _choose(self, value: Any) -> str:
        names = [str(choice) for choice in self.choices]
        if self.kind is not str:
            return f"it must be {' or '.join(names)}."
        return f"choose one of {', '.join(names)}.{suggest(value, names)}"

    def _complaint_of_items(self, values: tuple[Any, ...]) -> str | None:
        largest = self.range.at_most or self.range.below
        if self.longest and len(values) > self.longest:
            return f"it must be at most {self.longest} numbers of up to {largest:.4g}."
        bad = next((value for value in values if not self.range.has(value)), None)
        if bad is None:
            return None
        wanted = self.range.wanted(bad)
        what = "whole numbers" if self.item is int else "numbers"
        return f"it must be {what} {'of ' if wanted.startswith('at ') else ''}{wanted}."


def field(
    default: Any,
    gloss: str,
    values: Range | Collection[Any] = ANY,
    *,
    kind: type | None = None,
    longest: int | None = None,
    resumable: bool | None = None,
    of: tuple[Owner, ...] = (),
) -> Any:
    """Declare a field in a class that is a group of them; its type is that of the default.

    Args:
      default: its value where a config file sets none.
      gloss: what it means, in a line.
      values: the range of a number, or of each number of a tuple; or the names it may be.
      kind: the type of a value that may also be None, or of the numbers of a tuple.
      longest: how many numbers a tuple may have.
      resumable: whether a run may be resumed with another value: it changes neither the model nor
        what is drawn.
      of: the models that have it (`only`), where not all have.
    """
    is_tuple, optional = isinstance(default, tuple), default is None
    of_default = type(default[0]) if is_tuple and default else type(default)
    kind = kind or of_default
    in_range = isinstance(values, Range)
    limits = values if in_range else ANY
    if kind is int and limits.at_most is None:
        limits = limits._replace(at_most=MAX_STEP)  # what a device counts has 32 bits
    return Field(
        default=default,
        gloss=gloss,
        choices=() if in_range else values,
        range=limits,
        longest=longest,
        resumable=resumable,
        owners=of,
        kind=tuple if is_tuple else kind,
        item=kind if is_tuple else None,
        optional=optional,
    )


def choices(values: str | Collection[Any]) -> Collection[Any]:
    """Return the values that a field may have: the words of a text, or keys with descriptions."""
    return tuple(values.split()) if isinstance(values, str) else values


def list_fields(prefix: str, group: type) -> list[Field]:
    """Return the fields of a class by their dotted names, with its OF and RESUMABLE, if any."""
    of, resumable = getattr(group, "OF", ()), getattr(group, "RESUMABLE", False)
    return [
        dataclasses.replace(
            spec,
            name=prefix + name,
            owners=of + spec.owners,
            resumable=resumable if spec.resumable is None else spec.resumable,
        )
        for name, spec in vars(group).items()
        if isinstance(spec, Field)
    ]


def _unwrapped(text: str) -> str:
    return text[1:-1].strip() if text[:1] + text[-1:] in ("()", "[]") else text


def _parse(kind: type, text: str) -> Any:
    if kind is bool:
        return numerals.boolean(text)
    if kind is int:
        # its range is the matter of `complaint`, which names the limit
        return numerals.whole_number(text, lower=-math.inf, upper=math.inf)
    return kind(numerals.number(text)) if kind in (float, Multiple) else text


def _fit(kind: type, value: Any) -> Any:
    allowed = (int, float) if kind in (float, Multiple) else kind
    if not isinstance(value, allowed) or (kind is not bool and isinstance(value, bool)):
        raise ValueError(value)
    try:
        return kind(value) if kind in (float, Multiple) else value
    except OverflowError as error:
        raise ValueError(value) from error
