"""Initial parameters taken over from another run: which of them fit, and where they go.

Callers find and read the other run; a run's own parameters are in `checkpoints`.
"""

from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from ddpm_jax.errors import UsageError

CLASSES = "class_embedding"  # the module whose parameters follow from the number of classes
Given = Mapping[tuple[str, ...], Any]  # path in the tree of parameters -> leaf


def fitting(theirs: Any, ours: Any, *, source: str) -> tuple[Given, list[str]]:
    """Return (the leaves of `theirs` that a model takes over, the names of those it draws).

    All are taken over except the class embedding, if the number of classes differs or only one of
    the models is conditioned on classes.

    Args:
      theirs: a tree of parameters, arrays.
      ours: the tree of the new model, leaves with a shape.
      source: the run that `theirs` come from, for the message.

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
            f"this model{f', and {others} more differ' if others else ''}: give the fields of the "
            "network (config groups model and dit) as that run has them."
        )
    taken = {path: there[path] for path in here if path not in differing}
    return taken, ["/".join(path) for path in differing if path in here]


def replaced(params: Any, given: Given) -> Any:
    """Return the tree `params` with the leaves of `given` put in."""
    return unflatten_dict(flatten_dict(params) | dict(given))
