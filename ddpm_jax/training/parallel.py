"""The only file that calls `jax.pmap`: one program on every local device, the state replicated, the examples split.

The state goes in and comes out unstacked (`in_axes=None`, `out_axes=None`), so nothing outside this file knows how many
devices there are, and a checkpoint written on one device reads on eight. `pmap` over all hosts' devices is one axis:
`lax.axis_index` counts through all of them in the order of the global batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.errors import UsageError

AXIS = "devices"


def map_step(step: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """Compiles step(state, batch, key) -> (state, metrics) for all devices; the state's buffers are donated.

    `batch` leaves are [local devices, examples per device, ...] (see `shard`). The step must make its state and metrics
    equal on every device, by `pmean`, `psum` or `all_gather` over `AXIS`.
    """
    return jax.pmap(step, axis_name=AXIS, in_axes=(None, 0, None), out_axes=(None, None), donate_argnums=(0,))


def several(step: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """Returns steps(state, batches, key) -> (state, metrics), one step after another in one program, to be mapped.

    The leaves of `batches` are [K, examples per device, ...], those of the metrics [K, ...]: one dispatch pays for K
    steps. The updates are those of K calls of `step`.
    """
    return lambda state, batches, key: jax.lax.scan(lambda state, batch: step(state, batch, key), state, batches)


def replicate(tree: Any) -> Any:
    """Lays a tree out as `map_step` returns it: on every local device.

    A state that enters the first step any other way makes the second one compile the program again. The buffers may be
    shared with the argument, so donating the result takes that one too.
    """
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def map_examples(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Compiles function(shared, examples) -> results for all devices.

    `shared` is the same on every device; leaves of `examples` and of the results are [local devices, per device, ...].
    """
    return jax.pmap(function, axis_name=AXIS, in_axes=(None, 0))


def global_index(per_device: int) -> chex.Array:
    """Positions of this device's examples in the global batch, int32 [per_device]. Only inside a mapped function."""
    return jax.lax.axis_index(AXIS) * per_device + jnp.arange(per_device)


def shard(tree: Any) -> Any:
    """Splits the leading axis over the local devices: [B, ...] -> [local devices, B / local devices, ...]."""
    devices = jax.local_device_count()
    return jax.tree.map(lambda x: np.reshape(x, (devices, x.shape[0] // devices, *x.shape[1:])), tree)


def to_devices(batches: Sequence[Any]) -> Any:
    """Starts to copy the batches of one call of a mapped step to the local devices, and returns without waiting.

    The copy is under way while the devices still work on the call before. One batch is laid out as by `shard`, for a
    mapped step; K as [local devices, K, B / local devices, ...], for the mapped `several` of it.
    """
    split = list(map(shard, batches))
    tree = split[0] if len(split) == 1 else jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *split)
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(AXIS)))


def unshard(tree: Any) -> Any:
    """Undoes `shard` and fetches to the host: [devices, B, ...] -> NumPy [devices * B, ...]."""
    return jax.tree.map(lambda x: np.asarray(x).reshape((-1, *x.shape[2:])), tree)


def check_batch_size(batch_size: int, what: str = "batch size") -> None:
    """Refuses a global batch that does not split evenly.

    Raises:
      UsageError: `batch_size` is not a positive multiple of the number of devices of all hosts.
    """
    devices = jax.device_count()
    if batch_size < 1 or batch_size % devices:
        fit = max(devices, batch_size // devices * devices)
        raise UsageError(f"The {what} is {batch_size}, which {devices} devices cannot share evenly: use {fit}, say.")
