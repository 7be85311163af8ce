"""A command's flags, built from settings records by argparse.

A record's fields carry name, range and meaning (`ddpm_jax.settings`). Here they become flags and
help texts, and parsed flags become records. Other libraries' names of flags are in `flag_synonyms`.
"""

import argparse
import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, TypeVar

from ddpm_jax.cli.flag_synonyms import FLAGS
from ddpm_jax.errors import UsageError, suggest
from ddpm_jax.experiments.config import check_field, field_called
from ddpm_jax.experiments.field_synonyms import ours
from ddpm_jax.settings import Setting, Settings, setting, settings_in

NOWHERE = "none"  # a --compilation_cache that keeps nothing
CONFIG = "config."  # prefix of the flags that set a field of the config
_HELP_COLUMN = 28
_WITHOUT_DOCSTRINGS = (
    "This Python drops the text of the help (-OO): run it without that to read it."
)
Record = TypeVar("Record", bound=Settings)


@dataclasses.dataclass(frozen=True)
class Devices(Settings):
    """Where and how to compute"""

    platform: str | None = setting(
        None,
        "Where to compute; by default the best device there is.",
        choices=("cpu", "gpu", "tpu"),
        metavar="cpu|gpu|tpu",
    )
    compilation_cache: str | None = setting(
        None,
        "Keep compiled programs there: the next process with the same model and devices starts "
        "without compiling them. By default compiled in $DDPM_JAX_CACHE, else ddpm_jax/compiled in "
        f"the user's cache directory, of at most 2 GiB; {NOWHERE} for nowhere.",
        path=True,
        metavar="DIR",
    )


class Flags(argparse.Namespace):
    """The values of a command's flags by name, with defaults for those not given.

    Attributes:
      given: the names of those that were given.
      words: what follows no flag.
      fields: dotted name of a field of the config -> the text that it was given.
    """

    given: frozenset[str]
    words: tuple[str, ...]
    fields: dict[str, str]

    def make(self, record: type[Record], **others: Any) -> Record:
        """Make a settings record from the flags of its fields; `others` have no flag.

        A field whose flag the command lacks keeps its default.
        """
        there = [spec for spec in settings_in(record) if hasattr(self, spec.name)]
        values = {spec.field: getattr(self, spec.name) for spec in there}
        held = {name: self.make(type(default)) for name, default in _held(record).items()}
        return record(**values | held | others)

    def by_name(self) -> dict[str, Any]:
        """Return every flag's value, by "--name"."""
        others = ("given", "words", "fields")
        return {f"--{name}": value for name, value in vars(self).items() if name not in others}


class _ArgumentParser(argparse.ArgumentParser):
    """An argparse parser that raises our errors."""

    def error(self, message: str) -> NoReturn:
        said = message.removeprefix("argument ")
        raise UsageError(f"{said[0].upper()}{said[1:]}. --help lists the flags.")


class Parser:
    """The flags of a command."""

    def __init__(
        self,
        summary: str | None,
        *records: type[Settings],
        computes: bool = True,
        words: bool = False,
        fields: Iterable[str] = (),
    ):
        """Define a command's flags.

        Args:
          summary: the module's docstring, which heads the help. records: their fields are flags,
            under the record's docstring in the help.
          computes: the command uses JAX.
          words: it takes positional arguments.
          fields: dotted names of config fields that it takes as --config.FIELD=VALUE.
        """
        self._parser = _ArgumentParser(
            description=(summary or _WITHOUT_DOCSTRINGS).strip(),
            formatter_class=functools.partial(
                argparse.RawDescriptionHelpFormatter, max_help_position=_HELP_COLUMN
            ),
            usage=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        self._takes_words = words
        self.settings: dict[str, Setting] = {}
        self.fields = tuple(fields)
        for record in (*records, *([Devices] if computes else [])):
            self._add(record)
        for name in self.fields:
            self._define(self._parser, f"{CONFIG}{name}", help=argparse.SUPPRESS)

    def _add(self, record: type[Settings]) -> None:
        title = (record.__doc__ or record.__name__).strip().split("\n")[0].rstrip(".")
        group = self._parser.add_argument_group(title)
        for spec in settings_in(record):
            if spec.name in self.settings:  # two records share it
                continue
            self.settings[spec.name] = spec
            text = spec.help.replace("%", "%%")
            if spec.is_switch:
                self._define(group, spec.name, help=text, action="store_const", const="true")
                # States the default explicitly; hidden from the help.
                off = {"action": "store_const", "const": "false", "help": argparse.SUPPRESS}
                self._define(group, spec.name, flag=f"no{spec.name}", **off)
                continue
            if spec.default not in (None, "", ()):
                text += f" (default: {_shown(spec.default)})"
            options: dict[str, Any] = {"metavar": spec.metavar}
            if spec.words > 1:
                options = {"metavar": tuple(spec.metavar.split()), "nargs": spec.words}
            elif spec.is_prose:
                options["action"] = "append"
            self._define(group, spec.name, help=text, **options)
        for default in _held(record).values():
            self._add(type(default))

    def _define(self, group: Any, name: str, *, flag: str | None = None, **options: Any) -> None:
        group.add_argument(f"--{flag or name}", dest=name, default=argparse.SUPPRESS, **options)

    def parse(self, argv: Sequence[str]) -> Flags:
        """Parse a command line without the program's name; show the help and exit if asked to.

        Raises:
          UsageError: an unknown flag (the nearest is suggested), a bad or empty value, or an
            unexpected word.
        """
        namespace, rest = self._parser.parse_known_args([str(argument) for argument in argv])
        texts = vars(namespace)
        self._check_rest(rest)
        flags = Flags(given=frozenset(texts), words=tuple(rest), fields={})
        for name, spec in self.settings.items():
            given = texts.get(name)
            words = given if isinstance(given, list) else [given]
            setattr(flags, name, spec.default if given is None else spec.parse(*words))
        flags.fields = {
            name: texts[CONFIG + name] for name in self.fields if CONFIG + name in texts
        }
        return flags

    def _check_rest(self, rest: Sequence[str]) -> None:
        unknown = next((text for text in rest if text.startswith("-") and len(text) > 1), None)
        if unknown is not None:
            name = unknown.lstrip("-").partition("=")[0]
            if self.fields and name.startswith(CONFIG):
                check_field(name.removeprefix(CONFIG), "command line")
            raise UsageError(
                f"There is no flag --{name}.{self._suggest(name)} --help lists the flags."
            )
        if rest and not self._takes_words:
            raise UsageError(
                f"Unexpected argument {rest[0]!r}: values follow their flag, as in --seed 1."
            )
        if any(not word.strip() for word in rest):
            raise UsageError("An argument is empty: name a file or a directory, or leave it out.")
        for word in rest:
            _WORD.parse(word)

    def _suggest(self, name: str) -> str:
        known = ours(name, FLAGS, self.settings)
        if known is None and self.fields:
            field = field_called(name)
            known = field and CONFIG + field
        return f" Did you mean {known!r}?" if known else suggest(name, self.settings)


def _held(record: type[Settings]) -> dict[str, Settings]:
    """Return the records that a record holds, by the names of their fields."""
    defaults = {field.name: field.default for field in dataclasses.fields(record)}
    return {name: value for name, value in defaults.items() if isinstance(value, Settings)}


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


@dataclasses.dataclass(frozen=True)
class _Words(Settings):
    """What follows no flag."""

    argument: str = setting("", "A file or a directory.", path=True)


(_WORD,) = settings_in(_Words)
