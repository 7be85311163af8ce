"""LPIPS, a perceptual distance (Zhang et al. 2018) between features of VGG16.

Its weights were trained on ImageNet and on human judgements; `interop.lpips_weights`
reads them from a file that the user provides.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.errors import UsageError
from ddpm_jax.models.layers import Conv3x3

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Mean and standard deviation of the colours of ImageNet, on [-1, 1], as in the authors' code.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10  # added to the norm that features are divided by


class Vgg(nn.Module):
    """The convolutions of VGG16 (Simonyan and Zisserman 2015), in slices.

    Each convolution is followed by a ReLU; max pooling halves the image between slices.

    Parameters: slice_K_conv_J/{kernel, bias}, K and J from 0.
    """

    channels: tuple[tuple[int, ...], ...] = VGG16  # of each convolution of each slice

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """Map [B, H, W, 3] to the output of each slice, [B, H / 2**k, W / 2**k, C_k].

        In the authors' names, these are relu1_2 to relu5_3.
        """
        ends = []
        for k, slice_channels in enumerate(self.channels):
            if k:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for j, features in enumerate(slice_channels):
                x = nn.relu(Conv3x3(features, name=f"slice_{k}_conv_{j}")(x))
            ends.append(x)
        return ends


class Lpips(nn.Module):
    """d(x, y) = sum_k mean_{h, w} sum_c w_kc (x̂_khwc - ŷ_khwc)²  (eq. 1), w_kc >= 0.

    x̂_k are the features at the end of slice k, at each pixel divided by their norm over the
    channels. This is version 0.1 of the authors' package, `lpips.LPIPS(net="vgg")`; in the paper
    the weights are squared.
    """

    channels: tuple[tuple[int, ...], ...] = VGG16

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Compare images pair by pair.

        Args:
          x: [B, H, W, 3] or grey [B, H, W, 1], in [-1, 1]; H and W at least `smallest_side`.
          y: of the same shape. The distance is symmetric.

        Returns:
          [B] float32, 0 for equal images.
        """
        vgg = Vgg(self.channels, name="features")
        distance = jnp.zeros(len(x))
        for k, (features_x, features_y) in enumerate(
            zip(vgg(_normalized(x)), vgg(_normalized(y)), strict=True)
        ):
            weights = self.param(
                f"lin_{k}", nn.initializers.constant(1.0), (features_x.shape[-1],), jnp.float32
            )
            difference = jnp.square(_unit_length(features_x) - _unit_length(features_y))
            distance = distance + jnp.mean(difference @ weights, axis=(1, 2))
        return distance

    @property
    def smallest_side(self) -> int:
        """The least height and width in pixels: one pixel in the last slice."""
        return 2 ** (len(self.channels) - 1)


def _normalized(x: jax.Array) -> jax.Array:
    """Standardise the colours: [B, H, W, 1 or 3] on [-1, 1] -> [B, H, W, 3]."""
    x = jnp.broadcast_to(x.astype(jnp.float32), (*x.shape[:-1], 3))
    return (x - jnp.array(SHIFT)[None, None, None, :]) / jnp.array(SCALE)[None, None, None, :]


def _unit_length(features: jax.Array) -> jax.Array:
    """Divide by the norm over the last axis; where all features are 0, return 0.

    The gradient is 0 there too, not 0/0.
    """
    squares = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    active = squares > 0
    return jnp.where(active, features / (jnp.sqrt(jnp.where(active, squares, 1.0)) + EPSILON), 0.0)


def check_lpips(model: Lpips, height: int, width: int) -> None:
    """Refuse images that are too small to be compared.

    Raises:
      UsageError: a side is shorter than `smallest_side`.
    """
    least = model.smallest_side
    if min(height, width) < least:
        raise UsageError(
            f"The perceptual distance halves images {len(model.channels) - 1} times and needs at "
            f"least {least}x{least} pixels, but these are {height}x{width}: train on larger "
            "images, or without it."
        )
