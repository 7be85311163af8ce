"""The U-Net of EDM2 (Karras et al. 2024), whose layers keep the magnitude of their input.

It is their configuration G: no group normalisation, no bias, cosine attention. Activations have
magnitude 1 without a normalisation of data but that of pixels on the way down and of queries, keys
and values. Pyramid and order of blocks are in `trunk.py`, the layers in `magnitude.py`. Weights
are normalised as they are used; training also has to normalise them after every update
(`magnitude.with_unit_kernels`).

Not as in the authors' code: activations are not clipped to 256, which is for float16.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ddpm_jax.models.attention import attend
from ddpm_jax.models.checks import check_count
from ddpm_jax.models.condition import Condition, check_condition
from ddpm_jax.models.edm_unets import one_hot
from ddpm_jax.models.layers import EPSILON, Dropout, doubled, halved
from ddpm_jax.models.magnitude import MPFourier, MPLinear, mp_cat, mp_silu, mp_sum, pixel_norm
from ddpm_jax.models.rematerialization import rematerialized
from ddpm_jax.models.trunk import Pyramid, check_pyramid

# shares of the second argument of a sum or a concatenation, as in configuration G
BRANCH = 0.3  # of a residual branch in the sum with its shortcut
CLASS = 0.5  # of the class in the embedding
SKIP = 0.5  # of features from the way down in a block's input on the way up
HEAD_CHANNELS = 64


class MPBlock(nn.Module):
    """A residual block; `encodes` on the way down, where a shortcut comes first and is normalised.

    x = pixel_norm(shortcut(x))                         on the way down
    h = conv1(mp_silu(x))
    h = conv2(dropout(mp_silu(h * (1 + gain temb_proj(temb)))))
    y = mp_sum(shortcut(x), h, 0.3)                     on the way up; down: mp_sum(x, h, 0.3)

    The shortcut is the identity, or a 1x1 convolution where the number of channels changes. The
    learned gain is 0 at first. With `resample` x is halved or doubled in height and width first.
    """

    features: int
    encodes: bool
    dropout: float = 0.0
    eps: float = EPSILON  # of the pixels' norm
    dtype: DTypeLike = jnp.float32
    resample: str = ""  # "down" or "up"; "": neither

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        """Map [B, H, W, C] to [B, H, W, features], or to half or twice H and W.

        Args:
          x: [B, H, W, C] in `dtype`.
          temb: [B, E], the embedded time and class after their activation.
          dropout_keys: [B] typed keys, or None for no dropout.
        """
        dtype = self.dtype
        if self.resample:
            x = halved(x) if self.resample == "down" else doubled(x)
        has_shortcut = x.shape[-1] != self.features
        shortcut = MPLinear(self.features, dtype=dtype, name="shortcut") if has_shortcut else None
        if self.encodes:
            x = pixel_norm(x if shortcut is None else shortcut(x), self.eps)
        h = MPLinear(self.features, 3, dtype, name="conv1")(mp_silu(x))
        gain = self.param("temb_gain", nn.initializers.zeros, (), jnp.float32)
        scale = 1 + MPLinear(self.features, dtype=dtype, name="temb_proj")(temb, gain)
        h = mp_silu(h * scale[:, None, None, :])
        h = Dropout(self.dropout, name="dropout")(h, dropout_keys)
        h = MPLinear(self.features, 3, dtype, name="conv2")(h)
        if shortcut is not None and not self.encodes:
            x = shortcut(x)
        return mp_sum(x, h, BRANCH)


class CosineAttention(nn.Module):
    """mp_sum(x, proj_out(attention(x)), 0.3) over pixels, of normalised queries, keys and values.

    The logits are sqrt(D) times the cosines of queries and keys of D channels, so they are bounded.
    """

    num_heads: int
    eps: float = EPSILON
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Map [B, H, W, C] to the same shape."""
        B, H, W, C = x_BxHxWxC.shape

        def heads(name: str) -> jax.Array:
            maps = MPLinear(C, dtype=self.dtype, name=name)(x_BxHxWxC)
            return pixel_norm(maps.reshape(B, H * W, self.num_heads, -1), self.eps)

        o_BxLxNxD = attend(heads("q"), heads("k"), heads("v"))
        proj_out = MPLinear(C, dtype=self.dtype, name="proj_out")
        return mp_sum(x_BxHxWxC, proj_out(o_BxLxNxD.reshape(B, H, W, C)), BRANCH)


