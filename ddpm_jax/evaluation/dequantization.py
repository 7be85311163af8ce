"""8-bit images as points of a density, and densities as bits per dimension.

A model gives a density, images are discrete. Pixel k lies at k/127.5 - 1 and its bin extends half a
step to either side; u uniform over [0, 1) spreads it evenly over the bin:

    x = (k + u - 1/2) / 127.5 - 1,      each bin 1/127.5 wide
    P(k) = ∫_bins p(x) dx = (1/127.5)^D E_u[p(x)]
    -log P(k) <= E_u[-log p(x)] + D log 127.5      (Jensen)
    bits/dim = -log p(x) / (D log 2) + log2 127.5      (log2 127.5 = 6.994)

The upper bound is tight where the density is flat over a bin. Scaling [0, 256) to [-1, 1], as
elsewhere, has bins of 1/128 and an offset of 7 bits, and gives a network other numbers than it was
trained on.
"""

import math

import chex
import jax.numpy as jnp

BITS_OF_BINS = math.log2(127.5)  # see the derivation above


def dequantize(image: chex.Array, u: chex.Array) -> chex.Array:
    """Return (k + u - 1/2) / 127.5 - 1, float32 in [-1 - 1/255, 1 + 1/255].

    Args:
      image: pixels k in 0..255.
      u: in [0, 1).
    """
    return (image.astype(jnp.float32) + (u - 0.5)) / 127.5 - 1.0


def bits_from_nats(log_prob: chex.Array, size: int) -> chex.Array:
    """Return bits/dim of 8-bit images from the log-density, in nats, of their dequantised form.

    `size` is D.
    """
    return -log_prob / (size * math.log(2.0)) + BITS_OF_BINS
