"""Which results of the forward pass are stored for the backward pass: memory for time."""

import functools

import flax.linen as nn
from jax import checkpoint_policies as policies

from ddpm_jax.models.convolution import CONVOLUTION

REMAT = {
    "none": "keep everything: the fastest, and the most memory",
    "products": (
        "keep the inputs of the blocks and the results of their convolutions and matrix products; "
        "recompute normalisations, activations and dropout, which costs little in comparison"
    ),
    "blocks": (
        "keep the inputs of the blocks: the least memory, at the cost of one more forward pass"
    ),
}


@functools.cache  # one class for all blocks of a kind, so that JAX traces equal ones once
def rematerialized(block: type[nn.Module], remat: str) -> type[nn.Module]:
    """Return a block's class with the same gradients that stores what `remat` says.

    `remat` is a key of REMAT.
    """
    if remat == "none":
        return block
    products = policies.save_from_both_policies(
        policies.save_only_these_names(CONVOLUTION), policies.dots_saveable
    )
    return nn.remat(block, policy=products if remat == "products" else policies.nothing_saveable)
