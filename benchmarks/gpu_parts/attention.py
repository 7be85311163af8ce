"""Attention by cuDNN and by products of matrices, at the shapes of the two networks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from comparison import relative_difference

from ddpm_jax.models.attention import IMPLEMENTATIONS
from gpu_parts.ours import first_line
from gpu_parts.plan import Plan, Record, Save, windows

SHAPES = {  # name -> images, tokens, heads, channels of a head
    "unet, 16x16 pixels": (128, 256, 1, 256),
    "dit-b/2, latents of 32x32": (128, 256, 12, 64),
    "dit-b/2, latents of 64x64": (32, 1024, 12, 64),
}
SMALL_SHAPES = {"unet, 4x4 pixels": (4, 16, 1, 64), "dit, latents of 8x8": (4, 16, 3, 16)}


def measure(plan: Plan, save: Save) -> None:
    record: Record = {"dtype": "bfloat16", "shapes": []}
    for name, shape in (SMALL_SHAPES if plan.small else SHAPES).items():
        if plan.left() < 5:
            record["note"] = f"There was no time for {name}, or for what follows it."
            break
        images, tokens, heads, channels = shape
        row: Record = {
            "shape": name,
            "images": images,
            "tokens": tokens,
            "heads": heads,
            "channels_of_a_head": channels,
        }
        outputs = {}
        for implementation, attend in IMPLEMENTATIONS.items():
            try:
                row[implementation], outputs[implementation] = _time(attend, shape, plan)
            except Exception as error:  # cuDNN's refusals have no common class
                row[implementation] = {"refused": first_line(error)}
        if len(outputs) == 2:
            row["difference"] = relative_difference(outputs["cudnn"], outputs["products"])
        record["shapes"].append(row)
        save(record)
    save(record)


def _time(attend: Callable, shape: tuple[int, ...], plan: Plan) -> tuple[Record, np.ndarray]:
    """Seconds of a call, and of one with gradients of all three inputs; the output as float32."""
    q, k, v = jax.random.normal(jax.random.key(0), (3, *shape), jnp.bfloat16)
    forward = jax.jit(attend)
    training = jax.jit(jax.grad(lambda *qkv: attend(*qkv).astype(jnp.float32).var(), (0, 1, 2)))
    output = np.asarray(forward(q, k, v), np.float32)
    jax.block_until_ready(training(q, k, v))
    times = {
        name: windows(lambda f=f: f(q, k, v), jax.block_until_ready, plan, seconds=0.2)
        for name, f in {"forward": forward, "forward_and_gradient": training}.items()
    }
    return times, output
