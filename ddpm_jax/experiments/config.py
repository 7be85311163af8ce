"""Configs read from a file, a dict, or text on a command line.

A config file is Python with `get_config()`, which starts from `default_config()` and sets the
fields of its experiment. The fields are defined in `fields`, checks between them in
`config_checks`. Lower layers never see a ConfigDict.
"""

import difflib
import importlib.util
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

import ddpm_jax
from ddpm_jax.errors import UsageError, suggest
from ddpm_jax.experiments.config_field import Field
from ddpm_jax.experiments.field_synonyms import SYNONYMS, ours
from ddpm_jax.experiments.fields import FIELDS, GROUPS

COMMAND_LINE = "command line"  # where an override stands, for a sentence
CONFIGS = "configs"  # the folder of those that come with the package
# A run may be resumed with other values of these: they change neither the model nor the draws. If
# the learning rate falls over train.num_steps, `optimizer.check_length` restricts a change of it.
RESUMABLE = frozenset(name for name, field in FIELDS.items() if field.resumable)


def default_config() -> ConfigDict:
    """Return a config of all fields with their defaults; no other field can be added."""
    config: dict[str, Any] = {}
    for name, field in FIELDS.items():
        group, _, leaf = name.rpartition(".")
        values = config.setdefault(group, {}) if group else config
        values[leaf] = config_dict.placeholder(field.kind) if field.optional else field.default
    return ConfigDict(config).lock()


