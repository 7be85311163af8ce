"""Checks of the fields that all networks share, before anything compiles."""

from typing import Any

import jax.numpy as jnp

from ddpm_jax.errors import UsageError, choose
from ddpm_jax.models.rematerialization import REMAT


def check_count(name: str, value: object, *, or_none: bool = False) -> None:
    """Refuse a field that is not a whole number of at least 1, or at least 0 if `or_none`.

    Raises:
      UsageError: with its name and value.
    """
    if not isinstance(value, int) or value < (0 if or_none else 1):
        raise UsageError(
            f"{name} is {value!r}: give a whole "
            f"number{', 0 for none' if or_none else ' of at least 1'}."
        )


def check_computation(network: Any) -> None:
    """Refuse invalid values of the fields dropout, norm_eps, dtype and remat.

    Raises:
      UsageError: with the name and the value.
    """
    if not 0.0 <= network.dropout < 1.0:
        raise UsageError(
            f"dropout is {network.dropout}: give a probability in [0, 1), for example 0.1."
        )
    check_precision(network)
    choose("remat", network.remat, REMAT)


def check_precision(network: Any) -> None:
    """Refuse invalid values of the fields norm_eps and dtype.

    Raises:
      UsageError: with the name and the value.
    """
    if not 0.0 < network.norm_eps < float("inf"):
        raise UsageError(
            f"norm_eps is {network.norm_eps}: give a number above 0, for example 1e-6."
        )
    try:
        floating = jnp.issubdtype(jnp.dtype(network.dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise UsageError(
            f"dtype is {network.dtype!r}: give a floating-point type, float32 or bfloat16."
        )
