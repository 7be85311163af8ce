"""One update, as a pure function: gradients, averaging over devices, clipping, Optax, EMA.

It knows nothing of which objective it minimises, nor how many devices there are: `AXIS` names them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from ddpm_jax.errors import UsageError, choose
from ddpm_jax.training import ema
from ddpm_jax.training.objective import Objective
from ddpm_jax.training.parallel import AXIS, global_index
from ddpm_jax.training.state import TrainState

CLIP_SCOPES = {
    "average": "clip the gradient of the whole batch",
    "replica": "clip each device's gradient before averaging, as the original code did",
}


class StepOptions(NamedTuple):
    """The parts of an update that are neither the objective nor the optimiser."""

    ema_decay: float = 0.9999
    ema_warmup: bool = False
    clip_norm: float = 0.0  # global norm to clip the gradient to; 0 for none
    clip_scope: str = "average"  # a key of CLIP_SCOPES: they are different algorithms on several devices
    accumulate_steps: int = 1  # parts that a device computes its share of the batch in, one after the other


def _clip(grads: Any, max_norm: float) -> tuple[Any, chex.Array]:
    """Returns the gradient scaled down to `max_norm` where it is longer (0: as it is), and its norm before."""
    norm = optax.tree.norm(grads)
    if max_norm:
        grads, _ = optax.clip_by_global_norm(max_norm).update(grads, optax.EmptyState())
    return grads, norm


def _gradients(objective: Objective, state: TrainState, batch: Any, key: chex.PRNGKey, accumulate_steps: int):
    """Returns (mean loss, aux [B], gradient) over this device's examples."""

    def mean_loss(params, batch, index):
        loss, aux = objective.loss(params, state.objective_state, batch, key, index)
        return jnp.mean(loss), aux

    value_and_grad = jax.value_and_grad(mean_loss, has_aux=True)
    per_device = jax.tree.leaves(batch)[0].shape[0]
    index = global_index(per_device)
    if accumulate_steps == 1:
        (loss, aux), grads = value_and_grad(state.params, batch, index)
        return loss, aux, grads

    def part(total, examples):
        (loss, aux), grads = value_and_grad(state.params, *examples)
        return jax.tree.map(jnp.add, total, (loss, grads)), aux

    parts = jax.tree.map(lambda x: x.reshape((accumulate_steps, -1, *x.shape[1:])), (batch, index))
    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
    total, aux = jax.lax.scan(part, zeros, parts)
    loss, grads = jax.tree.map(lambda x: x / accumulate_steps, total)
    return loss, jax.tree.map(lambda x: x.reshape((per_device, *x.shape[2:])), aux), grads


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    options: StepOptions,
) -> Callable[[TrainState, Any, chex.PRNGKey], tuple[TrainState, dict[str, Any]]]:
    """Returns train_step(state, batch, base_key) -> (state, metrics), to be mapped over devices (`parallel.map_step`).

    The batch is this device's share, leaves [B, ...]; B must be a multiple of `accumulate_steps`. The key is the run's
    base key: the step folds in its own number. Metrics are scalars: `loss`, `grad_norm` (before clipping; with the
    scope `replica` the mean of the devices' norms), `learning_rate`, and the objective's (sum, count) pairs.

    Raises:
      UsageError: unknown clip scope, or accumulate_steps below 1.
    """
    choose("clip scope", options.clip_scope, CLIP_SCOPES)
    if options.accumulate_steps < 1:
        raise UsageError(f"accumulate_steps is {options.accumulate_steps}: it must be at least 1.")
    per_replica = options.clip_scope == "replica"

    def train_step(state: TrainState, batch: Any, base_key: chex.PRNGKey) -> tuple[TrainState, dict[str, Any]]:
        key = jax.random.fold_in(base_key, state.step)
        loss, aux, grads = _gradients(objective, state, batch, key, options.accumulate_steps)

        if per_replica:
            grads, norm = _clip(grads, options.clip_norm)
            grads, norm = jax.lax.pmean((grads, norm), AXIS)
        else:
            grads, norm = _clip(jax.lax.pmean(grads, AXIS), options.clip_norm)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema.decay_at(state.step, options.ema_decay, warmup=options.ema_warmup)
        all_aux = jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, tiled=True), aux)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            ema_params=ema.update(state.ema_params, params, decay),
            opt_state=opt_state,
            objective_state=objective.update(state.objective_state, all_aux),
        )
        metrics = {
            "loss": jax.lax.pmean(loss, AXIS),
            "grad_norm": norm,
            "learning_rate": learning_rate(state.step),
            **objective.metrics(all_aux),
        }
        return new_state, metrics

    return train_step
