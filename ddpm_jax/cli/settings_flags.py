"""Settings records as flags: a flag for each field of a record and of the records that it holds."""

import dataclasses
from typing import Any, TypeVar

from ddpm_jax.cli.command import BETWEEN, Parser
from ddpm_jax.settings import Setting, Settings, settings_in

AnySettings = TypeVar("AnySettings", bound=Settings)


def define(parser: Parser, *records: type[Settings]) -> None:
    """Define the flags of records; of settings that share a name the first one's help is shown."""
    for record in records:
        for setting in settings_in(record):
            if setting.name not in parser.values:
                _define(parser, setting)
        define(parser, *map(type, _held(record).values()))


def read(flags: Any, record: type[AnySettings], **fields: Any) -> AnySettings:
    """Make a record of the flags that were given; `fields` come from elsewhere.

    Raises:
      UsageError: a flag's value is none that its setting can have.
    """
    held = {name: read(flags, type(default)) for name, default in _held(record).items()}
    return record(**held | _given(flags, record) | fields)


def names_in(record: type[Settings]) -> list[str]:
    """Return the names of a record's flags, with those of the records that it holds."""
    held = [name for default in _held(record).values() for name in names_in(type(default))]
    return [setting.name for setting in settings_in(record)] + held


def _held(record: type[Settings]) -> dict[str, Settings]:
    """Return the records that a record holds, by the names of their fields."""
    fields = {field.name: field.default for field in dataclasses.fields(record)}
    return {name: default for name, default in fields.items() if isinstance(default, Settings)}


def _define(parser: Parser, setting: Setting) -> None:
    if setting.is_switch:
        parser.boolean(setting.name, setting.help)
    elif setting.is_path:
        parser.path(setting.name, None, _help(setting), metavar=setting.metavar)
    else:
        parser.string(setting.name, None, _help(setting), metavar=setting.metavar)


def _help(setting: Setting) -> str:
    default = setting.default
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    return setting.help if default is None else f"{setting.help} (default: {default})"


def _given(flags: Any, record: type[Settings]) -> dict[str, Any]:
    given = {}
    for setting in settings_in(record):
        flag = flags[setting.name]
        if flag.present and setting.is_switch:
            given[setting.field] = flag.value
        elif flag.present:
            texts = flag.value.split(BETWEEN) if setting.words > 1 else [flag.value]
            given[setting.field] = setting.parse(*texts)
    return given
