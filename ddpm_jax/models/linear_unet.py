"""A U-Net with linear attention at high resolutions: that of denoising-diffusion-pytorch.

Its author, Phil Wang, took the U-Net of DDPM and put in root mean square norms (Zhang and Sennrich
2019) after the convolutions, a convolution of 7x7 first, attention on every level, which outside of
the lowest is linear in the number of pixels (Shen et al. 2021), and keys and values that are
learned. Inputs and outputs are those of `unet.UNet`; there are no classes.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ddpm_jax.errors import UsageError
from ddpm_jax.models.attention import attend
from ddpm_jax.models.checks import check_computation, check_count
from ddpm_jax.models.condition import Condition, check_condition
from ddpm_jax.models.convolution import conv2d
from ddpm_jax.models.layers import (
    Conv3x3,
    Dropout,
    converted,
    default_init,
    dense,
    doubled,
    timestep_embedding,
)
from ddpm_jax.models.rematerialization import rematerialized

MEMORY = 4  # keys and values of each attention that are learned
SMALLEST = 1e-12  # a vector is divided by its length or by this


class RMSNorm(nn.Module):
    """y = x / |x| * sqrt(C) * scale, over the channels of each pixel, in float32."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise [B, H, W, C] of any float type; return the same shape in `dtype`."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        x = x.astype(jnp.float32)
        length = jnp.sqrt(jnp.square(x).sum(axis=-1, keepdims=True))
        y = x / jnp.maximum(length, SMALLEST) * (channels**0.5 * scale[None, None, None, :])
        return y.astype(self.dtype)


class TimedBlock(nn.Module):
    """Two normalised convolutions, the first scaled and shifted by the time, plus a shortcut.

    h = dropout(swish(norm1(conv1(x)) * (1 + s) + b)), [s, b] = temb_proj(temb)
    y = shortcut(x) + swish(norm2(conv2(h)))

    The shortcut is the identity, or a 1x1 convolution where the number of channels changes.
    """

    features: int
    dropout: float
    norm_groups: int
    norm_eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        """Map [B, H, W, C] to [B, H, W, features], given the time [B, E] after its swish."""
        dtype = self.dtype
        scale_shift = dense(2 * self.features, name="temb_proj", dtype=dtype)(temb)
        scale, shift = jnp.split(scale_shift[:, None, None, :], 2, axis=-1)
        h = self._norm("norm1")(Conv3x3(self.features, dtype=dtype, name="conv1")(x))
        h = Dropout(self.dropout, name="dropout")(nn.swish(h * (1 + scale) + shift), dropout_keys)
        h = self._norm("norm2")(Conv3x3(self.features, dtype=dtype, name="conv2")(h))
        if x.shape[-1] != self.features:
            x = dense(self.features, name="shortcut", dtype=dtype)(x)
        return x + nn.swish(h)

    @nn.nowrap
    def _norm(self, name: str) -> nn.Module:
        if not self.norm_groups:
            return RMSNorm(self.dtype, name=name)
        return nn.GroupNorm(
            self.norm_groups,
            epsilon=self.norm_eps,
            dtype=self.dtype,
            use_fast_variance=False,
            name=name,
        )


