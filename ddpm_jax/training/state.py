"""The state of training: all that survives a step."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax.training import ema
from ddpm_jax.training.objective import Objective


class TrainState(NamedTuple):
    """A pytree of arrays; a checkpoint holds exactly this.

    A field with a default may be missing in a checkpoint of an earlier version; then the default
    holds.
    """

    step: chex.Array  # int32 scalar, updates done so far
    params: Any  # float32
    # float32, same tree, or that part of it which is used after training (`Objective.averaged`)
    ema_params: Any
    opt_state: Any
    # what the objective remembers, e.g. past losses for importance sampling; often empty
    objective_state: Any
    # int32 scalar, updates in a row whose loss or gradient was not finite
    nonfinite: chex.Array = np.int32(0)
    averages: Any = ()  # further averages of the parameters, by name; often none
    # what the loss needs and no step changes: first stage and scale for a model over latents, the
    # weights of a perceptual distance; often empty
    frozen: Any = ()


def create(
    params: Any,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    averages: Iterable[str] = (),
    frozen: Any = (),
    average: Any = None,
) -> TrainState:
    """Return the state before the first update.

    Args:
      params: initial.
      optimizer: of the run.
      objective: of the run.
      averages: names of those kept in addition to the one to sample from.
      frozen: what the loss needs besides the parameters; the buffers are shared.
      average: what all averages begin as, of the tree of `params`; None: these.
    """

    # Compiled as one: each leaf by itself would be a program of its own.
    @jax.jit
    def init_from_params(params, average):
        kept = objective.averaged(average)
        return ema.init(kept), optimizer.init(params), {name: ema.init(kept) for name in averages}

    average = params if average is None else average
    ema_params, opt_state, others = init_from_params(params, average)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=ema_params,
        opt_state=opt_state,
        objective_state=objective.init(params),
        nonfinite=jnp.zeros((), jnp.int32),
        averages=others,
        frozen=frozen,
    )
