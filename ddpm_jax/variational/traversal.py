"""Traversals of a latent space: lines between two images' latents, the plane at the quantiles of
the prior.

**Lines are straight.** `samplers.editing.slerp` goes on an arc because x_T is pure noise: its
length is √d whatever the image, and a network that has seen only that length knows no other.
Latents of a first stage are not noise. A VAE's means are nearer to 0 than draws of the prior, and
their length says something of the image: an arc would take a way that depends on where 0 is, which
in an AE or a VQ-VAE is nowhere in particular. No point of a line is less probable by the prior than
the less probable of its ends.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np


def lines(first: chex.Array, last: chex.Array, steps: int) -> chex.Array:
    """(1 - λ) first + λ last for `steps` values of λ from 0 to 1: [P, ...] twice -> [P, steps,
    ...].

    Both ends are there to the last bit.
    """
    chex.assert_equal_shape([first, last])
    weight = jnp.linspace(0.0, 1.0, steps).reshape(1, steps, *[1] * (first.ndim - 1))
    return (1 - weight) * jnp.expand_dims(first, 1) + weight * jnp.expand_dims(last, 1)


def quantile_grid(side: int) -> np.ndarray:
    """The plane as N(0, I) sees it, as much of the prior to every point (Kingma and Welling 2014,
    figure 4).

    Args:
      side: n, rows and columns.

    Returns:
      float32 [n * n, 2], row by row from above as pictures are laid out: the first number grows to
      the right, the second upwards; along both axes the quantiles at (i + 1/2) / n.
    """
    quantiles = np.asarray(jax.scipy.special.ndtri((jnp.arange(side) + 0.5) / side), np.float32)
    right, up = np.meshgrid(quantiles, quantiles[::-1])
    return np.stack([right.ravel(), up.ravel()], axis=-1)
