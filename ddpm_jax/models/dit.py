"""The Diffusion Transformer (Peebles and Xie 2023): a noisy image and a time in, an image out.

The image is cut into patches, each a token of a transformer; time and class scale, shift and gate
the residual branches of its blocks (adaLN-Zero). Inputs and outputs are those of `unet.UNet`, so
either can replace the other. Attention is in `attention.py`, the small layers are in `layers.py`.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ddpm_jax.errors import UsageError, choose
from ddpm_jax.models.attention import attention
from ddpm_jax.models.checks import check_computation, check_count
from ddpm_jax.models.condition import Condition, check_condition
from ddpm_jax.models.layers import (
    EPSILON,
    TIME_EMBEDDINGS,
    ClassEmbedding,
    Dropout,
    computed_once,
    default_init,
    dense,
    embed_times,
    layer_norm,
)
from ddpm_jax.models.rematerialization import rematerialized

MLP_RATIO = 4  # width of the hidden layer of a block's MLP, in widths of a token
SINUSOIDS = 256  # sines and cosines that embed the time, as in the authors' code

POSITIONS = {  # of the patches
    "formula": "sines and cosines, in the network for images of any size",
    "table": "such a table as files bring it, for images of one size; it gets no gradient",
}

# The authors' code initialises linear maps as `layers.default_init` does, and the embeddings of
# time and class from a narrow normal distribution. There q, k and v are one map to three times the
# channels, which halves the variance.
EMBEDDING_STDDEV = 0.02
qkv_init = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")
embedding_init = nn.initializers.normal(EMBEDDING_STDDEV)
zeros = nn.initializers.zeros


class Size(NamedTuple):
    """The fields of `DiT` that the paper varies together."""

    hidden_size: int
    depth: int
    num_heads: int


SIZES = {  # table 1 of the paper
    "S": Size(hidden_size=384, depth=12, num_heads=6),
    "B": Size(hidden_size=768, depth=12, num_heads=12),
    "L": Size(hidden_size=1024, depth=24, num_heads=16),
    "XL": Size(hidden_size=1152, depth=28, num_heads=16),
}


def patchify(x: jax.Array, patch_size: int) -> jax.Array:
    """Cut images into patches, row by row: [B, H, W, C] -> [B, H/p W/p, p p C], p = patch_size."""
    batch, height, width, channels = x.shape
    p = patch_size
    patches = x.reshape(batch, height // p, p, width // p, p, channels).swapaxes(2, 3)
    return patches.reshape(batch, height // p * (width // p), p * p * channels)


def unpatchify(patches: jax.Array, patch_size: int, height: int, width: int) -> jax.Array:
    """Put patches back together, the inverse of `patchify`, for images of this height and width."""
    batch, p = patches.shape[0], patch_size
    x = patches.reshape(batch, height // p, width // p, p, p, -1).swapaxes(2, 3)
    return x.reshape(batch, height, width, -1)


def position_embedding(rows: int, columns: int, features: int) -> np.ndarray:
    """Return the fixed embedding of the position of each patch: column first, then row.

    emb(k) = [sin(k w_0), ..., sin(k w_{n-1}), cos(k w_0), ..., cos(k w_{n-1})]

    with w_i = 10000^(-i / n), k counted from 0 and n = features / 4; features is divisible by 4.

    Returns:
      [rows columns, features] float32, in the order of `patchify`.
    """
    n = features // 4
    frequencies = 10000.0 ** (-np.arange(n) / n)

    def embed(count: int) -> np.ndarray:
        angles = np.arange(count)[:, None] * frequencies[None, :]
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)

    shape = (rows, columns, 2 * n)
    from_columns, from_rows = (
        np.broadcast_to(embed(columns)[None], shape),
        np.broadcast_to(embed(rows)[:, None], shape),
    )
    return (
        np.concatenate([from_columns, from_rows], axis=-1)
        .reshape(rows * columns, features)
        .astype(np.float32)
    )


class DiTBlock(nn.Module):
    """Attention and an MLP, scaled, shifted and gated by time and class (adaLN-Zero, section 3.2).

    [b_1, s_1, g_1, b_2, s_2, g_2] = modulation(c)
    x = x + g_1 attention(norm(x) (1 + s_1) + b_1)
    y = x + g_2 mlp(norm(x) (1 + s_2) + b_2)

    The norms have no parameters. The modulation of a new block is 0, which makes the block the
    identity.
    """

    num_heads: int
    dropout: float = 0.0
    norm_eps: float = EPSILON
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        """Map tokens [B, L, C] in `dtype` to tokens of the same shape.

        Args:
          x: [B, L, C].
          c: [B, C], the embedded time and class after their swish.
          dropout_keys: [B] typed keys, or None for no dropout.
        """
        channels, dtype = x.shape[-1], self.dtype
        modulation = dense(6 * channels, name="modulation", dtype=dtype, kernel_init=zeros)(c)[
            :, None, :
        ]
        # b, s, g of attention, then of the MLP: the order of the authors' weights
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(modulation, 6, axis=-1)

        x = computed_once(x)
        h = layer_norm(x, self.norm_eps, dtype) * (1 + scale_1) + shift_1
        x = x + gate_1 * attention(
            h, h, self.num_heads, dtype, qkv_init=qkv_init, out_init=default_init
        )

        x = computed_once(x)
        h = layer_norm(x, self.norm_eps, dtype) * (1 + scale_2) + shift_2
        h = nn.gelu(
            dense(MLP_RATIO * channels, name="mlp_dense0", dtype=dtype)(h), approximate=True
        )
        h = Dropout(self.dropout, name="dropout")(h, dropout_keys)
        return x + gate_2 * dense(channels, name="mlp_dense1", dtype=dtype)(h)


class DiT(nn.Module):
    """The network of Peebles and Xie (2023): patches, conditioned blocks, and a linear map back.

    The defaults are DiT-S/2 without classes. The paper's networks are `DiT(**SIZES["XL"]._asdict(),
    patch_size=2, num_classes=1000, out_channels=8)` and so on, on latents of 4 channels whose
    variance is learned. The paper, with images enough, uses no dropout.

    The parameters do not depend on the height and width, except those of a table of positions.
    `check_dit` refuses what this class cannot build.
    """

    patch_size: int = 2  # height and width of a patch, in pixels of the image or of the latent
    hidden_size: int = 384  # channels of a token
    depth: int = 12  # blocks
    num_heads: int = 6
    dropout: float = 0.0  # probability of a zero before the last layer of each block's MLP
    norm_eps: float = EPSILON  # added to the variance of every normalisation
    time_embedding: str = "cos_sin"  # a key of layers.TIME_EMBEDDINGS
    # of the computation; parameters, normalisation statistics and softmax are float32
    dtype: DTypeLike = jnp.float32
    # what is stored for the backward pass, a key of rematerialization.REMAT
    remat: str = "none"
    out_channels: int = 3  # twice the image's channels when the variance is learned
    num_classes: int = 0  # of the labels in the condition, without the null class; 0: it has none
    null_class: bool = True  # whether a further class, the last, carries no information
    low_res_channels: int = 0  # of the low-resolution image in the condition; 0: it has none
    positions: str = "formula"  # a key of POSITIONS
    # whether it may be given a second time, the earlier end of an interval
    interval: bool = False

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
          x: [B, H, W, C] float32; H and W divisible by patch_size.
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
        _, height, width, _ = x.shape
        p, features, dtype = self.patch_size, self.hidden_size, self.dtype

        c = embed_times(
            t,
            SINUSOIDS,
            features,
            interval=self.interval,
            form=self.time_embedding,
            dtype=dtype,
            kernel_init=embedding_init,
        )
        if label is not None:
            c = c + ClassEmbedding(
                self.num_classes,
                features,
                dtype,
                EMBEDDING_STDDEV,
                self.null_class,
                name="class_embedding",
            )(label)
        c = nn.swish(c)
        if low_res is not None:
            x = jnp.concatenate([x, low_res], axis=-1)

        positions = jnp.asarray(position_embedding(height // p, width // p, features))
        if self.positions == "table":
            table = self.param("position_embedding", lambda _: positions)
            positions = jax.lax.stop_gradient(table)
        h = dense(features, name="patch_embedding", dtype=dtype)(patchify(x, p))
        h = h + positions.astype(dtype)[None]
        block = rematerialized(DiTBlock, self.remat)
        for i in range(self.depth):
            h = block(self.num_heads, self.dropout, self.norm_eps, dtype, name=f"block_{i}")(
                h, c, dropout_keys
            )

        modulation = dense(
            2 * features, name="modulation_out", dtype=jnp.float32, kernel_init=zeros
        )(c)[:, None, :]
        shift, scale = jnp.split(modulation, 2, axis=-1)
        h = layer_norm(h, self.norm_eps) * (1 + scale) + shift
        h = dense(
            p * p * self.out_channels, name="patch_out", dtype=jnp.float32, kernel_init=zeros
        )(h)
        return unpatchify(h, p, height, width)


def check_dit(dit: DiT, height: int, width: int) -> None:
    """Check, before anything compiles, that a DiT can run on images of one size.

    Args:
      dit: the network, not yet initialised: its fields are all that is read.
      height: of the images, in pixels.
      width: of the images, in pixels.

    Raises:
      UsageError: a field or the size is wrong; the sentence names the value, what was expected and
        what to do.
    """
    for name in ("patch_size", "hidden_size", "depth", "num_heads", "out_channels"):
        check_count(name, getattr(dit, name))
    for name in ("num_classes", "low_res_channels"):
        check_count(name, getattr(dit, name), or_none=True)
    check_computation(dit)
    choose("time embedding", dit.time_embedding, TIME_EMBEDDINGS)
    choose("kind of positions", dit.positions, POSITIONS)
    for name, size in {"height": height, "width": width}.items():
        if size < 1 or size % dit.patch_size:
            raise UsageError(
                f"The {name} {size} is not divisible by patch_size {dit.patch_size}: choose a "
                "patch_size that divides it, or resize the images to a multiple of "
                f"{dit.patch_size}."
            )
    if dit.hidden_size % dit.num_heads:
        raise UsageError(
            f"num_heads {dit.num_heads} does not divide hidden_size {dit.hidden_size}: choose a "
            f"divisor of {dit.hidden_size}."
        )
    if dit.hidden_size % 4:
        raise UsageError(
            f"hidden_size {dit.hidden_size} is not divisible by 4, for sine and cosine of a "
            f"patch's row and column: make it {dit.hidden_size + -dit.hidden_size % 4}."
        )
