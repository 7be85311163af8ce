"""The DDPM U-Net (Ho, Jain and Abbeel 2020, appendix B): a noisy image and a time in, an image of any meaning out.

It may also be told a `Condition`: a class, whose embedding is added to that of the time (Dhariwal and Nichol 2021), and
a low-resolution image, whose channels are concatenated with the noisy one's (Saharia et al. 2021; Ho et al. 2022).

Its layers are in `layers.py` and `attention.py`. What the output means (eps, x_0, a variance) is not known here.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ddpm_jax.errors import UsageError, choose
from ddpm_jax.models.attention import AttentionBlock
from ddpm_jax.models.condition import Condition, check_condition
from ddpm_jax.models.layers import (
    DOWNSAMPLE_PADDINGS,
    EPSILON,
    NUM_GROUPS,
    TIME_EMBEDDINGS,
    ClassEmbedding,
    Conv3x3,
    Dropout,
    GroupNorm,
    Upsample,
    dense,
    timestep_embedding,
    zero_init,
)
from ddpm_jax.models.rematerialization import REMAT, rematerialized


class ResBlock(nn.Module):
    """Two normalised convolutions with the time added in between, summed with the input.

    h = conv1(swish(norm1(x)))
    h = norm2(h + temb_proj(temb))      with scale_shift_norm: norm2(h) * (1 + s) + b, where [s, b] = temb_proj(temb)
    y = shortcut(x) + conv2(dropout(swish(h)))

    The shortcut is the identity, or a 1x1 convolution where the number of channels changes.
    """

    features: int
    dropout: float = 0.0
    scale_shift_norm: bool = False
    norm_eps: float = EPSILON
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, features].

        Args:
          x: [B, H, W, C] in `dtype`.
          temb: [B, E], the embedded time and class after their swish.
          dropout_keys: [B] typed keys, or None for no dropout.
        """
        dtype = self.dtype
        h = nn.swish(GroupNorm(self.norm_eps, dtype, name="norm1")(x))
        h = Conv3x3(self.features, dtype=dtype, name="conv1")(h)
        if self.scale_shift_norm:
            scale_shift = dense(2 * self.features, name="temb_proj", dtype=dtype)(temb)[:, None, None, :]
            scale, shift = jnp.split(scale_shift, 2, axis=-1)
            h = GroupNorm(self.norm_eps, dtype, name="norm2")(h) * (1 + scale) + shift
        else:
            h = h + dense(self.features, name="temb_proj", dtype=dtype)(temb)[:, None, None, :]
            h = GroupNorm(self.norm_eps, dtype, name="norm2")(h)
        h = Dropout(self.dropout, name="dropout")(nn.swish(h), dropout_keys)
        h = Conv3x3(self.features, kernel_init=zero_init, dtype=dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = dense(self.features, name="shortcut", dtype=dtype)(x)
        return x + h


class UNet(nn.Module):
    """The network of DDPM: residual blocks on a pyramid of resolutions, down and up again, with skips in between.

    Level i works at 1 / 2**i of the image's height and width with ch * ch_mult[i] channels. Going down, a level has
    num_res_blocks blocks and then a downsampling; every result is kept. Going up, a level has one block more, each fed
    its input concatenated with the latest result still kept, and then an upsampling. Attention follows every block of
    the levels in attn_resolutions, on both paths, and sits between the two blocks at the bottom.

    The defaults are DDPM's network. Improved DDPM's has scale_shift_norm, time_embedding "cos_sin", norm_eps 1e-5 and
    downsample_padding "both".

    The parameters do not depend on the height and width, so a trained network runs at any size its strides divide.
    `check_unet` refuses what this class cannot build.
    """

    resolution: int = (
        32  # height of a training image; level i has attention if resolution // 2**i is in attn_resolutions
    )
    out_channels: int = 3  # twice the image's channels when the variance is learned
    ch: int = 128  # channels of the first level
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)  # channels of each level, as multiples of ch
    num_res_blocks: int = 2  # per level going down; one more going up
    attn_resolutions: tuple[int, ...] = (16,)
    num_heads: int = 1
    dropout: float = 0.1  # probability of a zero before each block's last convolution
    scale_shift_norm: bool = False  # let the time scale and shift the second normalisation (Improved DDPM)
    time_embedding: str = "sin_cos"  # a key of layers.TIME_EMBEDDINGS
    norm_eps: float = EPSILON  # added to the variance of every group normalisation; 1e-5 in Improved DDPM
    downsample_padding: str = "end"  # a key of layers.DOWNSAMPLE_PADDINGS; "both" in Improved DDPM
    dtype: DTypeLike = jnp.float32  # of the computation; parameters, normalisation statistics and softmax are float32
    remat: str = "none"  # what the backward pass finds kept of the forward pass, a key of rematerialization.REMAT
    num_classes: int = 0  # of the labels in the condition, without the null class; 0: it has none
    low_res_channels: int = 0  # of the low-resolution image in the condition; 0: it has none

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        condition: Condition | None = None,
        *,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
        """Applies the network.

        Args:
          x: [B, H, W, C] float32; H and W divisible by 2**(len(ch_mult) - 1).
          t: [B], int32 or float32: the time the network is told, 0..T-1 or rescaled.
          condition: what else it is told, with a leading axis B; exactly the parts that the fields announce. A label
            outside 0..num_classes gives not-a-number.
          dropout_keys: [B] typed keys, one per example, already folded with the step and the example's global index;
            None for no dropout.

        Returns:
          [B, H, W, out_channels] float32.

        Raises:
          UsageError: the condition lacks a part, has one too many, or one of another shape.
        """
        check_condition(condition, x=x, num_classes=self.num_classes, low_res_channels=self.low_res_channels)
        label, low_res = Condition() if condition is None else condition
        res_block = rematerialized(ResBlock, self.remat)
        attention_block = rematerialized(AttentionBlock, self.remat)
        dtype = self.dtype

        def block(h: jax.Array, features: int, name: str) -> jax.Array:
            layer = res_block(features, self.dropout, self.scale_shift_norm, self.norm_eps, dtype, name=name)
            return layer(h, temb, dropout_keys)

        def attention(h: jax.Array, name: str) -> jax.Array:
            return attention_block(self.num_heads, self.norm_eps, dtype, name=name)(h)

        levels = [
            (i, self.ch * mult, self.resolution // 2**i in self.attn_resolutions) for i, mult in enumerate(self.ch_mult)
        ]

        temb = timestep_embedding(t, self.ch, self.time_embedding)
        temb = nn.swish(dense(4 * self.ch, name="temb_dense0", dtype=dtype)(temb))
        temb = dense(4 * self.ch, name="temb_dense1", dtype=dtype)(temb)
        if label is not None:
            temb = temb + ClassEmbedding(self.num_classes, 4 * self.ch, dtype, name="class_embedding")(label)
        temb = nn.swish(temb)

        # Down
        if low_res is not None:
            x = jnp.concatenate([x, low_res], axis=-1)
        h = Conv3x3(self.ch, dtype=dtype, name="conv_in")(x)
        skips = [h]
        for i, features, attends in levels:
            for j in range(self.num_res_blocks):
                h = block(h, features, f"down_{i}_block_{j}")
                if attends:
                    h = attention(h, f"down_{i}_attn_{j}")
                skips.append(h)
            if i != len(levels) - 1:
                padding = DOWNSAMPLE_PADDINGS[self.downsample_padding]
                h = Conv3x3(features, 2, padding, dtype=dtype, name=f"down_{i}_downsample")(h)
                skips.append(h)

        # Middle
        _, lowest_features, _ = levels[-1]
        h = block(h, lowest_features, "mid_block_1")
        h = attention(h, "mid_attn_1")
        h = block(h, lowest_features, "mid_block_2")

        # Up
        for i, features, attends in reversed(levels):
            for j in range(self.num_res_blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), features, f"up_{i}_block_{j}")
                if attends:
                    h = attention(h, f"up_{i}_attn_{j}")
            if i != 0:
                h = Upsample(dtype, name=f"up_{i}_upsample")(h)
        assert not skips

        h = nn.swish(GroupNorm(self.norm_eps, name="norm_out")(h))
        return Conv3x3(self.out_channels, kernel_init=zero_init, dtype=jnp.float32, name="conv_out")(h)


