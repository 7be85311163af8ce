"""The U-Nets of EDM (Karras et al. 2022): DDPM++ and NCSN++ (Song et al. 2021), and ADM.

`SongUNet` is DDPM++ and NCSN++, `ADMUNet` the network of Dhariwal and Nichol (2021) with EDM's
embedding. Both are given the noise level as a real number, whatever a process makes of it, a class
as a one-hot vector, and how a training image was augmented. Pyramid and blocks are in `trunk.py`;
what scales inputs and outputs by the noise level is no part of a network.
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.errors import UsageError, choose
from ddpm_jax.models.checks import check_count
from ddpm_jax.models.condition import Condition, check_condition
from ddpm_jax.models.layers import (
    Conv3x3,
    GroupNorm,
    dense,
    doubled,
    halved,
    timestep_embedding,
    zero_init,
)
from ddpm_jax.models.trunk import Pyramid, check_pyramid

EMBEDDINGS = {
    "positional": "sines and cosines of fixed frequencies (DDPM++)",
    "fourier": "of random frequencies, drawn once and not trained (NCSN++)",
}
ENCODERS = {
    "standard": "the image enters at its full resolution (DDPM++)",
    "skip": "it also enters every level below, shrunk, by a linear map",
    "residual": "what enters a level is the sum in the level above, by a convolution (NCSN++)",
}
DECODERS = {
    "standard": "the image is made at its full resolution (DDPM++, NCSN++)",
    "skip": "it is the sum of images made on every level, enlarged",
}
FOURIER_SCALE = 16.0  # standard deviation of the random frequencies
HEAD_CHANNELS = 64  # of a head of attention in ADM; where there are fewer, there is no attention
SQRT_HALF = 0.5**0.5


def one_hot(label: jax.Array, num_classes: int, null_class: bool) -> jax.Array:
    """Map int [B] to float32 [B, num_classes]: zeros for the null class, NaN for no class."""
    is_known = (label >= 0) & (label < num_classes + null_class)
    return jnp.where(is_known[:, None], jax.nn.one_hot(label, num_classes), jnp.nan)


class EDMUNet(Pyramid):
    """What `SongUNet` and `ADMUNet` share; neither may be built by its own name.

    The parameters do not depend on the height and width.
    """

    ch: int = 128  # channels of the first convolution
    ch_mult: tuple[float, ...] = (2, 2, 2)
    num_res_blocks: int = 4
    dropout: float = 0.1
    out_channels: int = 3  # twice the image's channels when the variance is learned
    num_classes: int = 0  # of the labels in the condition, without the null class; 0: it has none
    # whether a label may also be the null class, number num_classes: a vector of zeros
    null_class: bool = True
    augment_dim: int = 0  # numbers that tell how an image was augmented; 0: it is not told
    temb_mult: int = 4  # features of the embedded time, as a multiple of ch

    # not fields: always so
    low_res_channels = 0
    smallest_group = 4
    resampling = "block"

    @nn.nowrap
    def check_condition(self, condition: Condition | None, x: jax.Array) -> Condition:
        """Return the condition, with zeros for augmentations that are not told.

        Raises:
          UsageError: the condition lacks a part, has one too many, or one of another shape.
        """
        check_condition(condition, x=x, num_classes=self.num_classes, augment_dim=self.augment_dim)
        condition = condition or Condition()
        if self.augment_dim and condition.augment is None:
            return condition._replace(augment=jnp.zeros((len(x), self.augment_dim)))
        return condition

    @nn.nowrap
    def to_image(self, h: jax.Array, prefix: str = "") -> jax.Array:
        """Map features to an image, float32, by new layers whose names begin with `prefix`."""
        groups = self.norm_groups, self.smallest_group
        norm = GroupNorm(self.norm_eps, self.dtype, *groups, name=f"{prefix}norm_out")
        conv = Conv3x3(
            self.out_channels, kernel_init=zero_init, dtype=jnp.float32, name=f"{prefix}conv_out"
        )
        return conv(nn.swish(norm(h)))

    @nn.nowrap
    def augment_embedding(self, augment: jax.Array, features: int) -> jax.Array:
        """Apply a new linear map, under which an image as it was has no part."""
        name = "augment_embedding"
        return dense(features, name=name, dtype=self.dtype, use_bias=False)(augment)


class SongUNet(EDMUNet):
    """DDPM++ and NCSN++ (Song et al. 2021, Score-Based Generative Modeling through SDEs).

    A pyramid of residual blocks whose sums are divided by sqrt(2). The time is added in a block;
    attention has one head and is, on the way up, after the last block of a level only; residual
    blocks change the resolution, by a filter. DDPM++ is the default; NCSN++ has `embedding`
    "fourier", `embedding_mult` 2, `encoder` "residual" and `resample_filter` (1, 3, 3, 1).

    `check_song_unet` refuses what this class cannot build.
    """

    attn_resolutions: tuple[int, ...] = (16,)
    embedding: str = "positional"  # of the time, a key of EMBEDDINGS
    embedding_mult: int = 1  # sines and cosines in it, as a multiple of ch
    encoder: str = "standard"  # a key of ENCODERS
    decoder: str = "standard"  # a key of DECODERS
    resample_filter: tuple[float, ...] = (1, 1)  # its taps, of which there is an even number

    skip_scale = SQRT_HALF
    resampled_shortcut = True
    qkv_scale = 0.1  # of one map to q, k and v, 0.2, which has twice the fans' sum

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
          t: [B], int32 or float32: the noise level, in the numbers it was trained with.
          condition: class and augmentation, with a leading axis B; the class exactly if there are
            any. A label that is no class gives NaN.
          dropout_keys: [B] typed keys, one per example, already folded with the step and the
            example's global index; None for no dropout.

        Returns:
          [B, H, W, out_channels] float32.

        Raises:
          UsageError: as `check_condition`.
        """
        temb = self.embed(t, self.check_condition(condition, x))
        skips = self.down(x, temb, dropout_keys)
        h = self.middle(skips[-1], temb, dropout_keys)
        image = self.up(h, temb, dropout_keys, skips)
        assert not skips
        return image

    @nn.nowrap
    def embed(self, t: jax.Array, condition: Condition) -> jax.Array:
        """Map noise levels [B] and conditions to [B, temb_mult * ch], the input of the blocks."""
        size, features, dtype = self.embedding_mult * self.ch, self.temb_mult * self.ch, self.dtype
        if self.embedding == "fourier":
            init = nn.initializers.normal(FOURIER_SCALE)
            frequencies = self.param("frequencies", init, (size // 2,), jnp.float32)
            frequencies = jax.lax.stop_gradient(2 * jnp.pi * frequencies)
            angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
            temb = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        else:
            temb = timestep_embedding(t, size)
        if condition.label is not None:
            classes = one_hot(condition.label, self.num_classes, self.null_class)
            classes = classes * self.num_classes**0.5
            temb = temb + dense(size, name="class_embedding", dtype=dtype)(classes)
        if condition.augment is not None:
            temb = temb + self.augment_embedding(condition.augment, size)
        temb = nn.swish(dense(features, name="temb_dense0", dtype=dtype)(temb))
        return nn.swish(dense(features, name="temb_dense1", dtype=dtype)(temb))

    @nn.nowrap
    def down(
        self, x: jax.Array, temb: jax.Array, dropout_keys: jax.Array | None
    ) -> list[jax.Array]:
        """Walk the levels down from the image [B, H, W, C]; see `Pyramid.down`."""
        image = x.astype(self.dtype)
        h = Conv3x3(self.ch, dtype=self.dtype, name="conv_in")(x)
        results = [h]
        for i, features, attends in self.levels:
            if i:
                h = self.downsample(h, temb, dropout_keys, i - 1)
                h, image = self.enter(h, image, i)
                results.append(h)
            for j in range(self.num_res_blocks):
                h = self.block(h, temb, dropout_keys, features, f"down_{i}_block_{j}")
                if attends:
                    h = self.attention(h, None, i, self.heads[i], f"down_{i}_attn_{j}")
                results.append(h)
        return results

    @nn.nowrap
    def enter(self, h: jax.Array, image: jax.Array, level: int) -> tuple[jax.Array, jax.Array]:
        """Add to h what enters a level from the level above besides its features.

        Args:
          h: [B, H, W, C].
          image: [B, 2H, 2W, D], what entered the level above.
          level: from 1.

        Returns:
          the sum, and what has entered this level.
        """
        name, taps = f"down_{level}_input", self.resample_filter
        if self.encoder == "skip":
            image = halved(image, taps)
            return h + dense(h.shape[-1], name=name, dtype=self.dtype)(image), image
        if self.encoder == "residual":  # the filter after the convolution, as it was trained
            pad = 1 + (len(taps) - 1) // 2
            conv = Conv3x3(h.shape[-1], padding=(pad, pad), dtype=self.dtype, name=name)
            h = (h + halved(conv(image), taps, padding=0)) * SQRT_HALF
            return h, h
        return h, image

    @nn.nowrap
    def up(
        self,
        h: jax.Array,
        temb: jax.Array,
        dropout_keys: jax.Array | None,
        skips: list[jax.Array],
    ) -> jax.Array:
        """Walk the levels up from the features h of the lowest to the image, float32."""
        image, last = None, self.num_res_blocks
        for i, features, attends in reversed(self.levels):
            for j in range(last + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self.block(h, temb, dropout_keys, features, f"up_{i}_block_{j}")
            if attends:
                h = self.attention(h, None, i, self.heads[i], f"up_{i}_attn_{last}")
            if self.decoder == "skip" and image is not None:
                image = doubled(image, self.resample_filter)
            if self.decoder == "skip" or not i:
                part = self.to_image(h, f"up_{i}_" if i else "")
                image = part if image is None else image + part
            if i:
                h = self.upsample(h, temb, dropout_keys, None, i)
        return image


class ADMUNet(EDMUNet):
    """The network of Dhariwal and Nichol (2021) with the embedding of EDM.

    A pyramid of residual blocks whose second normalisation the time scales and shifts, with heads
    of about 64 channels. `check_adm_unet` refuses what this class cannot build.
    """

    ch: int = 192
    ch_mult: tuple[float, ...] = (1, 2, 3, 4)
    num_res_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (32, 16, 8)
    norm_eps: float = 1e-5

    scale_shift_norm = True

    @property
    def heads(self) -> tuple[int, ...]:
        """The number of heads of attention on each level; the middle has those of the last."""
        return tuple(max(1, width // HEAD_CHANNELS) for width in self.widths)

    @property
    def attends_in_middle(self) -> bool:
        """Whether there is attention between the ways down and up: with channels for a head."""
        return self.widths[-1] >= HEAD_CHANNELS

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        condition: Condition | None = None,
        *,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
        """Apply the network; see `SongUNet`."""
        temb = self.embed(t, self.check_condition(condition, x))
        skips = self.down(x, temb, dropout_keys)
        h = self.middle(skips[-1], temb, dropout_keys)
        h = self.up(h, temb, dropout_keys, skips)
        assert not skips
        return self.to_image(h)

    @nn.nowrap
    def embed(self, t: jax.Array, condition: Condition) -> jax.Array:
        """Map noise levels [B] and conditions to [B, temb_mult * ch], the input of the blocks."""
        features, dtype = self.temb_mult * self.ch, self.dtype
        temb = timestep_embedding(t, self.ch, "cos_sin")
        if condition.augment is not None:
            temb = temb + self.augment_embedding(condition.augment, self.ch)
        temb = nn.swish(dense(features, name="temb_dense0", dtype=dtype)(temb))
        temb = dense(features, name="temb_dense1", dtype=dtype)(temb)
        if condition.label is not None:
            classes = dense(
                features,
                name="class_embedding",
                dtype=dtype,
                kernel_init=nn.initializers.normal(1.0),
                use_bias=False,
            )
            temb = temb + classes(one_hot(condition.label, self.num_classes, self.null_class))
        return nn.swish(temb)


def check_song_unet(unet: SongUNet, height: int, width: int) -> None:
    """Check, before anything compiles, that a network can run on images of one size.

    Args:
      unet: the network, not yet initialised: its fields are all that is read.
      height: of the images, in pixels.
      width: of the images, in pixels.

    Raises:
      UsageError: a field or the size is wrong; the sentence names the value, what was expected and
        what to do.
    """
    choose("embedding", unet.embedding, EMBEDDINGS)
    choose("encoder", unet.encoder, ENCODERS)
    choose("decoder", unet.decoder, DECODERS)
    check_count("embedding_mult", unet.embedding_mult)
    taps = unet.resample_filter
    if not taps or len(taps) % 2 or not sum(taps):
        raise UsageError(
            f"resample_filter is {tuple(taps)}: give an even number of taps whose sum is not 0, "
            "for example (1, 1) or (1, 3, 3, 1)."
        )
    _check_edm_unet(unet, height, width)


def check_adm_unet(unet: ADMUNet, height: int, width: int) -> None:
    """Check as `check_song_unet` does."""
    _check_edm_unet(unet, height, width)
    for _, channels, attends in unet.levels:
        if attends and channels < HEAD_CHANNELS:
            raise UsageError(
                f"attn_resolutions names a level of {channels} channels, and a head has about "
                f"{HEAD_CHANNELS}: give the level more, or no attention."
            )


def _check_edm_unet(unet: EDMUNet, height: int, width: int) -> None:
    check_count("temb_mult", unet.temb_mult)
    check_count("out_channels", unet.out_channels)
    for name in ("num_classes", "augment_dim"):
        check_count(name, getattr(unet, name), or_none=True)
    check_pyramid(unet, height, width)
    if unet.ch < 4 or unet.ch % 2:
        raise UsageError(f"ch is {unet.ch}: give an even number of 4 or more (sines and cosines).")
    for features in _normalised(unet):
        groups = min(unet.norm_groups, features // unet.smallest_group)
        if not groups or features % groups:
            raise UsageError(
                f"{features} channels, of one level or of two that are concatenated, cannot be "
                f"normalised in {groups or 1} groups of {unet.smallest_group} or more: make ch "
                f"(now {unet.ch}) times each of ch_mult {tuple(unet.ch_mult)} a multiple of "
                f"{unet.norm_groups}."
            )


def _normalised(unet: EDMUNet) -> list[int]:
    """Return the channels that are normalised: of levels, and of features with a skip."""
    widths = [unet.ch, *unet.widths]
    pairs = itertools.pairwise(widths)
    return sorted({*widths, *(2 * width for width in widths), *map(sum, pairs)})