class EDM2UNet(Pyramid):
    """The network. Its parameters do not depend on the height and width.

    The time is embedded by random frequencies of standard deviation 1, for times about as wide, as
    those of EDM and flows are. `check_edm2_unet` refuses what this class cannot build.
    """

    ch: int = 192
    ch_mult: tuple[float, ...] = (1, 2, 3, 4)
    num_res_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (16, 8)
    dropout: float = 0.0
    out_channels: int = 3  # twice the image's channels when the variance is learned
    num_classes: int = 0  # of the labels in the condition, without the null class; 0: it has none
    # whether a label may also be the null class, number num_classes: a vector of zeros
    null_class: bool = True

    # not fields: always so
    low_res_channels = 0
    smallest_group = 0  # nothing is normalised in groups
    resampling = "block"

    @property
    def heads(self) -> tuple[int, ...]:
        """The number of heads of attention on each level; the middle has those of the last."""
        return tuple(max(1, width // HEAD_CHANNELS) for width in self.widths)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        condition: Condition | None = None,
        *,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
        """Apply the network; see `edm_unets.SongUNet`."""
        check_condition(condition, x=x, num_classes=self.num_classes)
        temb = self.embed(t, condition)
        skips = self.down(x, temb, dropout_keys)
        h = self.middle(skips[-1], temb, dropout_keys)
        h = self.up(h, temb, dropout_keys, skips)
        assert not skips
        gain = self.param("out_gain", nn.initializers.zeros, (), jnp.float32)
        return MPLinear(self.out_channels, 3, name="conv_out")(h, gain)

    @nn.nowrap
    def embed(self, t: jax.Array, condition: Condition | None) -> jax.Array:
        """Map noise levels [B] and classes to the input of the blocks, as wide as any level."""
        features, dtype = max(self.widths), self.dtype
        temb = MPFourier(self.widths[0], name="time_features")(t)
        temb = MPLinear(features, dtype=dtype, name="temb_dense")(temb)
        if condition is not None and condition.label is not None:
            classes = one_hot(condition.label, self.num_classes, self.null_class)
            embedding = MPLinear(features, dtype=dtype, name="class_embedding")
            temb = mp_sum(temb, embedding(classes * self.num_classes**0.5), CLASS)
        return mp_silu(temb)

    @nn.nowrap
    def first_features(self, x: jax.Array) -> jax.Array:
        """Apply the first convolution, to the image and a channel of ones in place of a bias."""
        x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
        return MPLinear(self.ch, 3, self.dtype, name="conv_in")(x)

    @nn.nowrap
    def joined(self, h: jax.Array, skip: jax.Array) -> jax.Array:
        """Return the input of a block on the way up."""
        return mp_cat(h, skip, SKIP)

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
        """Apply a new `MPBlock` of this name."""
        layer = rematerialized(MPBlock, self.remat)(
            *(
                features,
                name.startswith("down_"),
                self.dropout,
                self.norm_eps,
                self.dtype,
                resample,
            ),
            name=name,
        )
        return layer(h, temb, dropout_keys)

    @nn.nowrap
    def attention(
        self, h: jax.Array, context: jax.Array | None, level: int, heads: int, name: str
    ) -> jax.Array:
        """Apply a new `CosineAttention` of this name."""
        layer = rematerialized(CosineAttention, self.remat)
        return layer(heads, self.norm_eps, self.dtype, name=name)(h)


def check_edm2_unet(unet: EDM2UNet, height: int, width: int) -> None:
    """Check as `edm_unets.check_song_unet` does."""
    check_count("out_channels", unet.out_channels)
    check_count("num_classes", unet.num_classes, or_none=True)
    check_pyramid(unet, height, width)