def flatten(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("model.ch", 128) for every field."""
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def own_fields(config: ConfigDict, group: str) -> dict[str, Any]:
    """Return the fields of a group that the config's model has, by `Field.owners`."""
    values = dict(flatten(config))
    return {
        name: value
        for name, value in config[group].items()
        if all(owner.has(values) for owner in FIELDS[f"{group}.{name}"].owners)
    }


def find_config(config: str | os.PathLike | ConfigDict | Mapping[str, Any]) -> ConfigDict:
    """Return the config that a name ("digits"), a path, a dict or a ConfigDict stands for.

    Fields that a dict does not set have their defaults; what is given is not changed.

    Raises:
      UsageError: as `load_config` and `from_dict`, or it is none of these.
    """
    if isinstance(config, str | os.PathLike):
        return load_config(config)
    if not isinstance(config, Mapping | ConfigDict):
        raise UsageError(f"The config is {config!r}: give a name, a path, a dict or a ConfigDict.")
    return from_dict(config, source="the config")


def load_config(path: str | os.PathLike) -> ConfigDict:
    """Run a config file and return its config, completed by the defaults.

    Raises:
      UsageError: there is no such file (the nearest is suggested), it fails, or it sets a field
        that does not exist.
    """
    path = config_file(path)
    if not path.is_file():
        raise UsageError(f"There is no config file {path}.{_suggestion(path)}")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None:
        raise UsageError(f"{path} is not a Python file: a config is Python with get_config().")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"The config file {path} fails: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, Mapping | ConfigDict):
        raise UsageError(
            f"get_config() of {path} returns {config!r}: it must return a ConfigDict or a dict."
        )
    return from_dict(config, source=str(path))


def _suggestion(path: pathlib.Path) -> str:
    """Return the sentence that lists the config files there are."""
    if path.name == str(path):
        there = sorted({file.stem for folder in _config_folders() for file in folder.glob("*.py")})
    else:
        there = [str(p) for p in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
    if not there:
        return f" Paths start from {pathlib.Path.cwd()}."
    return f"{suggest(str(path), there)} There are {', '.join(there)}."


def config_file(name: str | os.PathLike) -> pathlib.Path:
    """Return the file that --config names: a path, or digits.py of a folder for "digits".

    The folders are configs/ of the current directory, then that of the package. Without such a
    file, returns `name` as a path.
    """
    path = pathlib.Path(name)
    if path.is_file() or path.name != str(name) or path.suffix not in ("", ".py"):
        return path
    return next(
        (file for folder in _config_folders() if (file := folder / f"{path.stem}.py").is_file()),
        path,
    )


def _config_folders() -> tuple[pathlib.Path, ...]:
    package = pathlib.Path(ddpm_jax.__file__).parent
    # a wheel holds them inside the package, a checkout next to it
    ours = package / CONFIGS if (package / CONFIGS).is_dir() else package.parent / CONFIGS
    return pathlib.Path(CONFIGS), ours


def from_dict(values: ConfigDict | Mapping[str, Any], *, source: str) -> ConfigDict:
    """Return the default config with the fields in `values` replaced.

    `values` are nested dicts, as from JSON.

    Raises:
      UsageError: an unknown field or a value of the wrong type; `source` names the origin.
    """
    config = default_config()
    for name, value in flatten(values.to_dict() if isinstance(values, ConfigDict) else values):
        check_field(name, source)
        _set(config, FIELDS[name], FIELDS[name].fit, _in_todays_words(name, value), source)
    return config


def override(config: ConfigDict, texts: Mapping[str, str]) -> ConfigDict:
    """Return a config with fields set from texts, as in {"model.ch_mult": "1,2,2"}.

    Raises:
      UsageError: an unknown field, or a text that is no value of its type.
    """
    config = from_dict(config, source="the config")
    for name, text in texts.items():
        check_field(name, COMMAND_LINE)
        _set(config, FIELDS[name], FIELDS[name].parse, text, COMMAND_LINE)
    return config


def _set(config: ConfigDict, field: Field, read: Any, value: Any, source: str) -> None:
    group, _, leaf = field.name.rpartition(".")
    target = config[group] if group else config
    try:
        target[leaf] = read(value)
    except ValueError as error:
        wanted = f": give {field.wanted}" if field.wanted else ""
        raise UsageError(
            f"{source}: config field {field.name!r} is of type {field.kind.__name__} and cannot be "
            f"{value!r} (it is {target[leaf]!r} now){wanted}."
        ) from error


def _in_todays_words(name: str, value: Any) -> Any:
    """Return the current form of an older value: model.remat was once true or false."""
    if name == "model.remat" and isinstance(value, bool):
        return "blocks" if value else "none"
    return value


def check_field(name: str, source: str) -> None:
    """Refuse a dotted name that is not a field, suggesting the nearest.

    Raises:
      UsageError: it is not a field.
    """
    if name in FIELDS:
        return
    if name and name in GROUPS:
        inside = ", ".join(field for field in FIELDS if field.startswith(f"{name}."))
        raise UsageError(f"{source}: {name!r} is a group of config fields: set one of {inside}.")
    known = field_called(name)
    near = [known] if known else difflib.get_close_matches(name, FIELDS, n=1)
    groups = ", ".join(sorted(filter(None, GROUPS)))
    hint = f"Did you mean {near[0]!r}?" if near else f"The groups are {groups}."
    raise UsageError(f"{source}: there is no config field {name!r}. {hint}")


def field_called(name: str) -> str | None:
    """Return the field meant by `name`, ours or another library's; None if unknown."""
    # A field's own name outweighs the group it was looked for in: model.batch_size means
    # train.batch_size.
    leaf = name.rpartition(".")[2]
    own = (field for field in FIELDS if field.rpartition(".")[2] == leaf)
    return next(own, None) or ours(leaf, SYNONYMS, FIELDS)


def split_overrides(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split a command line into {FIELD: VALUE} and all other arguments.

    Both "--config.FIELD=VALUE" and "--config.FIELD VALUE" set a field.

    Raises:
      UsageError: a field without a value.
    """
    texts, others = {}, []
    rest = iter(argv)
    for argument in rest:
        if not (argument.startswith("-") and argument.lstrip("-").startswith("config.")):
            others.append(argument)
            continue
        name, equals, text = argument.lstrip("-").removeprefix("config.").partition("=")
        if not equals:
            text = next(rest, None)
        if text is None or (not equals and text.startswith("--")):
            raise UsageError(
                f"{argument} has no value: write {argument}=VALUE, as in --config.data.flip=true."
            )
        texts[name] = text
    return texts, others


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """Return plain nested dicts with lists for tuples, as JSON does."""
    return json.loads(json.dumps(config.to_dict(preserve_field_references=False)))


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return every field by its dotted name; missing ones have their defaults."""
    return dict(flatten(to_dict(default_config()))) | dict(flatten(values))


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """List the differences that forbid to continue `theirs`: "model.ch (64 there, 32 here)"."""
    here, there = dict(flatten(ours)), completed(theirs)
    names = [
        name for name in here | there if name not in RESUMABLE and here.get(name) != there.get(name)
    ]
    return [f"{name} ({there.get(name)!r} there, {here.get(name)!r} here)" for name in names]
