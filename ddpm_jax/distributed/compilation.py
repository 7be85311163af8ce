"""How a program is compiled that runs once."""

import jax


def options_to_run_once() -> dict[str, int] | None:
    """Return options of XLA's compiler for `jax.jit` of a program that runs once.

    On a CPU, optimising it would take longer than it runs.
    """
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
