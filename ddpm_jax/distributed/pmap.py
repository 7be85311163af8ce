"""The only use of `jax.pmap`: one program on every local device, the examples split.

The state is replicated.

The state goes in and comes out unstacked (`in_axes=None`, `out_axes=None`), so nothing outside this
file knows how many devices there are, and a checkpoint written on one device reads on eight. `pmap`
over all hosts' devices is one axis: `lax.axis_index` counts through all of them in the order of the
global batch.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax import memory
from ddpm_jax.errors import UsageError

AXIS = "devices"


class Collectives(NamedTuple):
    """The communication with other devices that a step needs.

    The step is written for the local examples: those of one device, or all.
    """

    per_device: bool  # whether the local examples are those of one device
    mean: Callable[[Any], Any]  # the average of a tree over the devices
    # leaves [B, ...] of the local examples -> of all, in the order of the global batch
    gather: Callable[[Any], Any]
    # B -> positions of the local examples in the global batch, int32 [B]
    global_index: Callable[[int], chex.Array]
    # as the state holds them -> as the network takes them; differentiable
    parameters: Callable[[Any], Any]


class Parallelism(NamedTuple):
    """A way to spread training over the devices: `PMAP` here, `fsdp.FSDP`."""

    collectives: Collectives  # the argument of `make_train_step`
    # compiles step(state, batch, key) -> (state, metrics); donates the state
    map_step: Callable[..., Any]
    # leaves with a shape -> where to create or restore a state, before `place`
    shardings: Callable[[Any], Any]
    place: Callable[[Any], Any]  # lays out a state as the compiled step returns it
    # local batches, one for each step of a call -> on their way to devices
    to_devices: Callable[[Sequence[Any]], Any]
    # a part of the state -> all of it on every device, as sampling takes it
    whole: Callable[[Any], Any]


def map_step(step: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """Compile step(state, batch, key) -> (state, metrics) for all devices.

    The state's buffers are donated.

    `batch` leaves are [local devices, examples per device, ...] (see `shard`). The step must make
    its state and metrics equal on every device, by `pmean`, `psum` or `all_gather` over `AXIS`.
    """
    axes = {"in_axes": (None, 0, None), "out_axes": (None, None)}
    return memory.checked(jax.pmap(step, axis_name=AXIS, donate_argnums=(0,), **axes))


def several(step: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """Return steps(state, batches, key) -> (state, metrics), K steps in one program, to be mapped.

    The leaves of `batches` are [K, examples per device, ...], those of the metrics [K, ...]: one
    dispatch pays for K steps. The updates are those of K calls of `step`.
    """
    return lambda state, batches, key: jax.lax.scan(
        lambda state, batch: step(state, batch, key), state, batches
    )


def replicate(tree: Any) -> Any:
    """Put a tree on every local device, laid out as `map_step` returns it.

    A state that enters the first step in any other layout makes the second step compile the program
    again. The buffers may be shared with the argument, so donating the result donates the argument
    too.
    """
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def map_examples(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Compile function(shared, examples) -> results for the devices of this process.

    It waits for no other process.

    `shared` is the same on every device; leaves of `examples` and of the results are [local
    devices, per device, ...].
    """
    own = jax.local_devices() if jax.process_count() > 1 else None
    return memory.checked(jax.pmap(function, axis_name=AXIS, in_axes=(None, 0), devices=own))


def map_segment(function: Callable[..., Any]) -> Callable[..., tuple[Any, chex.Array]]:
    """Compile function(shared, examples, carry, first, last) -> (carry, done), as `map_examples`.

    The buffers of the carry are donated.

    `first` and `last` are int32 scalars, `done` is a small array, and the leaves of the carry are
    [local devices, ...].
    """
    own = jax.local_devices() if jax.process_count() > 1 else None
    axes = (None, 0, 0, None, None)
    return memory.checked(
        jax.pmap(function, axis_name=AXIS, in_axes=axes, donate_argnums=(2,), devices=own)
    )


def global_index(per_device: int) -> chex.Array:
    """Return the positions of this device's examples in the global batch, int32 [per_device].

    Only inside a mapped function.
    """
    return jax.lax.axis_index(AXIS) * per_device + jnp.arange(per_device)


def in_parts(
    function: Callable[[chex.Array], chex.Array], x: chex.Array, *, size: int
) -> chex.Array:
    """Return function(x), [B, ...] -> [B, ...], computed for `size` examples at a time.

    Intermediate values take the memory of `size` examples.
    """
    parts = -(-len(x) // size)
    if parts <= 1:
        return function(x)
    size = -(-len(x) // parts)
    padded = jnp.concatenate([x, jnp.repeat(x[-1:], parts * size - len(x), axis=0)])
    out = jax.lax.map(function, padded.reshape(parts, size, *x.shape[1:]))
    return out.reshape(-1, *out.shape[2:])[: len(x)]


def bytes_per_device(tree: Any) -> int:
    """Return the memory in bytes that the leaves of a placed tree take on each device."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def shard(tree: Any) -> Any:
    """Split the leading axis over the local devices.

    [B, ...] -> [local devices, B / local devices, ...].
    """
    devices = jax.local_device_count()
    return jax.tree.map(
        lambda x: np.reshape(x, (devices, x.shape[0] // devices, *x.shape[1:])), tree
    )


def to_devices(batches: Sequence[Any]) -> Any:
    """Start copying the batches of one call of a mapped step to the local devices.

    It returns without waiting: the devices may still compute the call before. One batch is laid out
    as by `shard`, for a mapped step; K as [local devices, K, B / local devices, ...], for the
    mapped `several` of it.
    """
    split = list(map(shard, batches))
    tree = (
        split[0]
        if len(split) == 1
        else jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *split)
    )
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(AXIS)))


def unshard(tree: Any) -> Any:
    """Undo `shard` and fetch to the host: [devices, B, ...] -> NumPy [devices * B, ...]."""
    # NumPy would end the process where the program has failed: waiting raises the error instead.
    tree = jax.block_until_ready(tree)
    return jax.tree.map(
        lambda x: np.asarray(x).reshape((x.shape[0] * x.shape[1], *x.shape[2:])), tree
    )


def check_batch_size(batch_size: int, what: str = "batch size") -> None:
    """Refuse a global batch that does not split evenly.

    Raises:
      UsageError: `batch_size` is not a positive multiple of the number of devices of all hosts.
    """
    devices = jax.device_count()
    if batch_size < 1 or batch_size % devices:
        fit = max(devices, batch_size // devices * devices)
        raise UsageError(
            f"The {what} is {batch_size}, which {devices} devices cannot share evenly: use {fit}, "
            "say."
        )


def _one_device(tree: Any) -> Any:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda _: device, tree)


MAPPED = Collectives(
    per_device=True,
    mean=lambda tree: jax.lax.pmean(tree, AXIS),
    gather=lambda tree: jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, AXIS, tiled=True), tree),
    global_index=global_index,
    parameters=lambda params: params,
)

PMAP = Parallelism(
    collectives=MAPPED,
    map_step=map_step,
    shardings=_one_device,
    place=replicate,
    to_devices=to_devices,
    whole=lambda tree: tree,
)
