"""Fully sharded data parallelism: every device stores a part of the state.

The program is written for the whole state.

The step is compiled once by `jit` for arrays that lie over all devices of all hosts. Each large
leaf of the state is split along one axis; a step gathers the parameters, computes the gradient of
its share of the batch, and keeps the part of the averaged gradient that belongs to its part of the
state. So a device stores 1 / N of parameters, averages and optimiser state, and holds all
parameters only while it computes.

Belongs here: the partition of each leaf, and `FSDP`. Does not: `jax.pmap`, which is in `pmap`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ddpm_jax import memory
from ddpm_jax.distributed.pmap import AXIS, PMAP, Collectives, Parallelism

# numbers in a leaf: a smaller one is on every device, because its messages would cost more time
MIN_SPLIT = 4096


def _mesh() -> Mesh:
    return Mesh(np.array(jax.devices()), (AXIS,), axis_types=(AxisType.Auto,))


def _replicated() -> NamedSharding:
    return NamedSharding(_mesh(), PartitionSpec())


def partition(shape: Sequence[int], devices: int) -> PartitionSpec:
    """Return the axis along which an array is split: the longest that `devices` divides.

    The last of equal axes.

    An array with fewer than `MIN_SPLIT` numbers or no such axis is not split.
    """
    axes = [axis for axis, size in enumerate(shape) if size and size % devices == 0]
    if not axes or np.prod(shape) < MIN_SPLIT:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*[None] * longest, AXIS)


def shardings(tree: Any) -> Any:
    """Return where each leaf of a state is stored; leaves need only a shape."""
    mesh = _mesh()
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, partition(jnp.shape(leaf), mesh.size)), tree
    )


@jax.custom_vjp
def _gathered(leaf: chex.Array) -> chex.Array:
    """Return a split leaf, whole on every device; its gradient is split as the leaf was."""
    return jax.lax.with_sharding_constraint(leaf, _replicated())


def _split_gradient(_, gradient: chex.Array) -> tuple[chex.Array]:
    return (jax.lax.with_sharding_constraint(gradient, shardings(gradient)),)


_gathered.defvjp(lambda leaf: (_gathered(leaf), None), _split_gradient)


def _map_step(step: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    def global_step(state, batch, key):
        state, metrics = step(state, batch, key)
        # Without this the compiler chooses, and a layout other than that of the arguments compiles
        # the next step again.
        constrain = jax.lax.with_sharding_constraint
        return constrain(state, shardings(state)), constrain(
            metrics, jax.tree.map(lambda _: _replicated(), metrics)
        )

    return memory.checked(jax.jit(global_step, donate_argnums=(0,)))


def _to_devices(batches: Sequence[Mapping[str, np.ndarray]]) -> Any:
    mesh = _mesh()
    if len(batches) == 1:
        tree, spec = batches[0], PartitionSpec(AXIS)
    else:
        tree, spec = (
            jax.tree.map(lambda *leaves: np.stack(leaves), *batches),
            PartitionSpec(None, AXIS),
        )
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), tree)


def _whole(tree: Any) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=_replicated())(tree)


# The local examples are all examples: the arrays are those of all devices.
GLOBAL = Collectives(
    per_device=False,
    mean=lambda tree: tree,
    gather=lambda tree: tree,
    global_index=lambda batch_size: jnp.arange(batch_size),
    parameters=lambda params: jax.tree.map(_gathered, params),
)

FSDP = Parallelism(
    collectives=GLOBAL,
    map_step=_map_step,
    shardings=shardings,
    place=lambda state: jax.device_put(state, shardings(state)),
    to_devices=_to_devices,
    whole=_whole,
)

PARALLEL = {"pmap": PMAP, "fsdp": FSDP}
