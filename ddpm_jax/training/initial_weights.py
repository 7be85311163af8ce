"""Parameters that a new run begins with instead of drawing them: which of another run's fit, and
putting them in place.

Finding and reading the other run is for callers; a run's own are in `checkpoints`.
"""

from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from ddpm_jax.errors import UsageError

CLASSES = "class_embedding"  # the module whose parameters follow from the number of classes
Given = Mapping[tuple[str, ...], Any]  # path in the tree of parameters -> leaf


def fitting(theirs: Any, ours: Any, *, source: str) -> tuple[Given, list[str]]:
    """Return (the leaves of `theirs` that a model takes over, the names of those that it draws).

    All are taken over but the table of classes, where their number differs or only one of the
    models is conditioned on them.

    Args:
      theirs: a tree of parameters, arrays.
      ours: the tree of the new model, leaves with a shape.
      source: the run that `theirs` are of, for the sentence.

    Raises:
      UsageError: another parameter is of another shape, or absent on one side.
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
            f"this model{f', and {others} more differ' if others else ''}: give the fields of the "
            "network (config groups model and dit) as that run has them."
        )
    taken = {path: there[path] for path in here if path not in differing}
    return taken, ["/".join(path) for path in differing if path in here]


def replaced(params: Any, given: Given) -> Any:
    """Return the tree `params` with the leaves of `given` in their places."""
    return unflatten_dict(flatten_dict(params) | dict(given))
