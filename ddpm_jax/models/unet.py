"""The DDPM U-Net (Ho, Jain and Abbeel 2020, appendix B): a noisy image and a time in, an image out.

It takes a `Condition` too: a class, whose embedding is added to that of the time (Dhariwal and
Nichol 2021), and a low-resolution image, whose channels are concatenated with those of the noisy
image (Saharia et al. 2021; Ho et al. 2022).

The paths down and up are in `trunk.py`, the layers in `layers.py` and `attention.py`. What the
output means (eps, x_0, a variance) is decided elsewhere.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.errors import choose
from ddpm_jax.models.checks import check_count
from ddpm_jax.models.condition import Condition, check_condition
from ddpm_jax.models.layers import (
    ClassEmbedding,
    Conv3x3,
    GroupNorm,
    fourier_features,
    zero_init,
)
from ddpm_jax.models.trunk import Trunk, check_trunk

MIDDLES = {
    "attention": "attention between two residual blocks (DDPM)",
    "unnormalised_attention": "the same of pixels that are not normalised (diffusers)",
    "blocks": "two residual blocks",
    "none": "nothing",
}


class UNet(Trunk):
    """The network of DDPM: a pyramid of residual blocks with skips from the way down to the way up.

    Level i works at 1 / 2**i of the image's height and width with ch * ch_mult[i] channels. Going
    down, a level has num_res_blocks blocks and then a downsampling; every result is kept. Going up,
    a level has one block more, each fed its input concatenated with the latest result still kept,
    and then an upsampling. Attention follows every block of the levels in attn_resolutions, on both
    paths, and sits between the two blocks at the bottom.

    The defaults are DDPM's network. Improved DDPM's has scale_shift_norm, time_embedding "cos_sin",
    norm_eps 1e-5 and downsample_padding "both"; that of Dhariwal and Nichol (2021) also has
    resampling "block" and head_channels 64.

    The parameters do not depend on the height and width, so a trained network runs at any size its
    strides divide. `check_unet` refuses what this class cannot build.
    """

    out_channels: int = 3  # twice the image's channels when the variance is learned
    num_classes: int = 0  # of the labels in the condition, without the null class; 0: it has none
    null_class: bool = True  # whether a further class, the last, carries no information
    low_res_channels: int = 0  # of the low-resolution image in the condition; 0: it has none
    mid_block: str = "attention"  # a key of MIDDLES
    # n of the sines and cosines of 2^n pi x that x has as further channels; see `fourier_features`
    fourier_features: tuple[int, ...] = ()

    @property
    def attends_in_middle(self) -> bool:
        """Whether there is attention between the ways down and up."""
        return "attention" in self.mid_block

    @property
    def mid_norm_groups(self) -> int:
        """The groups of the normalisation of the attention in the middle; 0: it has none."""
        return 0 if self.mid_block == "unnormalised_attention" else self.norm_groups

    @nn.nowrap
    def middle(
        self,
        h: jax.Array,
        temb: jax.Array | None,
        dropout_keys: jax.Array | None,
        context: jax.Array | None = None,
    ) -> jax.Array:
        """Apply what `mid_block` says to the lowest level."""
        if self.mid_block == "none":
            return h
        return super().middle(h, temb, dropout_keys, context)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        condition: Condition | None = None,
        *,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
        """Apply the network.

        Args:
          x: [B, H, W, C] float32; H and W divisible by 2**(len(ch_mult) - 1).
          t: [B], int32 or float32: the time given to the network, 0..T-1 or rescaled; with
            `interval` perhaps [B, 2], with an earlier time.
          condition: class and low-resolution image, with a leading axis B; exactly the parts that
            the fields announce. A label that is no class gives NaN.
          dropout_keys: [B] typed keys, one per example, already folded with the step and the
            example's global index; None for no dropout.

        Returns:
          [B, H, W, out_channels] float32.

        Raises:
          UsageError: the condition lacks a part, has one too many, or one of another shape.
        """
        check_condition(
            condition, x=x, num_classes=self.num_classes, low_res_channels=self.low_res_channels
        )
        label, low_res, *_ = Condition() if condition is None else condition
        temb = self.embed(t)
        if label is not None:
            temb = temb + ClassEmbedding(
                self.num_classes,
                self.temb_features,
                self.dtype,
                null_class=self.null_class,
                name="class_embedding",
            )(label)
        temb = nn.swish(temb)
        if self.fourier_features:
            x = fourier_features(x, self.fourier_features)
        if low_res is not None:
            x = jnp.concatenate([x, low_res], axis=-1)

        # Every output of the way down is used once, the last first.
        skips = self.down(x, temb, dropout_keys)
        h = self.middle(skips[-1], temb, dropout_keys)
        h = self.up(h, temb, dropout_keys, skips)
        assert not skips

        h = nn.swish(GroupNorm(self.norm_eps, groups=self.norm_groups, name="norm_out")(h))
        return Conv3x3(
            self.out_channels, kernel_init=zero_init, dtype=jnp.float32, name="conv_out"
        )(h)


def check_unet(unet: UNet, height: int, width: int) -> None:
    """Check, before anything compiles, that a U-Net can run on images of one size.

    Args:
      unet: the network, not yet initialised: its fields are all that is read.
      height: of the images, in pixels.
      width: of the images, in pixels.

    Raises:
      UsageError: a field or the size is wrong; the sentence names the value, what was expected and
        what to do.
    """
    check_count("out_channels", unet.out_channels)
    for name in ("num_classes", "low_res_channels"):
        check_count(name, getattr(unet, name), or_none=True)
    choose("middle", unet.mid_block, MIDDLES)
    check_trunk(unet, height, width)
