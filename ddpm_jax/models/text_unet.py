"""The U-Net of latent diffusion: a noisy image, a time and a text in, an image out.

Rombach et al. (2022), High-Resolution Image Synthesis with Latent Diffusion Models; Stable
Diffusion's network. It is the U-Net of `unet.py` with a transformer in place of each attention:
`cross_attention.py`. The text is given as the features of its tokens, `Condition.context`.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.errors import UsageError, choose
from ddpm_jax.models.checks import check_count
from ddpm_jax.models.condition import Condition, check_condition
from ddpm_jax.models.cross_attention import Transformer
from ddpm_jax.models.layers import ClassEmbedding, Conv3x3, GroupNorm, zero_init
from ddpm_jax.models.rematerialization import rematerialized
from ddpm_jax.models.trunk import Trunk, check_trunk

MIDDLES = {
    "transformer": "a transformer between two residual blocks",
    "block": "one residual block",
    "none": "nothing",
}


class TextUNet(Trunk):
    """A U-Net whose pixels look at a text.

    The levels in attn_resolutions have a transformer after every residual block. The fields
    num_heads, depth and only_cross_attention are one value for all levels, or one each, from the
    image down; the middle has those of the last level, but its self-attention in any case.

    The defaults are the network of Stable Diffusion 1.x, for latents 64x64 of 512x512 images; that
    of 2.x has num_heads (5, 10, 20, 20), context_size 1024, linear_projection and, trained on
    768x768 images, upcast_attention. For inpainting, low_res_channels is 5: a mask and the latents
    of the masked image.

    The parameters do not depend on the height and width, so a trained network runs at any size: the
    way up takes the sizes of the way down. They may have any float type: each layer converts its
    own to `dtype`. `check_text_unet` refuses what this class cannot build.
    """

    resolution: int = 64  # see Pyramid, as the fields that follow
    ch: int = 320
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    attn_resolutions: tuple[int, ...] = (64, 32, 16)
    num_heads: int | tuple[int, ...] = 8
    dropout: float = 0.0
    norm_eps: float = 1e-5  # of the residual blocks and the last normalisation
    downsample_padding: str = "both"
    time_embedding: str = "cos_sin"
    context_size: int = 768  # features of a token of the text
    depth: int | tuple[int, ...] = 1  # blocks of a transformer
    # whether the first attention of a block looks at the text too, rather than at the pixels
    only_cross_attention: bool | tuple[bool, ...] = False
    # float32 factors of the products of queries and keys whatever `dtype` is
    upcast_attention: bool = False
    mid_block: str = "transformer"  # a key of MIDDLES
    # how files of diffusers keep the first and last map of a transformer: as a linear map, or as
    # a 1x1 convolution; the network is the same
    linear_projection: bool = False
    out_channels: int = 4  # twice the image's channels when the variance is learned
    num_classes: int = 0  # of the labels in the condition; 0: it has none
    null_class: bool = True  # whether a further class, the last, carries no information
    low_res_channels: int = 0  # of the low-resolution image in the condition; 0: it has none

    @property
    def heads(self) -> tuple[int, ...]:
        """The number of heads of attention on each level."""
        return per_level(self.num_heads, len(self.ch_mult))

    @property
    def attends_in_middle(self) -> bool:
        """Whether there is a transformer between the ways down and up."""
        return self.mid_block == "transformer"

    @nn.nowrap
    def attention(
        self, h: jax.Array, context: jax.Array | None, level: int, heads: int, name: str
    ) -> jax.Array:
        """Apply a new `Transformer` of this name."""
        transformer = rematerialized(Transformer, self.remat)
        levels = len(self.ch_mult)
        layer = transformer(
            heads,
            per_level(self.depth, levels)[level],
            level >= 0 and per_level(self.only_cross_attention, levels)[level],
            self.upcast_attention,
            self.dtype,
            self.norm_groups,
            name=name,
        )
        return layer(h, context)

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
          x: [B, H, W, C] float32; H and W divisible by 2**(len(ch_mult) - 1), or of any size with
            downsample_padding "both".
          t: [B], int32 or float32: the time given to the network, any real number.
          condition: the features [B, L, context_size] of a text of any length, and a class and
            a low-resolution image [B, H, W, low_res_channels] if the fields announce them; with a
            leading axis B. A label that is no class gives NaN.
          dropout_keys: [B] typed keys, one per example, already folded with the step and the
            example's global index; None for no dropout.

        Returns:
          [B, H, W, out_channels] float32.

        Raises:
          UsageError: the condition lacks a part, has one too many, or one of another shape.
        """
        check_condition(
            condition,
            x=x,
            num_classes=self.num_classes,
            low_res_channels=self.low_res_channels,
            context_size=self.context_size,
        )
        label, low_res, context, _ = condition
        context = context.astype(self.dtype)
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
        if low_res is not None:
            x = jnp.concatenate([x, low_res], axis=-1)

        # Every output of the way down is used once, the last first.
        skips = self.down(x, temb, dropout_keys, context)
        h = self.bottom(skips[-1], temb, dropout_keys, context)
        h = self.up(h, temb, dropout_keys, skips, context)

        h = nn.swish(GroupNorm(self.norm_eps, groups=self.norm_groups, name="norm_out")(h))
        return Conv3x3(
            self.out_channels, kernel_init=zero_init, dtype=jnp.float32, name="conv_out"
        )(h)

    @nn.nowrap
    def bottom(
        self,
        h: jax.Array,
        temb: jax.Array,
        dropout_keys: jax.Array | None,
        context: jax.Array,
    ) -> jax.Array:
        """Apply what `mid_block` says to the lowest level."""
        if self.mid_block == "transformer":
            return self.middle(h, temb, dropout_keys, context)
        if self.mid_block == "block":
            return self.block(h, temb, dropout_keys, self.widths[-1], "mid_block_1")
        return h


def per_level(value: object, levels: int) -> tuple:
    """Return one value for each level, of a field that may be one for all."""
    return tuple(value) if isinstance(value, Sequence) else (value,) * levels


def check_text_unet(unet: TextUNet, height: int, width: int) -> None:
    """Check, before anything compiles, that a network can run on images of one size.

    Args:
      unet: the network, not yet initialised: its fields are all that is read.
      height: of the images or latents, in pixels.
      width: likewise.

    Raises:
      UsageError: a field or the size is wrong; the sentence names the value, what was expected and
        what to do.
    """
    levels = len(unet.ch_mult)
    for name in ("num_heads", "depth", "only_cross_attention"):
        values = per_level(getattr(unet, name), levels)
        if len(values) != levels:
            raise UsageError(
                f"{name} has {len(values)} values, but ch_mult {tuple(unet.ch_mult)} says that "
                f"there are {levels} levels: give one value, or one for each level."
            )
    for depth in per_level(unet.depth, levels):
        check_count("depth", depth)
    for name in ("out_channels", "context_size"):
        check_count(name, getattr(unet, name))
    for name in ("num_classes", "low_res_channels"):
        check_count(name, getattr(unet, name), or_none=True)
    choose("middle", unet.mid_block, MIDDLES)
    check_trunk(unet, height, width)