def null_condition(unet: UNet, x: jax.Array) -> Condition | None:
    """Returns the condition, for images x [B, H, W, C], that says nothing: the null class and a black image.

    Of the right shapes, so a network can be initialised with it; None for a network without conditions.
    """
    if not unet.num_classes and not unet.low_res_channels:
        return None
    return Condition(
        label=jnp.full(x.shape[:1], unet.num_classes, jnp.int32) if unet.num_classes else None,
        low_res=jnp.full((*x.shape[:3], unet.low_res_channels), -1.0) if unet.low_res_channels else None,
    )


def check_unet(unet: UNet, height: int, width: int) -> None:
    """Checks that a network can be built and run on images of one size, before anything compiles.

    Args:
      unet: the network, not yet initialised: its fields are all that is read.
      height: of the images, in pixels.
      width: of the images, in pixels.

    Raises:
      UsageError: a field or the size is wrong; the sentence names the value, what was expected and what to do.
    """
    _check_numbers(unet)
    choose("time embedding", unet.time_embedding, TIME_EMBEDDINGS)
    choose("downsample padding", unet.downsample_padding, DOWNSAMPLE_PADDINGS)
    choose("remat", unet.remat, REMAT)
    levels = len(unet.ch_mult)
    stride = 2 ** (levels - 1)
    for name, size in {"height": height, "width": width, "resolution": unet.resolution}.items():
        if size < 1 or size % stride:
            raise UsageError(
                f"The {name} {size} is not divisible by {stride}, the stride of a U-Net of {levels} levels: "
                f"resize the images to a multiple of {stride}, or give fewer ch_mult than {tuple(unet.ch_mult)}."
            )
    # Every other normalised width is a sum of these, by concatenation with a skip.
    for features in {unet.ch, *(unet.ch * mult for mult in unet.ch_mult)}:
        if features % NUM_GROUPS:
            raise UsageError(
                f"A level of {features} channels cannot be normalised in {NUM_GROUPS} groups: "
                f"make ch (now {unet.ch}) times each of ch_mult {tuple(unet.ch_mult)} a multiple of {NUM_GROUPS}."
            )
    _check_attention(unet)