class MemoryAttention(nn.Module):
    """x + attention(norm(x)) over the pixels of an image and `MEMORY` learned keys and values.

    With `linear`, every pixel's query is a distribution over the channels of a head and every
    channel's keys one over the pixels, so that keys and values are summed up before a query sees
    them: softmax(q) (softmax(k)^T v) / sqrt(D). What comes out is normalised.
    """

    heads: int
    head_channels: int
    linear: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Map [B, H, W, C] to the same shape."""
        B, H, W, C = x_BxHxWxC.shape
        N, D, dtype = self.heads, self.head_channels, self.dtype
        memory_2xMxNxD = self.param(
            "memory", nn.initializers.normal(1.0), (2, MEMORY, N, D), jnp.float32
        )
        h_BxHxWxC = RMSNorm(dtype, name="norm")(x_BxHxWxC)
        qkv = dense(3 * N * D, name="qkv", dtype=dtype, use_bias=False)(h_BxHxWxC)
        q_BxLxNxD, k_BxLxNxD, v_BxLxNxD = jnp.split(qkv.reshape(B, H * W, 3 * N, D), 3, axis=2)
        learned = jnp.broadcast_to(memory_2xMxNxD[:, None], (2, B, MEMORY, N, D)).astype(dtype)
        k_BxMxNxD = jnp.concatenate([learned[0], k_BxLxNxD], axis=1)
        v_BxMxNxD = jnp.concatenate([learned[1], v_BxLxNxD], axis=1)
        if self.linear:
            q_BxLxNxD = nn.softmax(q_BxLxNxD.astype(jnp.float32), axis=3) * D**-0.5
            k_BxMxNxD = nn.softmax(k_BxMxNxD.astype(jnp.float32), axis=1)
            context = jnp.einsum("bmnd,bmne->bnde", k_BxMxNxD.astype(dtype), v_BxMxNxD)
            o_BxLxNxD = jnp.einsum("bnde,blnd->blne", context, q_BxLxNxD.astype(dtype))
        else:
            o_BxLxNxD = attend(q_BxLxNxD, k_BxMxNxD, v_BxMxNxD)
        o_BxHxWxF = o_BxLxNxD.reshape(B, H, W, N * D)
        o_BxHxWxC = dense(C, name="proj_out", dtype=dtype)(o_BxHxWxF)
        if self.linear:
            o_BxHxWxC = RMSNorm(dtype, name="norm_out")(o_BxHxWxC)
        return x_BxHxWxC + o_BxHxWxC


class LinearUNet(nn.Module):
    """The U-Net of denoising-diffusion-pytorch, version 1.9 and later.

    Level i works at 1 / 2**i of the image's height and width: two blocks, attention after the
    second, and a change to the ch * ch_mult[i] channels of the next level, which halves height and
    width except on the last. Going up, blocks are fed the results of the way down. The image after
    its first convolution is fed to a last block.

    The parameters do not depend on the height and width. `check_linear_unet` refuses what this
    class cannot build.
    """

    ch: int = 64  # channels of the first level
    ch_mult: tuple[int, ...] = (1, 2, 4, 8)  # channels after each level, as multiples of ch
    full_attention: tuple[int, ...] = (3,)  # levels whose attention is not linear
    heads: int = 4
    head_channels: int = 32
    dropout: float = 0.0  # probability of a zero after each block's first convolution
    norm_groups: int = 0  # of the norms in blocks; 0: root mean square norms, as from version 2 on
    norm_eps: float = 1e-5  # added to the variance of a norm of groups
    # of the computation; parameters, normalisation statistics and softmax are float32
    dtype: DTypeLike = jnp.float32
    # what is stored for the backward pass, a key of rematerialization.REMAT
    remat: str = "none"
    out_channels: int = 3  # twice the image's channels when the variance is learned

    num_classes = low_res_channels = 0  # not fields: it is given no such condition

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
          t: [B], int32 or float32: the time given to the network, 0..T-1.
          condition: None, or one without any part.
          dropout_keys: [B] typed keys, one per example, already folded with the step and the
            example's global index; None for no dropout.

        Returns:
          [B, H, W, out_channels] float32.

        Raises:
          UsageError: there is a condition.
        """
        check_condition(condition, x=x, num_classes=0, low_res_channels=0)
        dtype, last = self.dtype, len(self.ch_mult) - 1
        widths = [self.ch, *(self.ch * mult for mult in self.ch_mult)]
        temb = timestep_embedding(t, self.ch)
        temb = nn.gelu(dense(4 * self.ch, name="temb_dense0", dtype=dtype)(temb), approximate=False)
        temb = nn.swish(dense(4 * self.ch, name="temb_dense1", dtype=dtype)(temb))
        block = functools.partial(self.block, temb=temb, dropout_keys=dropout_keys)

        h = first = Conv7x7(self.ch, dtype, name="conv_in")(x)
        skips = []
        for i, width in enumerate(widths[:-1]):
            h = block(h, width, f"down_{i}_block_0")
            skips.append(h)
            h = self.attention(block(h, width, f"down_{i}_block_1"), i, f"down_{i}")
            skips.append(h)
            if i != last:
                h = dense(widths[i + 1], name=f"down_{i}_out", dtype=dtype)(stacked(h))
            else:
                h = Conv3x3(widths[i + 1], dtype=dtype, name=f"down_{i}_out")(h)

        h = block(h, widths[-1], "mid_block_1")
        h = block(self.attention(h, None, "mid"), widths[-1], "mid_block_2")

        for i in reversed(range(len(self.ch_mult))):
            for j in range(2):
                h = block(jnp.concatenate([h, skips.pop()], -1), widths[i + 1], f"up_{i}_block_{j}")
            h = self.attention(h, i, f"up_{i}")
            h = Conv3x3(widths[i], dtype=dtype, name=f"up_{i}_out")(doubled(h) if i else h)

        h = block(jnp.concatenate([h, first], axis=-1), self.ch, "last_block")
        return dense(self.out_channels, name="conv_out", dtype=jnp.float32)(h)

    @nn.nowrap
    def block(
        self,
        h: jax.Array,
        features: int,
        name: str,
        *,
        temb: jax.Array,
        dropout_keys: jax.Array | None,
    ) -> jax.Array:
        """Apply a new `TimedBlock` of this name."""
        timed_block = rematerialized(TimedBlock, self.remat)
        layer = timed_block(
            features, self.dropout, self.norm_groups, self.norm_eps, self.dtype, name=name
        )
        return layer(h, temb, dropout_keys)

    @nn.nowrap
    def attention(self, h: jax.Array, level: int | None, name: str) -> jax.Array:
        """Apply a new `MemoryAttention`, on a level or, for None, in the middle."""
        linear = level is not None and level not in self.full_attention
        memory_attention = rematerialized(MemoryAttention, self.remat)
        name = f"{name}_linear_attn" if linear else f"{name}_attn"
        return memory_attention(self.heads, self.head_channels, linear, self.dtype, name=name)(h)


