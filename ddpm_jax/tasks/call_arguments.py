"""Settings records from the arguments of a Python call."""

from collections.abc import Mapping
from typing import Any

from ddpm_jax.errors import UsageError
from ddpm_jax.settings import check_names, field_names
from ddpm_jax.tasks.sampling_settings import Conditions, Guidance, Sampling


def sampling_from(**settings: Any) -> Sampling:
    """Return a record of the settings that were given.

    Raises:
      UsageError: an unknown setting; what the record raises.
    """
    check_names(field_names(Sampling), settings, "There is no setting")
    return Sampling(**_given(settings))


def conditions_from(**conditions: Any) -> Conditions:
    """Return a record of the conditions that are not None.

    Raises:
      UsageError: what the record raises.
    """
    return Conditions(**_given(conditions))


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are not None, one label as a list, a scale as `Guidance`."""
    given = {name: value for name, value in settings.items() if value is not None}
    if isinstance(given.get("labels"), int | str):
        given["labels"] = [given["labels"]]
    if isinstance(given.get("guidance"), int | float):
        given["guidance"] = Guidance(scale=given["guidance"])
    if not isinstance(given.get("guidance", Guidance()), Guidance):
        raise UsageError("guidance is no scale and no Guidance: give one, as in guidance=3.0.")
    if "options" in given:
        given["options"] = dict(given["options"])
    return given
