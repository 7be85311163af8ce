"""Transforms of pixels on the device: range, random flip, resizing. Pure and jit-able."""

import chex
import jax
import jax.numpy as jnp


def to_model_range(image: jax.Array) -> jax.Array:
    """Scale pixels to the range of the network: x / 127.5 - 1.

    No dequantisation noise is added, as in Ho et al. (2020), §3.3, and their code.

    Args:
      image: [...], uint8, 0..255.

    Returns:
      [...], float32, in [-1, 1].
    """
    return image.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(x: jax.Array) -> jax.Array:
    """Return (x + 1) 127.5, rounded to nearest (ties to even), clipped to 0..255, as uint8.

    The inverse of `to_model_range`. Many implementations truncate instead, which darkens every
    image by half a level on average.

    Args:
      x: [...], float, nominally in [-1, 1]; values outside saturate.

    Returns:
      [...], uint8.
    """
    return jnp.clip(jnp.round((x + 1.0) * 127.5), 0.0, 255.0).astype(jnp.uint8)


def random_flip(image: jax.Array, keys: jax.Array) -> jax.Array:
    """Mirror each image left to right with probability 1/2, the only augmentation of DDPM.

    Args:
      image: [B, H, W, C], any dtype.
      keys: [B], typed keys, one per example, so that a flip does not depend on the rest of the
        batch.

    Returns:
      [B, H, W, C].
    """
    chex.assert_rank(image, 4)
    chex.assert_shape(keys, (image.shape[0],))
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], image[:, :, ::-1, :], image)


def downsample(x: jax.Array, factor: int) -> jax.Array:
    """Shrink images by the mean of each factor x factor block, rounded to 8 bits.

    Rounding to the 256 levels gives the same image as a low-resolution picture read from a file.

    Args:
      x: [B, H, W, C], float32 in [-1, 1]; H and W multiples of `factor`.
      factor: at least 1.

    Returns:
      [B, H / factor, W / factor, C], float32, on the levels of `to_model_range`.
    """
    batch, height, width, channels = x.shape
    # [B, H/f, f, W/f, f, C]
    blocks = x.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return to_model_range(to_uint8(jnp.mean(blocks, axis=(2, 4))))


def upsample(x: jax.Array, factor: int) -> jax.Array:
    """Enlarge images bilinearly; pixels are squares with values at their centres.

    Edges are repeated.

    Args:
      x: [B, H, W, C], float32.
      factor: at least 1.

    Returns:
      [B, factor H, factor W, C], float32.
    """
    batch, height, width, channels = x.shape
    return jax.image.resize(x, (batch, factor * height, factor * width, channels), "bilinear")
