"""What is done to pixels on the device: to the model's range and back, the random flip, resizing.
Pure, jit-able."""

import chex
import jax
import jax.numpy as jnp


def to_model_range(image: jax.Array) -> jax.Array:
    """Scale pixels to what the network sees: x / 127.5 - 1.

    No dequantisation noise, as in Ho et al. (2020), §3.3 and original code.

    Args:
      image: [...], uint8, 0..255.

    Returns:
      [...], float32, in [-1, 1].
    """
    return image.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(x: jax.Array) -> jax.Array:
    """The inverse of `to_model_range`: (x + 1) 127.5, rounded to the nearest integer (ties to
    even), clipped to 0..255.

    Many implementations truncate instead, which darkens every image by half a level on average.

    Args:
      x: [...], float, nominally in [-1, 1]; beyond that it saturates.

    Returns:
      [...], uint8.
    """
    return jnp.clip(jnp.round((x + 1.0) * 127.5), 0.0, 255.0).astype(jnp.uint8)


def random_flip(image: jax.Array, keys: jax.Array) -> jax.Array:
    """Mirror each image left to right with probability 1/2, the only augmentation of DDPM.

    Args:
      image: [B, H, W, C], any dtype.
      keys: [B], typed keys, one an example, so that an example's flip does not depend on the batch
        around it.

    Returns:
      [B, H, W, C].
    """
    chex.assert_rank(image, 4)
    chex.assert_shape(keys, (image.shape[0],))
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], image[:, :, ::-1, :], image)


def downsample(x: jax.Array, factor: int) -> jax.Array:
    """Shrink images to what a file of the smaller size would hold: the mean of each factor x
    factor block, 8 bits.

    Rounding to the 256 levels makes a low-resolution picture read from a file the same thing as one
    made here.

    Args:
      x: [B, H, W, C], float32 in [-1, 1]; H and W multiples of `factor`.
      factor: at least 1.

    Returns:
      [B, H / factor, W / factor, C], float32, on the levels of `to_model_range`.
    """
    batch, height, width, channels = x.shape
    blocks = x.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return to_model_range(to_uint8(jnp.mean(blocks, axis=(2, 4))))


def upsample(x: jax.Array, factor: int) -> jax.Array:
    """Enlarge images bilinearly, pixels being squares whose values are those of their centres;
    edges are repeated.

    Args:
      x: [B, H, W, C], float32.
      factor: at least 1.

    Returns:
      [B, factor H, factor W, C], float32.
    """
    batch, height, width, channels = x.shape
    return jax.image.resize(x, (batch, factor * height, factor * width, channels), "bilinear")
