"""Low-rank updates of linear maps (LoRA): few parameters that are trained in place of a network's.

Hu et al. (2022), LoRA: Low-Rank Adaptation of Large Language Models. A map x W, W [in, out],
becomes

    x (W + s A B),  A [in, r],  B [r, out],  s = alpha / r

of which W stays as it is. B begins as zeros, so that the network begins as it was. All here is on
trees of parameters: the network itself knows nothing of it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

TARGETS = {
    "attention": "queries, keys, values and outputs of both attentions",
    "all": "every linear map of the transformers",
}
ATTENTIONS = ("attn1", "attn2")  # modules of a `cross_attention.TransformerBlock`
Path = tuple[str, ...]


def is_target(path: Path, targets: str) -> bool:
    """Return whether the parameter of a `TextUNet` at a path is a map that is updated."""
    in_transformer = any("_attn_" in module for module in path)
    if not in_transformer or path[-1] != "kernel":
        return False
    return targets == "all" or path[-3] in ATTENTIONS


def init_lora(key: jax.Array, shapes: Any, *, rank: int, targets: str) -> dict[str, Any]:
    """Draw the updates of a network, float32.

    Args:
      key: of the draw.
      shapes: the network's tree of parameters, leaves with a shape.
      rank: r.
      targets: a key of `TARGETS`.

    Returns:
      Beside each kernel [in, out] that is a target "A" [in, r], uniform between -1/√in and 1/√in,
      and "B" [r, out], zeros.
    """
    tree, lora = flatten_dict(shapes), {}
    paths = [path for path in tree if is_target(path, targets)]
    for path, own in zip(paths, jax.random.split(key, len(paths)), strict=True):
        features_in, features_out = tree[path].shape
        bound = features_in**-0.5
        lora[*path[:-1], "A"] = jax.random.uniform(
            own, (features_in, rank), minval=-bound, maxval=bound
        )
        lora[*path[:-1], "B"] = jnp.zeros((rank, features_out))
    return unflatten_dict(lora)


def merge_lora(params: Any, lora: Any, scale: float) -> Any:
    """Return W + scale A B for the kernels that have an update, and all other parameters as given.

    The sum is computed in float32 and rounded to the type of W.
    """
    merged, updates = flatten_dict(params), flatten_dict(lora or {})
    for path in [path for path in updates if path[-1] == "A"]:
        kernel = (*path[:-1], "kernel")
        w, a, b = merged[kernel], updates[path], updates[*path[:-1], "B"]
        product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        merged[kernel] = (w.astype(jnp.float32) + scale * product).astype(w.dtype)
    return unflatten_dict(merged)
