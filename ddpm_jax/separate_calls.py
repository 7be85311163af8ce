"""Functions that XLA for CPUs compiles by themselves, not together with what surrounds their calls.

XLA inlines a function at each of its calls and may then repeat its operations in every loop that
reads the result. What goes in and out of a function of this module is in memory. So nothing is
repeated, and the loops of a function are the same at all calls with the same shapes: XLA compiles
equal loops once.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec

import jax
from jax.experimental.xla_metadata import set_xla_metadata

P = ParamSpec("P")


def compiled_apart(*static: str) -> Callable[[Callable[P, jax.Array]], Callable[P, jax.Array]]:
    """Return a decorator of a function that is to be compiled by itself on a CPU.

    Args:
      static: names of arguments that the program depends on.
    """

    def decorate(function: Callable[P, jax.Array]) -> Callable[P, jax.Array]:
        traced = jax.jit(function, static_argnames=static)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> jax.Array:
            if jax.default_backend() != "cpu":
                return function(*args, **kwargs)
            with set_xla_metadata(inlineable="false"):
                return traced(*args, **kwargs)

        return call

    return decorate
