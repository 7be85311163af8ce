"""Learning rates of groups of parameters: factors of the common rate, by their paths."""

import fnmatch
from typing import Any

import jax
import optax
from flax.traverse_util import flatten_dict

from ddpm_jax.errors import UsageError

Groups = tuple[tuple[str, float], ...]  # (pattern, factor), the first that fits decides


def factor_of(path: str, groups: Groups) -> float:
    """Return the factor of the parameter at a path, "down_0_block_0/conv1/kernel"; 1 by default."""
    return next((factor for pattern, factor in groups if _fits(path, pattern)), 1.0)


def check_groups(groups: Groups, params: Any) -> None:
    """Refuse a pattern that decides nothing.

    Args:
      groups: of the config.
      params: the tree of parameters, or of their shapes.

    Raises:
      UsageError: it fits no parameter, or an earlier one fits each that it does.
    """
    paths = ["/".join(path) for path in flatten_dict(params)]
    for number, (pattern, _) in enumerate(groups):
        fitting = [path for path in paths if _fits(path, pattern)]
        if not fitting:
            modules = sorted({path.split("/")[0] for path in paths})
            raise UsageError(
                f"optimizer.groups has {pattern!r}, which is the path of no parameter: they begin "
                f"with {', '.join(modules[:8])}{', ...' if modules[8:] else ''}."
            )
        earlier = groups[:number]
        if all(any(_fits(path, before) for before, _ in earlier) for path in fitting):
            raise UsageError(
                f"optimizer.groups has {pattern!r} after patterns that fit all its parameters, and "
                "the first that fits decides: put it before them."
            )


def with_groups(
    optimizer: optax.GradientTransformation, groups: Groups
) -> optax.GradientTransformation:
    """Return an optimiser whose update of each parameter is that of `optimizer` times its factor.

    As both Adam and the decay of AdamW multiply by the learning rate in the end, that is another
    learning rate. A parameter with the factor 0 stays as it is, but its gradient is computed.
    """

    def scale(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
        return update * factor_of("/".join(str(key.key) for key in path), groups)

    def scaled(updates: Any, params: Any) -> Any:
        del params
        return jax.tree_util.tree_map_with_path(scale, updates)

    return optax.chain(optimizer, optax.stateless(scaled)) if groups else optimizer


def _fits(path: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}/*")
