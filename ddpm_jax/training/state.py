"""All that survives a step."""

from typing import Any, NamedTuple

import chex
import jax.numpy as jnp
import optax

from ddpm_jax.training import ema
from ddpm_jax.training.objective import Objective


class TrainState(NamedTuple):
    """A pytree of arrays; checkpoints hold exactly this."""

    step: chex.Array  # int32 scalar, updates done so far
    params: Any  # float32
    ema_params: Any  # float32, same tree
    opt_state: Any
    objective_state: Any  # what the objective remembers, e.g. past losses for importance sampling; often empty


def create(params: Any, optimizer: optax.GradientTransformation, objective: Objective) -> TrainState:
    """The state before the first update."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=ema.init(params),
        opt_state=optimizer.init(params),
        objective_state=objective.init(),
    )