class Conv7x7(nn.Module):
    """A zero-padded 7x7 convolution with a bias: [B, H, W, C] -> [B, H, W, features]."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (7, 7, x.shape[-1], self.features)
        kernel = self.param("kernel", default_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        kernel = converted(kernel, self.dtype, x)
        y = conv2d(x.astype(self.dtype), kernel, padding=((3, 3), (3, 3)))
        return y + bias.astype(self.dtype)[None, None, None, :]


def stacked(x: jax.Array) -> jax.Array:
    """Return each 2x2 pixels as one of four times the channels: [B, H, W, C], H and W even.

    A channel's four values stay together, row by row: [B, H / 2, W / 2, 4 C].
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(batch, height // 2, width // 2, 4 * channels)


def check_linear_unet(unet: LinearUNet, height: int, width: int) -> None:
    """Check, before anything compiles, that a network can run on images of one size.

    Args:
      unet: the network, not yet initialised: its fields are all that is read.
      height: of the images, in pixels.
      width: of the images, in pixels.

    Raises:
      UsageError: a field or the size is wrong; the sentence names the value, what was expected and
        what to do.
    """
    for name in ("ch", "heads", "head_channels", "out_channels"):
        check_count(name, getattr(unet, name))
    check_count("norm_groups", unet.norm_groups, or_none=True)
    if not unet.ch_mult:
        raise UsageError("ch_mult is empty: give one multiplier of the channels per level.")
    for i, mult in enumerate(unet.ch_mult):
        check_count(f"ch_mult[{i}]", mult)
    check_computation(unet)
    if unet.ch < 4 or unet.ch % 2:
        raise UsageError(f"ch is {unet.ch}: give an even number of 4 or more (sines and cosines).")
    if unet.norm_groups and unet.ch % unet.norm_groups:
        raise UsageError(f"norm_groups {unet.norm_groups} does not divide ch {unet.ch}.")
    for level in unet.full_attention:
        if level not in range(len(unet.ch_mult)):
            raise UsageError(
                f"full_attention names level {level}: there are 0 to {len(unet.ch_mult) - 1}."
            )
    stride = 2 ** (len(unet.ch_mult) - 1)
    for name, size in {"height": height, "width": width}.items():
        if size < 1 or size % stride:
            raise UsageError(
                f"The {name} {size} is not divisible by {stride}, for the {len(unet.ch_mult)} "
                "levels of ch_mult: resize the images, or take fewer levels."
            )
