"""Traversals of a latent space: straight lines, and the plane at the quantiles of the prior.

**Lines are straight.** `samplers.editing.slerp` follows an arc because x_T is pure noise: its norm
is √d for every image, and the network has been trained on that norm only. Latents of a first stage
are not noise. The means of a VAE are closer to 0 than samples of the prior, and their norm carries
information: an arc would depend on the position of 0, which is arbitrary in an AE or a VQ-VAE. No
point of a line is less probable under the prior than the less probable of its ends.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np


def lines(first: chex.Array, last: chex.Array, steps: int) -> chex.Array:
    """(1 - λ) first + λ last for `steps` λ from 0 to 1: [P, ...] twice -> [P, steps, ...].

    Both ends are exact to the last bit.
    """
    chex.assert_equal_shape([first, last])
    weight = jnp.linspace(0.0, 1.0, steps).reshape(1, steps, *[1] * (first.ndim - 1))
    return (1 - weight) * jnp.expand_dims(first, 1) + weight * jnp.expand_dims(last, 1)


def quantile_grid(side: int) -> np.ndarray:
    """Return a grid of z at the quantiles of N(0, I) (Kingma and Welling 2014, figure 4).

    Args:
      side: n, rows and columns.

    Returns:
      float32 [n * n, 2], row by row from the top as pictures are laid out: the first coordinate
      grows to the right, the second upwards; along both axes the quantiles at (i + 1/2) / n.
    """
    quantiles = np.asarray(jax.scipy.special.ndtri((jnp.arange(side) + 0.5) / side), np.float32)
    right, up = np.meshgrid(quantiles, quantiles[::-1])
    return np.stack([right.ravel(), up.ravel()], axis=-1)
