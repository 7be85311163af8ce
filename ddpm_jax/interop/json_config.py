"""Fields of a config in a foreign JSON file: those that are used, and those that must not be."""

from collections.abc import Mapping
from typing import Any

from ddpm_jax.errors import UsageError
from ddpm_jax.schema import format_value


def known_fields(
    config: Mapping[str, Any],
    used: Mapping[str, Any],
    unused: Mapping[str, tuple[Any, ...]],
    what: str,
) -> dict[str, Any]:
    """Return the fields of a config that are used, after checking the others.

    Fields whose names begin with "_" say how the file was made. Fields that are not known here, as
    newer versions have them, are passed over where they are null or false.

    Args:
      config: the JSON object.
      used: the fields that are used, with the value of each where it is absent.
      unused: other known fields, with the values that mean what is computed here anyway.
      what: the file, for messages: "The config of the VAE".

    Raises:
      UsageError: another field has another value, so that the network would be another one.
    """
    for name, value in config.items():
        if name.startswith("_") or name in used:
            continue
        allowed = unused.get(name, (None, False))
        if value not in allowed:
            raise UsageError(
                f"{what} has {name[:80]} = {format_value(value)}, which is not supported: "
                f"{' or '.join(map(format_value, allowed))} is expected."
            )
    return {name: config.get(name, default) for name, default in used.items()}
