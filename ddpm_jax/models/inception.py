"""Inception-v3 (Szegedy et al. 2015) as the Frechet Inception distance is defined by it.

It is the network of TensorFlow's file inception-2015-12-05.tgz (Heusel et al. 2017; Salimans et al.
2016 for the Inception Score). It differs from that of the paper, and of torchvision: averages
within blocks leave out the padding, the last block takes maxima there, and there are 1,008 classes.

The network is frozen: each batch normalisation is part of its convolution's kernel and bias, as
`interop.inception_weights` makes them.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ddpm_jax.models.convolution import conv2d
from ddpm_jax.models.layers import default_init, dense

SIZE = 299  # height and width of an image
DIMS = {"pool_1": 64, "pool_2": 192, "mixed_6e": 768, "pooled": 2048}
NUM_CLASSES = 1008

# Each layer of a branch: (name, features, height and width of the kernel, stride, zeros around).
Layer = tuple[str, int, tuple[int, int], int, tuple[int, int]]


class InceptionFeatures(NamedTuple):
    """What the network says of B images, float32; the first three averaged over all pixels."""

    pool_1: jax.Array  # [B, 64], after the first pooling
    pool_2: jax.Array  # [B, 192], after the second
    mixed_6e: jax.Array  # [B, 768], before the auxiliary classifier
    pooled: jax.Array  # [B, 2048], those of the FID
    logits: jax.Array  # [B, 1008], without the classifier's bias: those of the Inception Score


class Inception(nn.Module):
    """The network; parameters conv_NAME, mixed_NAME/BRANCH, and the classifier's kernel, fc."""

    @nn.compact
    def __call__(self, x: jax.Array) -> InceptionFeatures:
        """Map images to features.

        Args:
          x: float32 [B, H, W, 3] on [-1, 1], RGB. H and W are 299; the network takes any from 75.
        """
        h = _layer(x, ("conv_1a_3x3", 32, (3, 3), 2, (0, 0)))
        h = _layer(h, ("conv_2a_3x3", 32, (3, 3), 1, (0, 0)))
        h = _layer(h, ("conv_2b_3x3", 64, (3, 3), 1, (1, 1)))
        pool_1 = h = _max_pool(h)
        h = _layer(h, ("conv_3b_1x1", 80, (1, 1), 1, (0, 0)))
        h = _layer(h, ("conv_4a_3x3", 192, (3, 3), 1, (0, 0)))
        pool_2 = h = _max_pool(h)
        for name, pool_features in (("5b", 32), ("5c", 64), ("5d", 64)):
            h = BlockA(pool_features, name=f"mixed_{name}")(h)
        h = BlockB(name="mixed_6a")(h)
        for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            h = BlockC(width, name=f"mixed_{name}")(h)
        mixed_6e = h
        h = BlockD(name="mixed_7a")(h)
        h = BlockE(pool="average", name="mixed_7b")(h)
        h = BlockE(pool="max", name="mixed_7c")(h)
        pooled = h.mean(axis=(1, 2))
        logits = dense(NUM_CLASSES, name="fc", dtype=jnp.float32, use_bias=False)(pooled)
        means = (array.mean(axis=(1, 2)) for array in (pool_1, pool_2, mixed_6e))
        return InceptionFeatures(*means, pooled, logits)


class BlockA(nn.Module):
    """Branches of 1x1, 5x5 and twice 3x3 at 35x35 pixels."""

    pool_features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, C] to [B, H, W, 224 + pool_features]."""
        one = _layer(x, ("branch1x1", 64, (1, 1), 1, (0, 0)))
        five = _layer(x, ("branch5x5_1", 48, (1, 1), 1, (0, 0)))
        five = _layer(five, ("branch5x5_2", 64, (5, 5), 1, (2, 2)))
        three = _layer(x, ("branch3x3dbl_1", 64, (1, 1), 1, (0, 0)))
        three = _layer(three, ("branch3x3dbl_2", 96, (3, 3), 1, (1, 1)))
        three = _layer(three, ("branch3x3dbl_3", 96, (3, 3), 1, (1, 1)))
        pool = _layer(_average_pool(x), ("branch_pool", self.pool_features, (1, 1), 1, (0, 0)))
        return jnp.concatenate([one, five, three, pool], axis=-1)


class BlockB(nn.Module):
    """Halves 35x35 pixels to 17x17."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, C] to [B, (H - 1) // 2, (W - 1) // 2, 480 + C]."""
        three = _layer(x, ("branch3x3", 384, (3, 3), 2, (0, 0)))
        twice = _layer(x, ("branch3x3dbl_1", 64, (1, 1), 1, (0, 0)))
        twice = _layer(twice, ("branch3x3dbl_2", 96, (3, 3), 1, (1, 1)))
        twice = _layer(twice, ("branch3x3dbl_3", 96, (3, 3), 2, (0, 0)))
        return jnp.concatenate([three, twice, _max_pool(x)], axis=-1)


