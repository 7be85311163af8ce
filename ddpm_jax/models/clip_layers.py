"""The block that CLIP's two transformers are made of (Radford et al. 2021), and its activations.

The networks are in `text_encoder.py` and `image_encoder.py`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ddpm_jax.models.attention import attention
from ddpm_jax.models.layers import LayerNorm, dense


def quick_gelu(x: jax.Array) -> jax.Array:
    """x sigmoid(1.702 x): OpenAI's approximation of GELU, which its CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x), exactly: that of OpenCLIP."""
    return nn.gelu(x, approximate=False)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}


class ClipBlock(nn.Module):
    """A residual block with the norms in front.

    x = x + attention(norm_1(x))
    y = x + mlp_dense1(activation(mlp_dense0(norm_2(x))))
    """

    heads: int
    hidden: int  # width of the MLP
    depth: int  # blocks of the network: a new block's last layers are divided by sqrt(2 depth)
    activation: str  # a key of ACTIVATIONS
    causal: bool  # whether a token attends to itself and those before it only
    norm_eps: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_BxLxC: jax.Array) -> jax.Array:
        """Map [B, L, C] in `dtype` to the same."""
        C, dtype = x_BxLxC.shape[-1], self.dtype
        # the initialisation of OpenAI's code
        qkv_init = nn.initializers.normal(C**-0.5)
        mlp_init = nn.initializers.normal((2 * C) ** -0.5)
        last_init = nn.initializers.normal(C**-0.5 * (2 * self.depth) ** -0.5)

        h = LayerNorm(self.norm_eps, dtype, name="norm_1")(x_BxLxC)
        x_BxLxC = x_BxLxC + attention(
            h, h, self.heads, dtype, qkv_init=qkv_init, out_init=last_init, causal=self.causal
        )

        h = LayerNorm(self.norm_eps, dtype, name="norm_2")(x_BxLxC)
        h = dense(self.hidden, name="mlp_dense0", dtype=dtype, kernel_init=mlp_init)(h)
        h = ACTIVATIONS[self.activation](h)
        return x_BxLxC + dense(C, name="mlp_dense1", dtype=dtype, kernel_init=last_init)(h)


def hidden_states(h: jax.Array, encoder: Any, *, causal: bool) -> list[jax.Array]:
    """Apply the blocks of an encoder, layers block_0, ... of the calling module.

    Args:
      h: [B, L, C].
      encoder: that module, whose fields are those of its blocks.
      causal: as in `ClipBlock`.

    Returns:
      h and the output of every block, each [B, L, C].
    """
    states = [h]
    for i in range(encoder.layers):
        block = ClipBlock(
            encoder.heads,
            encoder.hidden,
            encoder.layers,
            encoder.activation,
            causal=causal,
            norm_eps=encoder.norm_eps,
            dtype=encoder.dtype,
            name=f"block_{i}",
        )
        states.append(block(states[-1]))
    return states


def project(pooled: jax.Array, encoder: Any, name: str) -> jax.Array | None:
    """Map [B, C] to what texts and images share, [B, encoder.projection]; None without that."""
    if not encoder.projection:
        return None
    return nn.Dense(
        encoder.projection,
        use_bias=False,
        kernel_init=nn.initializers.normal(encoder.width**-0.5),
        dtype=encoder.dtype,
        name=name,
    )(pooled)
