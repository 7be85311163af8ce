"""Spacing and options of a sampler, read from texts or Python values."""

from collections.abc import Mapping
from typing import Any

from ddpm_jax import annotations
from ddpm_jax.errors import UsageError
from ddpm_jax.limits import MAX_TIMESTEPS
from ddpm_jax.numerals import boolean, number, numbers, whole_number
from ddpm_jax.samplers.registry import SAMPLERS, default_options

MAX_OPTION = 1000  # of an option that is a whole number: orders, and steps within a step


def spacing_from(text: str) -> str | tuple[float, ...]:
    """Read a spacing: a name, or timesteps as in 999,500,0.

    Raises:
      UsageError: an empty text, or a list with something other than timesteps.
    """
    if not text.strip():
        raise UsageError("spacing is empty: give it a value, as in trailing, or leave it out.")
    try:
        times = numbers(text, valid=lambda time: 0 <= time <= MAX_TIMESTEPS)
    except ValueError:
        if any(character.isalpha() for character in text):
            return text
        raise UsageError(
            f"spacing {text} is no list of timesteps: give them as in 999,500,0."
        ) from None
    parts = text.split(",")
    return tuple(t if "." in part else round(t) for t, part in zip(times, parts, strict=True))


def options_from(text: str) -> dict[str, str]:
    """Read the options of a sampler, as in eta=0.5,order=3.

    Raises:
      UsageError: an option without a name or a value.
    """
    if not text.strip():
        raise UsageError(
            "sampler_options is empty: give it a value, as in eta=0.5, or leave it out."
        )
    options = {}
    for part in text.split(","):
        name, _, value = map(str.strip, part.partition("="))
        if not (name and value):
            raise UsageError(f"sampler_options {text}: give each option as NAME=X, as in eta=0.5.")
        options[name] = value
    return options


def typed_options(sampler: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the types of the sampler's defaults; unknown ones as they are.

    Raises:
      UsageError: an unknown sampler, or a value of another type.
    """
    known, typed = default_options(sampler), {}
    for name, value in options.items():
        try:
            typed[name] = _option(value, known[name]) if name in known else value
        except ValueError as error:
            raise UsageError(
                f"The option {name} of the sampler {sampler} is {value!r}: {error}."
            ) from None
    return typed


def _option(value: Any, default: Any) -> Any:
    """Return the value of an option with the type of its default.

    Infinity is accepted where it is the default.
    """
    text = value if isinstance(value, str) else annotations.format_number(value)
    match default:
        case bool():
            return value if isinstance(value, bool) else boolean(text)
        case int():
            return whole_number(text, lower=0, upper=MAX_OPTION)
        case float():
            return default if text == str(default) else number(text)
    return value


def options_in_words() -> str:
    """Return every sampler that has options, with these and their defaults, in words."""
    options = {
        name: ", ".join(f"{k}={v}" for k, v in default_options(name).items()) for name in SAMPLERS
    }
    return "; ".join(f"of {name} {values}" for name, values in options.items() if values)
