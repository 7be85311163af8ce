"""Transformers that let the pixels of a feature map look at each other and at a text.

They are those of latent diffusion (Rombach et al. 2022, section 3.3 and appendix E.2.1). The
network made of them is in `text_unet.py`, attention itself in `attention.py`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ddpm_jax.models.attention import attention
from ddpm_jax.models.layers import (
    NUM_GROUPS,
    GroupNorm,
    LayerNorm,
    default_init,
    dense,
    zero_init,
)

MLP_RATIO = 4  # width of the hidden layer of a block's MLP, in widths of a token
PIECE_OF_AN_MLP = 2**24  # bytes of the hidden layer that are computed at once: what a cache holds
# of the authors' code, whatever the other normalisations of the network have
GROUP_NORM_EPSILON = 1e-6


class Attention(nn.Module):
    """Attention without biases but for that of the last map, as a layer of its own."""

    num_heads: int
    upcast: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, context: jax.Array) -> jax.Array:
        """Map [B, L, C], which looks at [B, M, D], to [B, L, C]."""
        return attention(
            h,
            context,
            self.num_heads,
            self.dtype,
            qkv_bias=False,
            out_init=default_init,
            upcast=self.upcast,
        )


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and an MLP, each added to its input.

    x = x + attn1(norm1(x), norm1(x)), or attn1(norm1(x), context) if only_cross_attention
    x = x + attn2(norm2(x), context)
    y = x + mlp_dense1(a * gelu(b)), where [a, b] = mlp_dense0(norm3(x))

    The MLP is the GEGLU of Shazeer (2020, GLU Variants Improve Transformer) with the exact gelu.
    """

    num_heads: int
    only_cross_attention: bool = False
    upcast_attention: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Map tokens [B, L, C] in `dtype`, which look at a text [B, M, D], to the same shape."""
        dtype = self.dtype

        def attend(x: jax.Array, context: jax.Array, name: str) -> jax.Array:
            return Attention(self.num_heads, self.upcast_attention, dtype, name=name)(x, context)

        h = LayerNorm(dtype=dtype, name="norm1")(x)
        x = x + attend(h, context if self.only_cross_attention else h, "attn1")
        h = LayerNorm(dtype=dtype, name="norm2")(x)
        x = x + attend(h, context, "attn2")
        return self.add_mlp(x)

    @nn.nowrap
    def add_mlp(self, x: jax.Array) -> jax.Array:
        """Return y of the class's docstring, on a CPU for one piece of the tokens after another."""
        channels, dtype = x.shape[-1], self.dtype

        def piece(block: nn.Module, carry: None, x: jax.Array) -> tuple[None, jax.Array]:
            h = LayerNorm(dtype=dtype, name="norm3")(x)
            h = dense(2 * MLP_RATIO * channels, name="mlp_dense0", dtype=dtype)(h)
            value, gate = jnp.split(h, 2, axis=-1)
            h = value * nn.gelu(gate, approximate=False)
            return carry, x + dense(channels, name="mlp_dense1", dtype=dtype)(h)

        tokens = x.size // channels
        count = num_pieces(tokens, 4 * 2 * MLP_RATIO * channels)
        if count == 1 or jax.default_backend() != "cpu":
            return piece(self, None, x)[1]
        pieces = x.reshape(count, 1, tokens // count, channels)
        over_pieces = nn.scan(piece, variable_broadcast="params", split_rngs={"params": False})
        return over_pieces(self, None, pieces)[1].reshape(x.shape)


class Transformer(nn.Module):
    """x + proj_out(blocks(proj_in(norm(x)))) on the pixels of a feature map as tokens."""

    num_heads: int
    depth: int = 1  # blocks
    only_cross_attention: bool = False
    upcast_attention: bool = False
    dtype: DTypeLike = jnp.float32
    norm_groups: int = NUM_GROUPS  # of channels

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Map [B, H, W, C], whose pixels look at a text [B, L, D], to the same shape."""
        batch, height, width, channels = x.shape
        h = GroupNorm(GROUP_NORM_EPSILON, self.dtype, self.norm_groups, name="norm")(x)
        h = h.reshape(batch, height * width, channels)
        h = dense(channels, name="proj_in", dtype=self.dtype)(h)
        for i in range(self.depth):
            h = TransformerBlock(
                self.num_heads,
                self.only_cross_attention,
                self.upcast_attention,
                self.dtype,
                name=f"block_{i}",
            )(h, context)
        h = dense(channels, name="proj_out", dtype=self.dtype, kernel_init=zero_init)(h)
        return x + h.reshape(x.shape)


def num_pieces(tokens: int, token_bytes: int) -> int:
    """Return into how many equal pieces to split tokens, of at most `PIECE_OF_AN_MLP` bytes.

    1 where no such number is near the least that suffices.
    """
    least = max(1, -(-tokens * token_bytes // PIECE_OF_AN_MLP))
    return next((count for count in range(least, 2 * least + 1) if tokens % count == 0), 1)
