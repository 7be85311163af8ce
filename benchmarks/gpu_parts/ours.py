"""Training steps of our networks, and what PyTorch needs for the same: weights and outputs."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from comparison import mean_squared_error, our_training_step
from train_run import Failed

from gpu_parts.networks import CHECKED, DTYPES, Measured, measured, products_alone
from gpu_parts.plan import Plan, Record, Save, Stopwatch, windows

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # in the words of XLA


def measure_unet(plan: Plan, save: Save) -> None:
    _measure(measured("unet", small=plan.small), plan, save)


def measure_dit(plan: Plan, save: Save) -> None:
    _measure(measured("dit", small=plan.small), plan, save)


def tree_shapes(of: Measured) -> dict:
    """The shapes of the network's parameters."""
    batch = of.batch(1)
    arguments = batch.x, batch.t, of.condition(1)
    return jax.eval_shape(of.network.init, jax.random.key(0), *arguments)["params"]


def random_params(of: Measured) -> dict:
    """Weights none of which is zero, unlike a new network's: the outputs of that say nothing."""
    rng = np.random.default_rng(0)

    def draw(path: tuple, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = rng.normal(size=shape.shape).astype(np.float32)
        match path[-1].key:
            case "kernel":
                return noise / np.sqrt(np.prod(shape.shape[:-1], dtype=np.float32))
            case "scale":
                return 1 + 0.1 * noise
            case _:
                return 0.1 * noise

    return jax.tree_util.tree_map_with_path(draw, tree_shapes(of))


def flop_per_image(of: Measured) -> dict[str, float]:
    """What JAX counts in the network as it is written, forward and with gradients, no optimiser.

    Attention is by products there: cuDNN's is a call whose FLOP JAX does not know. On a CPU a few
    convolutions of float32 take less than is written, so it is bfloat16 that is counted.
    """
    size = 2
    network, batch = of.network.clone(dtype="bfloat16"), of.batch(size)
    keys = jax.random.split(jax.random.key(0), size)
    arguments = tree_shapes(of), batch.x, batch.t, batch.eps, of.condition(size), keys
    loss = mean_squared_error(network)

    def forward(params, x, t, eps, condition, keys):
        return network.apply({"params": params}, x, t, condition)

    with products_alone():
        counted = {"forward": jax.jit(forward), "gradient": jax.jit(jax.grad(loss))}
        costs = {name: f.lower(*arguments).cost_analysis() for name, f in counted.items()}
    return {name: cost["flops"] / size for name, cost in costs.items()}


def _measure(of: Measured, plan: Plan, save: Save) -> None:
    params = random_params(of)
    state_dict = of.to_peer(params)
    np.savez(of.weights(plan.folder), **state_dict)
    again = jax.tree.map(np.array_equal, params, of.from_peer(state_dict))
    if not all(jax.tree.leaves(again)):
        raise Failed("The weights changed on their way to PyTorch's names and layouts and back.")

    record: Record = {
        "backend": jax.default_backend(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "image": [of.image_size, of.image_size, of.channels],
        "dtype": "bfloat16",
        "weights_to_pytorch_and_back": True,
    }
    outputs, note = with_products_if_refused(lambda: _outputs(of, params))
    np.savez(of.outputs(plan.folder), **outputs)
    record |= note | {"flop_per_image": flop_per_image(of), "batches": []}
    save(record)

    stopwatch = Stopwatch(plan)
    for size in of.batch_sizes:
        if record["batches"] and not stopwatch.allows_another():
            record["note"] = f"There was no time for a batch of {size}, or for what follows it."
            save(record)
            return
        try:
            step, note = with_products_if_refused(lambda size=size: _step(of, params, size, plan))
        except jax.errors.JaxRuntimeError as error:
            if OUT_OF_MEMORY not in str(error):
                raise
            step, note = {"refused": "out of memory"}, {}
        record["batches"].append({"batch_size": size} | step | note)
        save(record)


def with_products_if_refused(measure: Callable[[], Any]) -> tuple[Any, Record]:
    """Returns what `measure` does, and nothing or why it has attention by products.

    What cuDNN takes depends on its version and on the device, and its refusals have no common
    class: whatever fails is tried once more without it.
    """
    try:
        return measure(), {}
    except Exception as error:
        if OUT_OF_MEMORY in str(error):
            raise
        with products_alone():
            return measure(), {"attention_by_products_since": first_line(error)}


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _outputs(of: Measured, params: dict) -> dict[str, np.ndarray]:
    """The outputs by type; those in float32 in its full precision."""
    batch, condition = of.batch(CHECKED), of.condition(CHECKED)

    def outputs(dtype: str) -> np.ndarray:
        network = of.network.clone(dtype=dtype)
        apply = jax.jit(lambda params, *inputs: network.apply({"params": params}, *inputs))
        with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
            return np.asarray(apply(params, batch.x, batch.t, condition), np.float32)

    return {dtype: outputs(dtype) for dtype in DTYPES}


def _step(of: Measured, params: dict, size: int, plan: Plan) -> Record:
    """What a step of training takes, its first losses, and what its first call took."""
    network = of.network.clone(dtype="bfloat16")
    step = our_training_step(network, params, of.batch(size), of.condition(size))
    start = time.perf_counter()
    losses = [float(step())]
    first_call = time.perf_counter() - start
    losses += [float(step()) for _ in range(2)]
    seconds = windows(step, jax.block_until_ready, plan, seconds=0.5)
    return {"seconds": seconds, "losses": losses, "first_call_seconds": first_call}
