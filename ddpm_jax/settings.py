"""Settings: frozen records whose fields carry default, meaning and range, for Python and flags.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Guidance(Settings, prefix="guidance_"):
        scale: float = setting(1.0, "How far to push towards the class.", lower=0, upper=1_000_000)
        interval: tuple[float, float] | None = setting(None, "Only at these noise levels.")

`Guidance(scale=-1)` raises "guidance_scale is -1: it must be a number in 0..1000000.", and so does
`settings_in(Guidance)[0].parse("-1")`, with which a command line reads a flag. The annotation gives
the type: int, float, str, bool, a tuple, one of these `| None`, or a union such as `str |
tuple[int, ...]`, whose first fitting member is taken. A field declared without `setting` is neither
checked nor a flag; it may hold another record.
"""

import contextlib
import dataclasses
import functools
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, ClassVar

from ddpm_jax import annotations, numerals
from ddpm_jax.errors import UsageError, choose, suggest
from ddpm_jax.files import check_length

_LARGEST = 2**31 - 1  # for a whole number without a range of its own
_METAVARS = {int: "N", float: "X", str: "NAME"}


def setting(
    default: Any,
    help: str,
    *,
    choices: Collection[str] = (),
    lower: float | None = None,
    upper: float | None = None,
    valid: numerals.Valid | None = None,
    wanted: str = "",
    metavar: str | None = None,
    kind: str = "",
    flag: str | None = None,
    path: bool = False,
    prose: bool = False,
    read: Callable[[str], Any] | None = None,
) -> Any:
    """Declare a field of a `Settings` record.

    Args:
      default: its value if none is given; it is not checked.
      help: what it means, in a sentence.
      choices: the valid names of a text.
      lower, upper: the range of a number, both ends included, or of each number of a tuple.
      valid: for another range, whether a number is in it.
      wanted: the same in words: "above 0 and at most 1".
      metavar: placeholder of the value in the help; by default N, X, NAME or FILE.
      kind: of what the choices are, for messages: "format"; by default its name.
      flag: its name in flags and messages; by default the record's prefix and the field's name.
      path: whether a text names a file or directory; the paths of a tuple are separate words.
      prose: whether the field is a tuple of texts of any kind, also empty ones; a flag may be given
        several times, each with one of them.
      read: parses a flag's text instead of the annotation; raises ValueError.
    """
    low, high = -_LARGEST if lower is None else lower, _LARGEST if upper is None else upper
    if valid is None and (lower, upper) != (None, None):
        valid, wanted = (lambda value: low <= value <= high), f"in {low}..{high}"
    spec = Setting(
        default=default,
        help=help,
        choices=tuple(choices),
        lower=low,
        upper=high,
        valid=valid or (lambda value: True),
        wanted=wanted,
        metavar=metavar or "",
        kind=kind,
        name=flag or "",
        is_path=path,
        is_prose=prose,
        read=read,
    )
    return dataclasses.field(default=default, metadata={"setting": spec})


