"""What is done to pixels on the device: scaling to the model's range and back, and the random flip. Pure, jit-able."""

import chex
import jax
import jax.numpy as jnp


def to_model_range(image: jax.Array) -> jax.Array:
    """Scales pixels to what the network sees: x / 127.5 - 1.

    No dequantisation noise, as in Ho et al. (2020), §3.3 and original code.

    Args:
      image: [...], uint8, 0..255.

    Returns:
      [...], float32, in [-1, 1].
    """
    return image.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(x: jax.Array) -> jax.Array:
    """The inverse of `to_model_range`: (x + 1) 127.5, rounded to the nearest integer (ties to even), clipped to 0..255.

    Many implementations truncate instead, which darkens every image by half a level on average.

    Args:
      x: [...], float, nominally in [-1, 1]; beyond that it saturates.

    Returns:
      [...], uint8.
    """
    return jnp.clip(jnp.round((x + 1.0) * 127.5), 0.0, 255.0).astype(jnp.uint8)


def random_flip(image: jax.Array, keys: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability 1/2, the only augmentation of DDPM.

    Args:
      image: [B, H, W, C], any dtype.
      keys: [B], typed keys, one an example, so that an example's flip does not depend on the batch around it.

    Returns:
      [B, H, W, C].
    """
    chex.assert_rank(image, 4)
    chex.assert_shape(keys, (image.shape[0],))
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], image[:, :, ::-1, :], image)
