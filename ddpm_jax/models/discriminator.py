"""The patch discriminator of pix2pix (Isola et al. 2017, section 3.2.2), as VQGAN uses it.

It classifies each patch of an image as real or reconstructed (Esser et al. 2021). The losses of its
logits are in `variational.adversarial`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ddpm_jax.errors import UsageError
from ddpm_jax.models.checks import check_count
from ddpm_jax.models.convolution import conv2d
from ddpm_jax.models.layers import NUM_GROUPS, GroupNorm

DISCRIMINATOR = "discriminator"  # the subtree of its parameters in those of a first stage
SLOPE = 0.2  # of the leaky ReLU below 0
MAX_MULTIPLE = 8  # of ch, in the widest layers
KERNEL_SIZE = 4
_init = nn.initializers.normal(0.02)


class Conv4x4(nn.Module):
    """A 4x4 convolution, zero-padded by 1: a side n becomes (n - 2) // stride + 1.

    Computed and returned in `dtype`.
    """

    features: int
    stride: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, C] to [B, (H - 2) // stride + 1, likewise W, features]."""
        kernel = self.param(
            "kernel", _init, (KERNEL_SIZE, KERNEL_SIZE, x.shape[-1], self.features), jnp.float32
        )
        y = conv2d(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=((1, 1), (1, 1)),
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)[None, None, None, :]
        return y


class Discriminator(nn.Module):
    """4x4 convolutions: num_layers of stride 2, then two of stride 1.

    All but the first and the last are normalised.

    A logit sees 70x70 pixels with 3 layers, 34x34 with 2, 16x16 with 1; `check_discriminator`
    refuses images too small to be halved that often.

    The papers use batch normalisation: a logit would depend on the other images of the batch, and
    so on how the batch is split over devices. Here each image is normalised by itself, in groups of
    channels. Weights are initialised as theirs, N(0, 0.02²), except for the scale of the
    normalisation, which starts at 1.
    """

    ch: int = 64  # channels of the first layer; layer i has ch min(2**i, 8)
    num_layers: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images [B, H, W, C] in [-1, 1] to logits [B, h, w, 1] float32, high for real."""
        h = nn.leaky_relu(Conv4x4(self.ch, 2, dtype=self.dtype, name="conv_0")(x), SLOPE)
        for i in range(1, self.num_layers + 1):
            features, stride = self.ch * min(2**i, MAX_MULTIPLE), 2 if i < self.num_layers else 1
            h = Conv4x4(features, stride, use_bias=False, dtype=self.dtype, name=f"conv_{i}")(h)
            h = nn.leaky_relu(GroupNorm(dtype=self.dtype, name=f"norm_{i}")(h), SLOPE)
        return Conv4x4(1, 1, name="conv_out")(h)

    @property
    def smallest_side(self) -> int:
        """The least height and width in pixels: three units of the last halving."""
        return 3 * 2**self.num_layers


def check_discriminator(model: Discriminator, height: int, width: int) -> None:
    """Check, before anything compiles, that a discriminator can run on images of one size.

    Raises:
      UsageError: a field or the size is wrong; the sentence names the value, what was expected and
        what to do.
    """
    for name in ("ch", "num_layers"):
        check_count(name, getattr(model, name))
    if 2 * model.ch % NUM_GROUPS:
        raise UsageError(
            f"A discriminator of {model.ch} channels has {2 * model.ch} in its second layer, which "
            f"cannot be normalised in {NUM_GROUPS} groups: make ch a multiple of {NUM_GROUPS // 2}."
        )
    least = model.smallest_side
    if min(height, width) < least:
        raise UsageError(
            f"A discriminator of {model.num_layers} layers needs images of at least "
            f"{least}x{least} pixels, but these are {height}x{width}: give it fewer layers, or "
            "train on larger images."
        )


def without_discriminator(params: Any) -> Any:
    """Return the parameters of the first stage alone, the ones used after training."""
    return {name: leaves for name, leaves in params.items() if name != DISCRIMINATOR}
