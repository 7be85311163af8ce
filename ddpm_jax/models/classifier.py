"""A classifier of noisy images: the half of the U-Net that goes down, and logits from the mean over its pixels.

Its blocks are the U-Net's; what it is trained on is in `training.classifier`, and what it guides in `samplers`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ddpm_jax.errors import UsageError
from ddpm_jax.models.attention import AttentionBlock
from ddpm_jax.models.layers import (
    DOWNSAMPLE_PADDINGS,
    EPSILON,
    Conv3x3,
    GroupNorm,
    dense,
    timestep_embedding,
    zero_init,
)
from ddpm_jax.models.rematerialization import rematerialized
from ddpm_jax.models.unet import ResBlock, UNet, check_unet


class Classifier(nn.Module):
    """p(y|x_t, t): the classifier of Dhariwal and Nichol (2021), section 4, which pools by attention; this by the mean.

    Fields with the names of `unet.UNet` mean what they mean there. A new network finds all classes equally likely.
    """

    num_classes: int
    resolution: int = 32
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2  # per level
    attn_resolutions: tuple[int, ...] = (16,)
    num_heads: int = 1
    dropout: float = 0.1
    scale_shift_norm: bool = False
    time_embedding: str = "sin_cos"
    norm_eps: float = EPSILON
    downsample_padding: str = "end"
    dtype: DTypeLike = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, *, dropout_keys: jax.Array | None = None) -> jax.Array:
        """Maps noisy images to logits.

        Args:
          x: [B, H, W, C] float32; H and W divisible by 2**(len(ch_mult) - 1).
          t: [B], int32 or float32, the time the network is told.
          dropout_keys: [B] typed keys, one per example; None for no dropout.

        Returns:
          [B, num_classes] float32.
        """
        res_block = rematerialized(ResBlock, self.remat)
        attention_block = rematerialized(AttentionBlock, self.remat)
        dtype = self.dtype

        def block(h: jax.Array, features: int, name: str) -> jax.Array:
            layer = res_block(features, self.dropout, self.scale_shift_norm, self.norm_eps, dtype, name=name)
            return layer(h, temb, dropout_keys)

        def attention(h: jax.Array, name: str) -> jax.Array:
            return attention_block(self.num_heads, self.norm_eps, dtype, name=name)(h)

        temb = timestep_embedding(t, self.ch, self.time_embedding)
        temb = nn.swish(dense(4 * self.ch, name="temb_dense0", dtype=dtype)(temb))
        temb = nn.swish(dense(4 * self.ch, name="temb_dense1", dtype=dtype)(temb))

        h = Conv3x3(self.ch, dtype=dtype, name="conv_in")(x)
        for i, mult in enumerate(self.ch_mult):
            features = self.ch * mult
            for j in range(self.num_res_blocks):
                h = block(h, features, f"down_{i}_block_{j}")
                if self.resolution // 2**i in self.attn_resolutions:
                    h = attention(h, f"down_{i}_attn_{j}")
            if i != len(self.ch_mult) - 1:
                padding = DOWNSAMPLE_PADDINGS[self.downsample_padding]
                h = Conv3x3(features, 2, padding, dtype=dtype, name=f"down_{i}_downsample")(h)

        h = block(h, features, "mid_block_1")
        h = attention(h, "mid_attn_1")
        h = block(h, features, "mid_block_2")

        h = nn.swish(GroupNorm(self.norm_eps, name="norm_out")(h)).mean(axis=(1, 2))
        return dense(self.num_classes, name="logits", dtype=jnp.float32, kernel_init=zero_init)(h)


def check_classifier(classifier: Classifier, height: int, width: int) -> None:
    """Checks that a classifier can be built and run on images of one size, before anything compiles.

    Raises:
      UsageError: fewer than two classes, or as `unet.check_unet`.
    """
    if classifier.num_classes < 2:
        raise UsageError(
            f"A classifier of {classifier.num_classes} classes has nothing to tell apart: give it 2 or more."
        )
    shared = {name: value for name, value in vars(classifier).items() if name in UNet.__dataclass_fields__}
    inherited = ("parent", "name", "num_classes")
    check_unet(UNet(**{name: value for name, value in shared.items() if name not in inherited}), height, width)