def _check_numbers(unet: UNet) -> None:
    if not unet.ch_mult:
        raise UsageError("ch_mult is empty: give one multiplier of the channels per level, for example (1, 2, 2, 2).")
    counts = {"ch": unet.ch, "num_res_blocks": unet.num_res_blocks, "num_heads": unet.num_heads}
    counts |= {"out_channels": unet.out_channels} | {f"ch_mult[{i}]": mult for i, mult in enumerate(unet.ch_mult)}
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"{name} is {value!r}: give a whole number of at least 1.")
    for name, value in {"num_classes": unet.num_classes, "low_res_channels": unet.low_res_channels}.items():
        if not isinstance(value, int) or value < 0:
            raise UsageError(f"{name} is {value!r}: give a whole number, 0 for none.")
    if not 0.0 <= unet.dropout < 1.0:
        raise UsageError(f"dropout is {unet.dropout}: give a probability in [0, 1), for example 0.1.")
    if not 0.0 < unet.norm_eps < float("inf"):
        raise UsageError(f"norm_eps is {unet.norm_eps}: give a number above 0, for example 1e-6.")
    try:
        floating = jnp.issubdtype(jnp.dtype(unet.dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise UsageError(f"dtype is {unet.dtype!r}: give a floating-point type, float32 or bfloat16.")


def _check_attention(unet: UNet) -> None:
    resolutions = [unet.resolution // 2**i for i in range(len(unet.ch_mult))]
    for wanted in unet.attn_resolutions:
        if wanted not in resolutions:
            raise UsageError(
                f"attn_resolutions names {wanted}, but the levels of a U-Net of resolution {unet.resolution} "
                f"are at {', '.join(map(str, resolutions))}: choose among these."
            )
    attending = [mult for mult, at in zip(unet.ch_mult, resolutions, strict=True) if at in unet.attn_resolutions]
    for mult in [*attending, unet.ch_mult[-1]]:  # the middle always attends
        if unet.ch * mult % unet.num_heads:
            raise UsageError(
                f"num_heads {unet.num_heads} does not divide the {unet.ch * mult} channels of a level with attention: "
                f"choose a divisor of {unet.ch * mult}."
            )
