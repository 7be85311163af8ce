"""Initial parameters taken over from another run: which of them fit, and where they go.

Callers find and read the other run; a run's own parameters are in `checkpoints`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ddpm_jax.errors import UsageError

CLASSES = "class_embedding"  # the module whose parameters follow from the number of classes


class Rows(NamedTuple):
    """A table of which a model takes over some rows and draws the others."""

    taken: Any  # bool [K]
    values: Any  # [K, ...], of any value where a row is not taken


Given = Mapping[tuple[str, ...], Any]  # path in the tree of parameters -> leaf, or `Rows` of it


class Fitting(NamedTuple):
    """The leaves of another run that a model takes over, and what it draws."""

    given: Given
    fresh: list[str]  # names of the parameters that are drawn, of all or some rows
    rows: str  # which rows of the table of classes are taken over, in words; "" for all or none


def fitting(
    theirs: Any, ours: Any, *, source: str, classes: tuple[int, int], groups: Sequence[str]
) -> Fitting:
    """Return which leaves of `theirs` a model takes over.

    All are taken over except the class embedding, if only one of the models is conditioned on
    classes. If the number of classes differs, the rows of the classes that both have are taken
    over, and that of the null class, the last, where both have one.

    Args:
      theirs: a tree of parameters, arrays.
      ours: the tree of the new model, leaves with a shape.
      source: the run that `theirs` come from, for the message.
      classes: how many classes `theirs` and `ours` know, without the null class.
      groups: of the config with the fields of the network, for the message.

    Raises:
      UsageError: any other parameter has another shape, or is absent on one side.
    """
    there, here = flatten_dict(theirs), flatten_dict(ours)
    shapes_there, shapes_here = (
        {path: tuple(leaf.shape) for path, leaf in tree.items()} for tree in (there, here)
    )
    differing = sorted(
        path for path in there | here if shapes_there.get(path) != shapes_here.get(path)
    )
    wrong = [path for path in differing if CLASSES not in path]
    if wrong:
        first, others = wrong[0], len(wrong) - 1
        raise UsageError(
            f"{source} is of another architecture: {'/'.join(first)} is "
            f"{shapes_there.get(first, 'absent')} there and {shapes_here.get(first, 'absent')} in "
            f"this model{f', and {others} more differ' if others else ''}: give data.channels and "
            f"the fields of the network ({_named(groups)}) as that run has them."
        )
    given: dict[tuple[str, ...], Any] = {
        path: there[path] for path in here if path not in differing
    }
    said = ""
    for path in differing:
        if path in there and path in here and shapes_there[path][1:] == shapes_here[path][1:]:
            given[path], said = _rows(there[path], len_here=shapes_here[path][0], classes=classes)
    return Fitting(given, ["/".join(path) for path in differing if path in here], said)


def _named(groups: Sequence[str]) -> str:
    *others, last = groups
    if not others:
        return f"config group {last}"
    return f"config groups {', '.join(others)} and {last}"


def _rows(table: Any, *, len_here: int, classes: tuple[int, int]) -> tuple[Rows, str]:
    """Return the rows of a table of classes that one of another length takes over, also in words.

    Args:
      table: [K, ...], or [K + 1, ...] with a null class.
      len_here: of the other.
      classes: K, there and here.
    """
    shared = min(*classes, len(table), len_here)
    values = np.zeros((len_here, *np.shape(table)[1:]), np.asarray(table).dtype)
    taken = np.zeros(len_here, bool)
    values[:shared], taken[:shared] = table[:shared], True
    said = f"0 to {shared - 1}" if shared > 1 else "0"
    if len(table) > classes[0] and len_here > classes[1]:
        values[-1], taken[-1] = table[-1], True
        said += " and that of the null class"
    return Rows(taken, values), said


def replaced(params: Any, given: Given) -> Any:
    """Return the tree `params` with the leaves of `given` put in."""
    flat = flatten_dict(params)
    put = {
        path: _with_rows(flat[path], leaf) if isinstance(leaf, Rows) else leaf
        for path, leaf in given.items()
    }
    return unflatten_dict(flat | put)


def _with_rows(drawn: Any, rows: Rows) -> Any:
    taken = jnp.reshape(rows.taken, (-1, *[1] * (jnp.ndim(drawn) - 1)))
    return jnp.where(taken, rows.values, drawn)