class BlockC(nn.Module):
    """Branches of 1x1 and of 7x7 in two and in four parts, at 17x17 pixels."""

    width: int  # features between the parts

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, C] to [B, H, W, 768]."""
        wide, high = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
        one = _layer(x, ("branch1x1", 192, (1, 1), 1, (0, 0)))
        seven = _layer(x, ("branch7x7_1", self.width, (1, 1), 1, (0, 0)))
        seven = _layer(seven, ("branch7x7_2", self.width, *wide))
        seven = _layer(seven, ("branch7x7_3", 192, *high))
        twice = _layer(x, ("branch7x7dbl_1", self.width, (1, 1), 1, (0, 0)))
        twice = _layer(twice, ("branch7x7dbl_2", self.width, *high))
        twice = _layer(twice, ("branch7x7dbl_3", self.width, *wide))
        twice = _layer(twice, ("branch7x7dbl_4", self.width, *high))
        twice = _layer(twice, ("branch7x7dbl_5", 192, *wide))
        pool = _layer(_average_pool(x), ("branch_pool", 192, (1, 1), 1, (0, 0)))
        return jnp.concatenate([one, seven, twice, pool], axis=-1)


class BlockD(nn.Module):
    """Halves 17x17 pixels to 8x8."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, C] to [B, (H - 1) // 2, (W - 1) // 2, 512 + C]."""
        three = _layer(x, ("branch3x3_1", 192, (1, 1), 1, (0, 0)))
        three = _layer(three, ("branch3x3_2", 320, (3, 3), 2, (0, 0)))
        seven = _layer(x, ("branch7x7x3_1", 192, (1, 1), 1, (0, 0)))
        seven = _layer(seven, ("branch7x7x3_2", 192, (1, 7), 1, (0, 3)))
        seven = _layer(seven, ("branch7x7x3_3", 192, (7, 1), 1, (3, 0)))
        seven = _layer(seven, ("branch7x7x3_4", 192, (3, 3), 2, (0, 0)))
        return jnp.concatenate([three, seven, _max_pool(x)], axis=-1)


class BlockE(nn.Module):
    """Branches that part in two at their end, at 8x8 pixels."""

    pool: str  # "average", or in the last block "max"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, C] to [B, H, W, 2048]."""
        wide, high = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
        one = _layer(x, ("branch1x1", 320, (1, 1), 1, (0, 0)))
        three = _layer(x, ("branch3x3_1", 384, (1, 1), 1, (0, 0)))
        twice = _layer(x, ("branch3x3dbl_1", 448, (1, 1), 1, (0, 0)))
        twice = _layer(twice, ("branch3x3dbl_2", 384, (3, 3), 1, (1, 1)))
        parts = [
            _layer(h, (f"{name}{part}", 384, *shape))
            for h, name in ((three, "branch3x3_2"), (twice, "branch3x3dbl_3"))
            for part, shape in (("a", wide), ("b", high))
        ]
        pooled = _average_pool(x) if self.pool == "average" else _max_pool(x, 1, ((1, 1), (1, 1)))
        pool = _layer(pooled, ("branch_pool", 192, (1, 1), 1, (0, 0)))
        return jnp.concatenate([one, *parts, pool], axis=-1)


class Convolution(nn.Module):
    """A convolution with a bias, then a ReLU."""

    features: int
    kernel_size: tuple[int, int]
    stride: int
    padding: tuple[int, int]  # zeros on either side of the height and of the width

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, C] to [B, H', W', features]."""
        kernel = self.param(
            "kernel",
            default_init,
            (*self.kernel_size, x.shape[-1], self.features),
            jnp.float32,
        )
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        if self.kernel_size == (1, 1):
            y = x @ kernel[0, 0]
        else:
            top, left = self.padding
            y = conv2d(x, kernel, stride=self.stride, padding=((top, top), (left, left)))
        return nn.relu(y + bias[None, None, None, :])


def _layer(x: jax.Array, layer: Layer) -> jax.Array:
    """Apply a convolution, a layer of the calling module."""
    name, *fields = layer
    return Convolution(*fields, name=name)(x)


def _max_pool(
    x: jax.Array, stride: int = 2, padding: tuple[tuple[int, int], ...] = ((0, 0), (0, 0))
) -> jax.Array:
    return nn.max_pool(x, (3, 3), (stride, stride), padding)


def _average_pool(x: jax.Array) -> jax.Array:
    """Return the mean of the 3x3 pixels around each that are within the image."""

    def sums(x: jax.Array, axis: int) -> jax.Array:
        window, padding = [1] * 4, [(0, 0)] * 4
        window[axis], padding[axis] = 3, (1, 1)
        return lax.reduce_window(x, 0.0, lax.add, window, (1,) * 4, padding)

    _, H, W, _ = x.shape
    inside = sums(sums(jnp.ones((1, H, W, 1)), 1), 2)
    return sums(sums(x, 1), 2) / inside