@dataclasses.dataclass(frozen=True)
class Setting:
    """A declared field, for command lines and messages; see `setting`."""

    default: Any
    help: str
    choices: tuple[str, ...]
    lower: float
    upper: float
    valid: numerals.Valid
    wanted: str
    metavar: str
    kind: str  # of what there are choices, for messages; "": its name
    name: str  # of the flag, and in messages
    is_path: bool
    is_prose: bool
    read: Callable[[str], Any] | None
    field: str = ""  # name in the record
    kinds: tuple[Any, ...] = (Any,)  # a value has one of these types
    optional: bool = False  # it may be None

    @property
    def is_switch(self) -> bool:
        """Whether the flag takes no value."""
        return self.kinds == (bool,)

    @property
    def words(self) -> int:
        """The number of words after the flag: two for a path in `tuple[str, str]`."""
        if self.is_switch:
            return 0
        return (annotations.tuple_length(self.kinds[0]) or 1) if self.is_path else 1

    def parse(self, *texts: str) -> Any:
        """Parse the text of a flag, or its `words` texts; of prose, those of all its flags.

        Raises:
          UsageError: it is no value of this setting; the sentence says what would be.
        """
        if self.is_prose:
            return self.check(texts)
        text = ",".join(texts)
        with self._named(text):
            if self.read is not None:
                return self.read(text)
            if self.words > 1:
                return tuple(self._name(text) for text in texts)
            return annotations.convert_first(self.kinds, self._read_text, text)

    def check(self, value: Any) -> Any:
        """Return a Python value as the field keeps it: a tuple for a list, a float for an int.

        Raises:
          UsageError: it is no value of this setting; the sentence says what would be.
        """
        if value is None and self.optional:
            return None
        with self._named(value):
            if self.is_prose:
                return _prose(value)
            return annotations.convert_first(self.kinds, self._convert_value, value)

    @contextlib.contextmanager
    def _named(self, value: Any) -> Iterator[None]:
        """Prefix the setting's name to an error that lacks its subject."""
        try:
            yield
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(
                f"{self.name} is {annotations.format_flag_value(value)}: {error}."
            ) from None

    def _read_text(self, kind: Any, text: str) -> Any:
        if kind is bool:
            return numerals.boolean(text)
        if kind is int:
            return numerals.whole_number(text, lower=self.lower, upper=self.upper)
        if kind is float:
            return numerals.number(text, valid=self.valid, wanted=self.wanted)
        if typing.get_origin(kind) is not tuple:
            return self._name(text)
        elements, count = annotations.tuple_elements(kind), annotations.tuple_length(kind)
        if elements == (int,):
            lower, upper = self.lower, self.upper
            return tuple(numerals.whole_numbers(text, lower=lower, upper=upper, count=count))
        if elements == (float,):
            valid, wanted = self.valid, self.wanted
            return tuple(numerals.numbers(text, valid=valid, wanted=wanted, count=count))
        return self._counted(
            kind,
            [
                annotations.convert_first(elements, self._read_text, part.strip())
                for part in text.split(",")
            ],
        )

    def _convert_value(self, kind: Any, value: Any) -> Any:
        if kind is bool and not isinstance(value, bool):
            raise ValueError("it must be true or false")
        if kind in (int, float):
            return self._read_text(kind, annotations.format_number(value))
        if kind is str:
            if not isinstance(value, str | os.PathLike):
                raise ValueError("it must be a text")
            return self._name(os.fspath(value))
        if typing.get_origin(kind) is Callable:
            if not callable(value):
                raise ValueError("it must be a text or a function")
            return value
        if typing.get_origin(kind) is not tuple:
            return value
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise ValueError("it must be a list or tuple")
        return self._counted(
            kind,
            [
                annotations.convert_first(annotations.tuple_elements(kind), self._convert_value, v)
                for v in value
            ],
        )

    def _counted(self, kind: Any, values: list[Any]) -> tuple[Any, ...]:
        if not values or annotations.tuple_length(kind) not in (None, len(values)):
            raise ValueError(
                f"it must be {annotations.tuple_length(kind) or 'some'} values separated by commas"
            )
        return tuple(values)

    def _name(self, text: str) -> str:
        if text == self.default:
            return text
        if not text.strip():
            example = f"as in {self.metavar}, " if self.metavar else ""
            raise UsageError(f"{self.name} is empty: give it a value, {example}or leave it out.")
        if self.choices:
            choose(self.kind or self.name.replace("_", " "), text, dict.fromkeys(self.choices))
        if self.is_path:
            check_length(text)
        return text


class Settings:
    """Base of frozen dataclasses of settings; the class keyword `prefix` begins their flags."""

    prefix: ClassVar[str] = ""

    def __init_subclass__(cls, prefix: str = "", **keywords: Any):
        super().__init_subclass__(**keywords)
        cls.prefix = prefix

    def __post_init__(self) -> None:
        """Check every field; raise UsageError for an invalid value."""
        for spec in settings_in(type(self)):
            value = getattr(self, spec.field)
            if value is not spec.default:
                object.__setattr__(self, spec.field, spec.check(value))

    def record(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, by name, as plain JSON data."""
        record = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                record[field.name] = _plain(value)
        return record


def field_names(record: type[Settings]) -> list[str]:
    """Return the names of a record's fields, in their order."""
    return [field.name for field in dataclasses.fields(record)]


def check_names(known: Sequence[str], names: Iterable[str], refusal: str) -> None:
    """Refuse names that are no settings, as of arguments in a Python call.

    Args:
      known: the settings, as in `field_names` of their record.
      names: of settings.
      refusal: how the sentence begins, before the name: "There is no setting".

    Raises:
      UsageError: an unknown name; the nearest is suggested.
    """
    for name in names:
        if name not in known:
            raise UsageError(
                f"{refusal} {name}.{suggest(name, known)} The settings are {', '.join(known)}."
            )


@functools.cache
def settings_in(record: type[Settings]) -> tuple[Setting, ...]:
    """Return the settings of a record in the order of its fields, with the names of their flags."""
    hints = typing.get_type_hints(record)
    declared = (field for field in dataclasses.fields(record) if "setting" in field.metadata)
    return tuple(_complete(record, field, hints[field.name]) for field in declared)


def _complete(record: type[Settings], field: dataclasses.Field, hint: Any) -> Setting:
    """Return the setting of a field, completed from its name and annotation."""
    spec, members = field.metadata["setting"], annotations.union_members(hint)
    of = tuple(kind for kind in members if kind is not types.NoneType)
    metavar = spec.metavar or ("FILE" if spec.is_path else _METAVARS.get(of[0], ""))
    name = spec.name or record.prefix + field.name
    optional = types.NoneType in members
    return dataclasses.replace(
        spec, name=name, metavar=metavar, field=field.name, kinds=of, optional=optional
    )


def _prose(value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not texts:
        raise ValueError("it must be a text, or a list of texts")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("every one must be a text")
    if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
        raise ValueError("it is no text in UTF-8")
    return tuple(texts)


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.record()
    if callable(value):
        return annotations.name_of(value)
    return list(value) if isinstance(value, tuple) else value
