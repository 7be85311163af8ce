"""One update, as a pure function: gradients, averaging over devices, clipping, Optax, EMA.

It does not depend on the objective, nor on the number of devices, which `Collectives` hide.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from ddpm_jax.distributed.pmap import MAPPED, Collectives
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.training import ema
from ddpm_jax.training.ema import Average
from ddpm_jax.training.objective import Objective
from ddpm_jax.training.state import TrainState

CLIP_SCOPES = {
    "average": "clip the gradient of the whole batch",
    "replica": "clip each device's gradient before averaging, as the original code did",
}


class StepOptions(NamedTuple):
    """The parts of an update that are neither the objective nor the optimiser."""

    ema: Average = Average()  # of the parameters that are sampled from
    # further averages kept in the state, by name
    averages: Mapping[str, Average] = MappingProxyType({})
    clip_norm: float = 0.0  # global norm to clip the gradient to; 0 for none
    # a key of CLIP_SCOPES: they are different algorithms on several devices
    clip_scope: str = "average"
    # parts that a device computes its share of the batch in, one after the other
    accumulate_steps: int = 1
    # updates in a row that may be skipped because loss or gradient is not finite
    skip_nonfinite: int = 0


def _clip(grads: Any, max_norm: float) -> tuple[Any, chex.Array]:
    """Return the gradient scaled down to at most `max_norm` (0: unchanged), and its norm before."""
    norm = optax.tree.norm(grads)
    if max_norm:
        grads, _ = optax.clip_by_global_norm(max_norm).update(grads, optax.EmptyState())
    return grads, norm


def _gradients(
    objective: Objective,
    collectives: Collectives,
    state: TrainState,
    batch: Any,
    key: chex.PRNGKey,
    parts: int,
):
    """Return (mean loss, aux [B], gradient) over the B examples at hand, in `parts` parts."""

    def mean_loss(params, batch, index):
        loss, aux = objective.loss(
            collectives.parameters(params),
            state.frozen,
            state.objective_state,
            batch,
            key,
            index,
        )
        return jnp.mean(loss), aux

    value_and_grad = jax.value_and_grad(mean_loss, has_aux=True)
    batch_size = jax.tree.leaves(batch)[0].shape[0]
    index = collectives.global_index(batch_size)
    if parts == 1:
        (loss, aux), grads = value_and_grad(state.params, batch, index)
        return loss, aux, grads

    def part(total, examples):
        (loss, aux), grads = value_and_grad(state.params, *examples)
        return jax.tree.map(jnp.add, total, (loss, grads)), aux

    # Every parts-th example: where the batch lies over devices, each of them has its share of every
    # part.
    strided = jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape((-1, parts, *x.shape[1:])), 0, 1), (batch, index)
    )
    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
    total, aux = jax.lax.scan(part, zeros, strided)
    loss, grads = jax.tree.map(lambda x: x / parts, total)
    return (
        loss,
        jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape((batch_size, *x.shape[2:])), aux),
        grads,
    )


def _unless_nonfinite(
    new: TrainState, old: TrainState, loss: chex.Array, norm: chex.Array, allowed: int
) -> TrainState:
    """Return `new` if loss and norm are finite, else `old` with its counters advanced.

    Loss and norm are the same on every device, and so is the choice.

    A selection of numbers, not a branch: it is fused into the update that it follows.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    stopped = old.nonfinite > allowed
    tolerated = ~stopped & (old.nonfinite < allowed)
    kept = old._replace(
        step=old.step + tolerated.astype(old.step.dtype),
        nonfinite=old.nonfinite + (~stopped).astype(old.nonfinite.dtype),
    )
    return jax.tree.map(
        lambda updated, unchanged: jnp.where(finite & ~stopped, updated, unchanged), new, kept
    )


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    options: StepOptions,
    collectives: Collectives = MAPPED,
) -> Callable[[TrainState, Any, chex.PRNGKey], tuple[TrainState, dict[str, Any]]]:
    """Return train_step(state, batch, base_key) -> (state, metrics).

    It is for `map_step` of the same `Parallelism`.

    The batch holds the examples at hand, leaves [B, ...]: under `pmap` this device's share; B must
    be a multiple of `accumulate_steps`. The key is the run's base key: the step folds in its own
    number. Metrics are scalars: `loss`, `grad_norm` (before clipping; with the scope `replica` the
    mean of the devices' norms), `learning_rate`, and the (sum, count) pairs of the objective.

    A step whose loss or gradient norm is not finite changes nothing but the counters `step` and
    `nonfinite`. The first one too many in a row leaves `step` too, and after it the state never
    changes again: whatever was dispatched meanwhile, the failing step can be repeated from it.

    Raises:
      UsageError: unknown clip scope, or one that these collectives cannot serve, or
        accumulate_steps below 1, or skip_nonfinite below 0.
    """
    choose("clip scope", options.clip_scope, CLIP_SCOPES)
    if options.accumulate_steps < 1:
        raise UsageError(f"accumulate_steps is {options.accumulate_steps}: it must be at least 1.")
    if options.skip_nonfinite < 0:
        raise UsageError(f"skip_nonfinite is {options.skip_nonfinite}: it must be at least 0.")
    per_replica = options.clip_scope == "replica"
    if per_replica and options.clip_norm and not collectives.per_device:
        raise UsageError(
            "optimizer.clip_scope is 'replica', which clips each device's own gradient, but under "
            "parallel = 'fsdp' no device has one: set optimizer.clip_scope=average, or "
            "optimizer.clip_norm=0 for no clipping."
        )

    def train_step(
        state: TrainState, batch: Any, base_key: chex.PRNGKey
    ) -> tuple[TrainState, dict[str, Any]]:
        key = jax.random.fold_in(base_key, state.step)
        # first: an update that is not finite is undone, and what began with it is not
        state = objective.begin_step(state)
        loss, aux, grads = _gradients(
            objective, collectives, state, batch, key, options.accumulate_steps
        )

        if per_replica:
            grads, norm = _clip(grads, options.clip_norm)
            grads, norm = collectives.mean((grads, norm))
        else:
            grads, norm = _clip(collectives.mean(grads), options.clip_norm)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        all_aux = collectives.gather(aux)
        objective_state = objective.update(state.objective_state, all_aux)
        params = objective.project_params(
            optax.apply_updates(state.params, updates), objective_state
        )
        averaged = objective.averaged(params)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            ema_params=ema.update(state.ema_params, averaged, ema.rate_at(state.step, options.ema)),
            opt_state=opt_state,
            objective_state=objective_state,
            nonfinite=jnp.zeros_like(state.nonfinite),
            averages={
                name: ema.update(state.averages[name], averaged, ema.rate_at(state.step, average))
                for name, average in options.averages.items()
            },
            frozen=state.frozen,
        )
        loss = collectives.mean(loss)
        new_state = _unless_nonfinite(new_state, state, loss, norm, options.skip_nonfinite)
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": learning_rate(state.step),
            **objective.metrics(all_aux),
        }
        return new_state, metrics

    return train_step
