"""States as earlier versions saved them, mapped to the fields that a state has now.

The frozen parts of a model were once in what its objective remembered:

    objective_state/{frozen, inner}        a model over latents; `inner` is now all of it
    objective_state/{frozen, step, ...}    a first stage with a perceptual distance
"""

from collections.abc import Mapping
from typing import Any

FROZEN, REMEMBERED, INNER = "frozen", "objective_state", "inner"


def is_current(saved: Mapping[str, Any]) -> bool:
    """Return whether a saved tree, plain dicts down to the leaves, has the layout of today."""
    remembered = saved.get(REMEMBERED)
    return not (isinstance(remembered, Mapping) and FROZEN in remembered)


def to_current(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree in the older layout, or a part of one, with today's fields."""
    remembered = dict(saved.get(REMEMBERED, {}))
    frozen = {FROZEN: remembered.pop(FROZEN)} if FROZEN in remembered else {}
    return {**saved, REMEMBERED: remembered.get(INNER, remembered), **frozen}


def to_older(fields: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a template of today's fields, some or all, in the layout of an older saved tree."""
    remembered = {FROZEN: fields[FROZEN]} if FROZEN in fields else {}
    if REMEMBERED in fields:
        inner = fields[REMEMBERED]
        remembered |= {INNER: inner} if INNER in saved[REMEMBERED] else inner._asdict()
    others = {name: x for name, x in fields.items() if name not in (FROZEN, REMEMBERED)}
    return others | ({REMEMBERED: remembered} if remembered else {})


def from_older(restored: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was restored by the template `to_older(fields, ...)` as today's fields."""
    current = to_current(restored)
    remembered, kind = current[REMEMBERED], type(fields.get(REMEMBERED))
    if isinstance(remembered, dict) and hasattr(kind, "_fields"):
        current[REMEMBERED] = kind(**remembered)
    return {name: current[name] for name in fields}
