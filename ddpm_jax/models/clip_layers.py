"""The layers that CLIP's two transformers share (Radford et al. 2021): attention, MLP, activations.

The networks are in `text_encoder.py` and `image_encoder.py`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ddpm_jax.models.layers import dense


def quick_gelu(x: jax.Array) -> jax.Array:
    """x sigmoid(1.702 x): OpenAI's approximation of GELU, which its CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x), exactly: that of OpenCLIP."""
    return nn.gelu(x, approximate=False)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}


def norm(name: str, eps: float, dtype: DTypeLike) -> nn.LayerNorm:
    """Return a layer normalisation with scale and bias, its statistics in float32, in two passes.

    The variance in one pass, E[x^2] - E[x]^2, loses digits where the mean is large.
    """
    return nn.LayerNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)


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
        attention_init = nn.initializers.normal(C**-0.5)
        mlp_init = nn.initializers.normal((2 * C) ** -0.5)
        last_init = nn.initializers.normal(C**-0.5 * (2 * self.depth) ** -0.5)

        h = norm("norm_1", self.norm_eps, dtype)(x_BxLxC)
        q, k, v = (
            dense(C, name=name, dtype=dtype, kernel_init=attention_init)(h)
            for name in ("q", "k", "v")
        )
        h = attend(q, k, v, self.heads, causal=self.causal)
        x_BxLxC = x_BxLxC + dense(C, name="proj_out", dtype=dtype, kernel_init=last_init)(h)

        h = norm("norm_2", self.norm_eps, dtype)(x_BxLxC)
        h = dense(self.hidden, name="mlp_dense0", dtype=dtype, kernel_init=mlp_init)(h)
        h = ACTIVATIONS[self.activation](h)
        return x_BxLxC + dense(C, name="mlp_dense1", dtype=dtype, kernel_init=last_init)(h)


def attend(
    q_BxLxC: jax.Array, k_BxLxC: jax.Array, v_BxLxC: jax.Array, heads: int, *, causal: bool
) -> jax.Array:
    """Return softmax(q k^T / sqrt(D)) v for each head of D = C / heads channels.

    The shape and type are those of v; the softmax is float32.
    """
    B, L, C = v_BxLxC.shape
    D = C // heads
    q_BxNxLxD, k_BxNxLxD, v_BxNxLxD = (
        array.reshape(B, L, heads, D).swapaxes(1, 2) for array in (q_BxLxC, k_BxLxC, v_BxLxC)
    )
    logits_BxNxLxL = D**-0.5 * jnp.matmul(
        q_BxNxLxD, k_BxNxLxD.swapaxes(2, 3), preferred_element_type=jnp.float32
    )
    if causal:
        seen_1x1xLxL = jnp.tri(L, dtype=bool)[None, None]
        logits_BxNxLxL = jnp.where(seen_1x1xLxL, logits_BxNxLxL, -jnp.inf)
    weights_BxNxLxL = jax.nn.softmax(logits_BxNxLxL).astype(v_BxLxC.dtype)
    return (weights_BxNxLxL @ v_BxNxLxD).swapaxes(1, 2).reshape(B, L, C)
