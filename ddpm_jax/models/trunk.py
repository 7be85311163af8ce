"""Residual blocks on a pyramid of resolutions: what the convolutional networks share.

`Pyramid` is the base of all of them, `Trunk` of those conditioned on a time. Other conditions, and
what follows the lowest resolution, are in `unet.py`, `classifier.py` and `autoencoder.py`.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ddpm_jax.errors import UsageError, choose
from ddpm_jax.models.attention import AttentionBlock
from ddpm_jax.models.checks import check_computation, check_count
from ddpm_jax.models.layers import (
    BOX,
    DOWNSAMPLE_PADDINGS,
    EPSILON,
    NUM_GROUPS,
    RESAMPLINGS,
    TIME_EMBEDDINGS,
    Conv3x3,
    Dropout,
    GroupNorm,
    Upsample,
    dense,
    doubled,
    embed_times,
    halved,
    scaled,
    zero_init,
)
from ddpm_jax.models.rematerialization import rematerialized

ROUNDING = 1e-3  # of the channels of a level, ch times a fraction
QKV_ORDERS = {
    "heads": "q, k and v of the first head, then of the next one",
    "maps": "q of all heads, then k, then v",
}


class ResBlock(nn.Module):
    """Two normalised convolutions with the time added in between, plus a shortcut.

    h = conv1(swish(norm1(x)))
    h = norm2(h + temb_proj(temb))
    y = shortcut(x) + conv2(dropout(swish(h)))

    With scale_shift_norm the second line is norm2(h) * (1 + s) + b, where [s, b] = temb_proj(temb);
    without a time, temb_proj is left out. The shortcut is the identity, or a 1x1 convolution where
    the number of channels changes. With `resample`, x in the last line and what conv1 is applied to
    are halved or doubled in height and width first (Dhariwal and Nichol 2021, section 3).

    In the networks of Song et al. (2021), that filter has more taps, a resampled x also has the
    1x1 convolution, and the sum is divided by sqrt(2).
    """

    features: int
    dropout: float = 0.0
    scale_shift_norm: bool = False
    norm_eps: float = EPSILON
    dtype: DTypeLike = jnp.float32
    resample: str = ""  # "down" or "up", where features is C; "": neither
    norm_groups: int = NUM_GROUPS  # of channels
    smallest_group: int = 1  # channels of a group at least
    skip_scale: float = 1.0  # of the sum of shortcut and branch
    resample_filter: tuple[float, ...] = BOX  # the taps of `layers.halved`
    resampled_shortcut: bool = False  # whether a resampled x has the 1x1 convolution too

    @nn.compact
    def __call__(
        self, x: jax.Array, temb: jax.Array | None, dropout_keys: jax.Array | None
    ) -> jax.Array:
        """Map [B, H, W, C] to [B, H, W, features], or to half or twice H and W.

        Args:
          x: [B, H, W, C] in `dtype`.
          temb: [B, E], the embedded time and class after their swish; None for a network without
            them.
          dropout_keys: [B] typed keys, or None for no dropout.
        """
        dtype = self.dtype
        groups = self.norm_groups, self.smallest_group
        norm = functools.partial(GroupNorm, self.norm_eps, dtype, *groups)
        h = nn.swish(norm(name="norm1")(x))
        if self.resample == "down":
            h, x = (halved(image, self.resample_filter) for image in (h, x))
        if self.resample == "up" and self.resample_filter == BOX:
            h, x = Upsample(dtype, name="conv1")(h), doubled(x)
        else:
            if self.resample == "up":
                h, x = (doubled(image, self.resample_filter) for image in (h, x))
            h = Conv3x3(self.features, dtype=dtype, name="conv1")(h)
        if temb is None:
            h = norm(name="norm2")(h)
        elif self.scale_shift_norm:
            scale_shift = dense(2 * self.features, name="temb_proj", dtype=dtype)(temb)[
                :, None, None, :
            ]
            scale, shift = jnp.split(scale_shift, 2, axis=-1)
            h = norm(name="norm2")(h) * (1 + scale) + shift
        else:
            h = h + dense(self.features, name="temb_proj", dtype=dtype)(temb)[:, None, None, :]
            h = norm(name="norm2")(h)
        h = Dropout(self.dropout, name="dropout")(nn.swish(h), dropout_keys)
        h = Conv3x3(self.features, kernel_init=zero_init, dtype=dtype, name="conv2")(h)
        if x.shape[-1] != self.features or (self.resample and self.resampled_shortcut):
            x = dense(self.features, name="shortcut", dtype=dtype)(x)
        return scaled(x + h, self.skip_scale)


class Pyramid(nn.Module):
    """Residual blocks on a pyramid of resolutions, from the image to the lowest and up again.

    Level i works at 1 / 2**i of the image's height and width with ch * ch_mult[i] channels: on the
    way down, num_res_blocks blocks and then a downsampling; on the way up one block more, and then
    an upsampling. Attention follows every block of the levels in attn_resolutions, and sits between
    the two blocks at the bottom.

    A network of this form derives from it and calls its methods in a compact `__call__`: the layers
    that they create are the network's own, by the names given here. In all methods `temb` [B, E] is
    the embedded time after its swish, None for a network without a time, and `context` [B, L, D]
    what attention looks at besides the pixels, None for pixels alone. `check_pyramid` refuses what
    this class cannot build.
    """

    resolution: int = (
        # height of a training image; level i has attention if resolution // 2**i is in
        # attn_resolutions
        32
    )
    ch: int = 128  # channels of the first convolution
    # channels of each level, as multiples of ch, whole or not; see `widths`
    ch_mult: tuple[float, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2  # of each level on the way down
    attn_resolutions: tuple[int, ...] = (16,)
    num_heads: int = 1
    dropout: float = 0.1  # probability of a zero before each block's last convolution
    # added to the variance of every group normalisation; 1e-5 in Improved DDPM
    norm_eps: float = EPSILON
    norm_groups: int = NUM_GROUPS  # of channels, in every group normalisation
    downsample_padding: str = "end"  # a key of layers.DOWNSAMPLE_PADDINGS; "both" in Improved DDPM
    # of the computation; parameters, normalisation statistics and softmax are float32
    dtype: DTypeLike = jnp.float32
    # what is stored for the backward pass, a key of rematerialization.REMAT
    remat: str = "none"

    # not fields here: only a `Trunk` has them
    scale_shift_norm = False
    resampling = "conv"
    block_down: tuple[int, ...] = ()
    block_up: tuple[int, ...] = ()
    # likewise, of the networks in `edm_unets`; see `ResBlock`
    smallest_group = 1
    skip_scale = 1.0
    resample_filter = BOX
    resampled_shortcut = False
    qkv_scale = 1.0

    @property
    def heads(self) -> tuple[int, ...]:
        """The number of heads of attention on each level; the middle has those of the last."""
        return (self.num_heads,) * len(self.ch_mult)

    @property
    def heads_up(self) -> tuple[int, ...]:
        """The number of heads of attention on each level on the way up."""
        return self.heads

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from the image down."""
        return tuple(round(self.ch * mult) for mult in self.ch_mult)

    @property
    def attends_in_middle(self) -> bool:
        """Whether there is attention between the ways down and up."""
        return True

    @property
    def mid_norm_groups(self) -> int:
        """The groups of the normalisation of the attention in the middle; 0: it has none."""
        return self.norm_groups

    @property
    def levels(self) -> list[tuple[int, int, bool]]:
        """Index, channels and use of attention of each level, from the image down."""
        return [
            (i, width, self.resolution // 2**i in self.attn_resolutions)
            for i, width in enumerate(self.widths)
        ]

    @nn.nowrap
    def block(
        self,
        h: jax.Array,
        temb: jax.Array | None,
        dropout_keys: jax.Array | None,
        features: int,
        name: str,
        resample: str = "",
    ) -> jax.Array:
        """Apply a new `ResBlock` of this name."""
        res_block = rematerialized(ResBlock, self.remat)
        layer = res_block(
            features,
            self.dropout,
            self.scale_shift_norm,
            self.norm_eps,
            self.dtype,
            resample,
            self.norm_groups,
            self.smallest_group,
            self.skip_scale,
            self.resample_filter,
            self.resampled_shortcut,
            name=name,
        )
        return layer(h, temb, dropout_keys)

    @nn.nowrap
    def attention(
        self, h: jax.Array, context: jax.Array | None, level: int, heads: int, name: str
    ) -> jax.Array:
        """Apply what follows a block on a level with attention: a new layer of this name.

        Here it is an `AttentionBlock`, which looks at no context; a network with another layer
        overrides this method. `level` is -1 in the middle.
        """
        attention_block = rematerialized(AttentionBlock, self.remat)
        groups = self.norm_groups if level >= 0 else self.mid_norm_groups
        layer = attention_block(
            heads,
            self.norm_eps,
            self.dtype,
            groups,
            self.smallest_group,
            self.skip_scale,
            self.qkv_scale,
            name=name,
        )
        return layer(h)

    @nn.nowrap
    def first_features(self, x: jax.Array) -> jax.Array:
        """Apply the first convolution, a new layer."""
        return Conv3x3(self.ch, dtype=self.dtype, name="conv_in")(x)

    @nn.nowrap
    def joined(self, h: jax.Array, skip: jax.Array) -> jax.Array:
        """Return features h and those of the way down as the input of one block."""
        return jnp.concatenate([h, skip], axis=-1)

    @nn.nowrap
    def down(
        self,
        x: jax.Array,
        temb: jax.Array | None,
        dropout_keys: jax.Array | None,
        context: jax.Array | None = None,
    ) -> list[jax.Array]:
        """Walk the levels down from the image [B, H, W, C].

        Returns:
          The outputs of the first convolution, of every block (with its attention) and of every
          downsampling, in order.
        """
        h = self.first_features(x)
        results = [h]
        for i, features, attends in self.levels:
            for j in range(self.num_res_blocks):
                h = self.block(h, temb, dropout_keys, features, f"down_{i}_block_{j}")
                if attends:
                    h = self.attention(h, context, i, self.heads[i], f"down_{i}_attn_{j}")
                results.append(h)
            if i != len(self.ch_mult) - 1:
                h = self.downsample(h, temb, dropout_keys, i)
                results.append(h)
        return results

    @nn.nowrap
    def downsample(
        self,
        h: jax.Array,
        temb: jax.Array | None,
        dropout_keys: jax.Array | None,
        level: int,
    ) -> jax.Array:
        """Apply what ends a level on the way down: a new layer, if it has parameters."""
        features, name = self.widths[level], f"down_{level}_downsample"
        if self.resampling == "block" or level in self.block_down:
            return self.block(h, temb, dropout_keys, features, name, "down")
        if self.resampling == "pool":
            return halved(h)
        padding = DOWNSAMPLE_PADDINGS[self.downsample_padding]
        return Conv3x3(features, 2, padding, dtype=self.dtype, name=name)(h)

    @nn.nowrap
    def middle(
        self,
        h: jax.Array,
        temb: jax.Array | None,
        dropout_keys: jax.Array | None,
        context: jax.Array | None = None,
    ) -> jax.Array:
        """Apply two blocks at the bottom and, if `attends_in_middle`, attention between them."""
        _, features, _ = self.levels[-1]
        h = self.block(h, temb, dropout_keys, features, "mid_block_1")
        if self.attends_in_middle:
            h = self.attention(h, context, -1, self.heads[-1], "mid_attn_1")
        return self.block(h, temb, dropout_keys, features, "mid_block_2")

    @nn.nowrap
    def up(
        self,
        h: jax.Array,
        temb: jax.Array | None,
        dropout_keys: jax.Array | None,
        skips: list[jax.Array] | None = None,
        context: jax.Array | None = None,
    ) -> jax.Array:
        """Walk the levels up from the features h of the lowest.

        Args:
          h: [B, H / 2**(levels - 1), likewise W, C].
          temb: see the class.
          dropout_keys: [B] typed keys, or None for no dropout.
          skips: one for each block, taken off the end of the list and concatenated with the block's
            input; None for none.
          context: see the class.

        Returns:
          [B, H, W, widths[0]].
        """
        for i, features, attends in reversed(self.levels):
            for j in range(self.num_res_blocks + 1):
                if skips is not None:
                    h = self.joined(h, skips.pop())
                h = self.block(h, temb, dropout_keys, features, f"up_{i}_block_{j}")
                if attends:
                    h = self.attention(h, context, i, self.heads_up[i], f"up_{i}_attn_{j}")
            if i != 0:
                # the height and width of the level above, which may have been odd
                size = None if skips is None else skips[-1].shape[1:3]
                h = self.upsample(h, temb, dropout_keys, size, i)
        return h

    @nn.nowrap
    def upsample(
        self,
        h: jax.Array,
        temb: jax.Array | None,
        dropout_keys: jax.Array | None,
        size: tuple[int, int] | None,
        level: int,
    ) -> jax.Array:
        """Apply what ends a level on the way up: a new layer, if it has parameters.

        `size` is the height and width to come to, None for twice those of h: a convolution alone
        can come to odd ones.
        """
        name = f"up_{level}_upsample"
        if self.resampling == "block" or level in self.block_up:
            return self.block(h, temb, dropout_keys, self.widths[level], name, "up")
        if self.resampling == "pool":
            return doubled(h)
        return Upsample(self.dtype, name=name)(h, size)


class Trunk(Pyramid):
    """A pyramid whose blocks are conditioned on a time.

    `check_trunk` refuses what this class cannot build.
    """

    # whether the time scales and shifts the second normalisation (Improved DDPM)
    scale_shift_norm: bool = False
    time_embedding: str = "sin_cos"  # a key of layers.TIME_EMBEDDINGS
    time_channels: int = 0  # sines and cosines that embed the time; 0: ch
    head_channels: int = 0  # of a head of attention on every level, in place of num_heads; 0: none
    num_heads_up: int = 0  # num_heads on the way up; 0: the same
    resampling: str = "conv"  # between levels, a key of layers.RESAMPLINGS
    block_down: tuple[int, ...] = ()  # levels, from 0, that a residual block halves all the same
    block_up: tuple[int, ...] = ()  # levels that a residual block doubles all the same
    # how files in the names of Improved DDPM's code keep q, k and v, a key of QKV_ORDERS; the
    # network is the same
    qkv_order: str = "heads"
    # whether it may be given a second time, the earlier end of an interval
    interval: bool = False

    @property
    def heads(self) -> tuple[int, ...]:
        """The number of heads of attention on each level; the middle has those of the last."""
        if not self.head_channels:
            return super().heads
        return tuple(max(1, features // self.head_channels) for _, features, _ in self.levels)

    @property
    def heads_up(self) -> tuple[int, ...]:
        """The number of heads of attention on each level on the way up."""
        return (self.num_heads_up,) * len(self.ch_mult) if self.num_heads_up else self.heads

    @property
    def temb_features(self) -> int:
        """Features of the embedded time and class."""
        return 4 * (self.time_channels or self.ch)

    @nn.nowrap
    def embed(self, t: jax.Array) -> jax.Array:
        """Map times [B] to [B, temb_features], the input of the blocks before its swish.

        With `interval` they may be pairs, [B, 2]: `layers.embed_times`. Other embeddings, of a
        class, are added before that swish.
        """
        sinusoids, features = self.time_channels or self.ch, self.temb_features
        return embed_times(
            t,
            sinusoids,
            features,
            interval=self.interval,
            form=self.time_embedding,
            dtype=self.dtype,
        )


def check_trunk(trunk: Trunk, height: int, width: int) -> None:
    """Check, before anything compiles, that a network can run on images of one size.

    Args:
      trunk: the network, not yet initialised: its fields are all that is read.
      height: of the images, in pixels.
      width: of the images, in pixels.

    Raises:
      UsageError: a field or the size is wrong; the sentence names the value, what was expected and
        what to do.
    """
    _check_numbers(trunk)  # of which the widths are made that follow
    choose("time embedding", trunk.time_embedding, TIME_EMBEDDINGS)
    choose("resampling", trunk.resampling, RESAMPLINGS)
    choose("order of q, k and v", trunk.qkv_order, QKV_ORDERS)
    for name in ("time_channels", "head_channels", "num_heads_up"):
        check_count(name, getattr(trunk, name), or_none=True)
    if trunk.head_channels and trunk.num_heads_up:
        raise UsageError(
            f"num_heads_up is {trunk.num_heads_up}, but head_channels {trunk.head_channels} says "
            "how many heads there are: set one of them to 0."
        )
    for level, channels, attends in trunk.levels:
        is_middle = level == len(trunk.ch_mult) - 1 and trunk.attends_in_middle
        if trunk.head_channels and (attends or is_middle) and channels % trunk.head_channels:
            raise UsageError(
                f"head_channels {trunk.head_channels} does not divide the {channels} channels of a "
                f"level with attention: choose a divisor of {channels}."
            )
    last = len(trunk.ch_mult) - 1
    for name, levels in {"block_down": range(last), "block_up": range(1, last + 1)}.items():
        for level in getattr(trunk, name):
            if level not in levels:
                raise UsageError(
                    f"{name} names the level {level}, which does not end in a resampling: choose "
                    f"among {', '.join(map(str, levels)) or 'none'}."
                )
    check_pyramid(trunk, height, width)


def check_pyramid(pyramid: Pyramid, height: int, width: int) -> None:
    """Check as `check_trunk` does, for a network without a time."""
    _check_numbers(pyramid)
    check_computation(pyramid)
    choose("downsample padding", pyramid.downsample_padding, DOWNSAMPLE_PADDINGS)
    levels = len(pyramid.ch_mult)
    stride = 2 ** (levels - 1)
    for name, size in {"height": height, "width": width, "resolution": pyramid.resolution}.items():
        if size < 1 or size % stride:
            raise UsageError(
                f"The {name} {size} is not divisible by {stride}, the stride of a network of "
                f"{levels} levels: resize the images to a multiple of {stride}, or give fewer "
                f"ch_mult than {tuple(pyramid.ch_mult)}."
            )
    if pyramid.smallest_group == 1:
        _check_groups(pyramid)
    _check_attention(pyramid)


def _check_groups(pyramid: Pyramid) -> None:
    # Every other normalised width is a sum of these, by concatenation with a skip.
    groups = pyramid.norm_groups
    for features in {pyramid.ch, *(pyramid.ch * mult for mult in pyramid.ch_mult)}:
        size = max(1, round(features / groups))  # of a group
        if abs(features - groups * size) > ROUNDING:
            raise UsageError(
                f"A level of {features:.7g} channels cannot be normalised in {groups} groups: "
                f"make ch (now {pyramid.ch}) times each of ch_mult {tuple(pyramid.ch_mult)} a "
                f"multiple of {groups}."
            )


def _check_numbers(pyramid: Pyramid) -> None:
    if not pyramid.ch_mult:
        raise UsageError(
            "ch_mult is empty: give one multiplier of the channels per level, for example (1, 2, "
            "2, 2)."
        )
    for name in ("ch", "num_res_blocks", "norm_groups"):
        check_count(name, getattr(pyramid, name))
    for i, mult in enumerate(pyramid.ch_mult):
        if not 0 < mult < float("inf"):
            raise UsageError(f"ch_mult[{i}] is {mult!r}: give a number above 0.")
    for heads in pyramid.heads:
        check_count("num_heads", heads)


def _check_attention(pyramid: Pyramid) -> None:
    resolutions = [pyramid.resolution // 2**i for i in range(len(pyramid.ch_mult))]
    for wanted in pyramid.attn_resolutions:
        if wanted not in resolutions:
            raise UsageError(
                f"attn_resolutions names {wanted}, but the levels of a network of resolution "
                f"{pyramid.resolution} are at {', '.join(map(str, resolutions))}: choose among "
                "these."
            )
    last = len(resolutions) - 1  # whose channels the middle has
    for level, channels, attends in pyramid.levels:
        if not (attends or (level == last and pyramid.attends_in_middle)):
            continue
        for name, heads in (("num_heads", pyramid.heads), ("num_heads_up", pyramid.heads_up)):
            if channels % heads[level]:
                raise UsageError(
                    f"{name} {heads[level]} does not divide the {channels} channels of a level "
                    f"with attention: choose a divisor of {channels}."
                )
