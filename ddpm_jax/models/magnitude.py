"""Layers that keep the magnitude of their input (Karras et al. 2024, EDM2, section 2).

The magnitude of an array is its root mean square. Weights have magnitude 1 for every output and are
divided by sqrt(fan-in) as they are used, so that independent inputs of magnitude 1 give outputs of
magnitude 1. They are normalised as they are used, so that no gradient changes their magnitude, and
by `with_unit_kernels` after every update, so that they do not grow and an update turns all of them
equally far. Nothing has a bias.

The network made of these layers is in `edm2_unet.py`. Paper: Analyzing and Improving the Training
Dynamics of Diffusion Models; the equations are those of its appendix B.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ddpm_jax.models.convolution import conv2d

UNIT_KERNEL = "unit_kernel"  # the name of weights that are normalised
SILU_MAGNITUDE = 0.596  # of silu(z) for standard normal z (eq. 81)


def normalized(x: jax.Array, axes: tuple[int, ...], eps: float = 0.0) -> jax.Array:
    """Return x / sqrt(mean(x^2) + eps), with the mean over `axes` in float32, in the type of x."""
    square = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=axes, keepdims=True)
    return (x * jax.lax.rsqrt(jnp.maximum(square + eps, 1e-30))).astype(x.dtype)


def pixel_norm(x: jax.Array, eps: float) -> jax.Array:
    """Normalise the channels of every pixel, the last axis (Karras et al. 2018)."""
    return normalized(x, (-1,), eps)


def mp_silu(x: jax.Array) -> jax.Array:
    """silu(x) / 0.596, of magnitude 1 for standard normal x (eq. 81)."""
    return nn.silu(x) / SILU_MAGNITUDE


def mp_sum(a: jax.Array, b: jax.Array, t: float) -> jax.Array:
    """((1-t) a + t b) / sqrt((1-t)^2 + t^2), of magnitude 1 for independent a and b (eq. 88)."""
    return ((1 - t) * a + t * b) * ((1 - t) ** 2 + t**2) ** -0.5


def mp_cat(a: jax.Array, b: jax.Array, t: float) -> jax.Array:
    """Concatenate the channels of a and b, which count as (1-t) to t whatever their numbers are.

    sqrt((A+B) / ((1-t)^2 + t^2)) [(1-t)/sqrt(A) a, t/sqrt(B) b] of A and B channels: magnitude 1
    for a and b of magnitude 1 (eq. 103).
    """
    A, B = a.shape[-1], b.shape[-1]
    scale = ((A + B) / ((1 - t) ** 2 + t**2)) ** 0.5
    return jnp.concatenate([scale * (1 - t) * A**-0.5 * a, scale * t * B**-0.5 * b], axis=-1)


def unit_kernel(kernel: jax.Array) -> jax.Array:
    """Normalise the weights [..., C, features] of every output: their root mean square is 1."""
    return normalized(kernel, tuple(range(kernel.ndim - 1)))


def with_unit_kernels(params: Any) -> Any:
    """Return parameters with every kernel of `MPLinear` normalised; the others as they are."""

    def placed(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return unit_kernel(leaf) if path[-1].key == UNIT_KERNEL else leaf

    return jax.tree_util.tree_map_with_path(placed, params)


class MPLinear(nn.Module):
    """A linear map without bias of weights of magnitude 1 (eq. 47, 66): also a convolution.

    [..., C] -> [..., features] with `size` 1, [B, H, W, C] -> [B, H, W, features] with an odd
    `size`, zero-padded; computed and returned in `dtype`.
    """

    features: int
    size: int = 1  # height and width of the kernel
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, gain: jax.Array | float = 1.0) -> jax.Array:
        """Apply the map, times `gain`, a scalar."""
        window = () if self.size == 1 else (self.size, self.size)
        shape = (*window, x.shape[-1], self.features)
        kernel = self.param(UNIT_KERNEL, _initial, shape, jnp.float32)
        fan_in = kernel.size // self.features
        kernel = (unit_kernel(kernel) * (gain * fan_in**-0.5)).astype(self.dtype)
        x = x.astype(self.dtype)
        if not window:
            return x @ kernel
        return conv2d(x, kernel, padding=((self.size // 2, self.size // 2),) * 2)


def _initial(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    return unit_kernel(jax.random.normal(key, shape, dtype))


class MPFourier(nn.Module):
    """sqrt(2) cos(2 pi (f t + p)) of random f, standard normal, and p, uniform (eq. 75).

    Both are drawn once and not trained.
    """

    features: int

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """Map numbers [B] to float32 [B, features]."""
        normal, uniform = nn.initializers.normal(1.0), nn.initializers.uniform(1.0)
        frequencies = self.param("frequencies", normal, (self.features,), jnp.float32)
        phases = self.param("phases", uniform, (self.features,), jnp.float32)
        turns = t.astype(jnp.float32)[:, None] * frequencies[None] + phases[None]
        return jax.lax.stop_gradient(2**0.5 * jnp.cos(2 * jnp.pi * turns))
