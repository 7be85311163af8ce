"""Self-attention over pixels or tokens, with the implementation chosen by the device."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ddpm_jax.models.layers import EPSILON, GroupNorm, default_init, dense, zero_init

# tokens in a tile of the flash kernels: with fewer, most of a tile would idle
FLASH_TILE = 128


def self_attention(
    h_BxLxC: jax.Array,
    num_heads: int,
    dtype: DTypeLike,
    *,
    qkv_init: nn.initializers.Initializer = default_init,
    out_init: nn.initializers.Initializer = zero_init,
) -> jax.Array:
    """Let every token attend to every token: proj_out(softmax(q k^T / sqrt(D)) v).

    q, k and v are linear maps of h; the maps are layers q, k, v and proj_out of the calling module.
    In names, B is the batch, L the tokens, C the channels, N the heads and D = C / N the channels
    of a head.

    Returns:
      The shape of h, in `dtype`; the softmax is float32 whatever that is.
    """
    B, L, C = h_BxLxC.shape
    N, D = num_heads, C // num_heads
    q_BxLxNxD, k_BxLxNxD, v_BxLxNxD = (
        dense(C, name=name, dtype=dtype, kernel_init=qkv_init)(h_BxLxC).reshape(B, L, N, D)
        for name in ("q", "k", "v")
    )
    implementation = choose_implementation(jax.local_devices()[0], dtype, tokens=L, head_size=D)
    o_BxLxNxD = IMPLEMENTATIONS[implementation](q_BxLxNxD, k_BxLxNxD, v_BxLxNxD)
    return dense(C, name="proj_out", dtype=dtype, kernel_init=out_init)(o_BxLxNxD.reshape(B, L, C))


def attention_by_products(
    q_BxLxNxD: jax.Array, k_BxLxNxD: jax.Array, v_BxLxNxD: jax.Array
) -> jax.Array:
    """Return softmax(q k^T / sqrt(D)) v by two matrix products, one per head.

    The heads are moved before the tokens first: on a CPU that takes 0.6 of the time of
    `jax.nn.dot_product_attention` (six heads of 64 channels, 256 tokens).
    """
    q_BxNxLxD, k_BxNxLxD, v_BxNxLxD = (
        array.swapaxes(1, 2) for array in (q_BxLxNxD, k_BxLxNxD, v_BxLxNxD)
    )
    logits_BxNxLxL = jnp.matmul(
        q_BxNxLxD, k_BxNxLxD.swapaxes(2, 3), preferred_element_type=jnp.float32
    )
    # scaled after the product, in float32, whatever the type of q
    weights_BxNxLxL = jax.nn.softmax(logits_BxNxLxL * q_BxLxNxD.shape[-1] ** -0.5)
    return (weights_BxNxLxL.astype(v_BxLxNxD.dtype) @ v_BxNxLxD).swapaxes(1, 2)


IMPLEMENTATIONS = {
    "products": attention_by_products,
    "cudnn": functools.partial(jax.nn.dot_product_attention, implementation="cudnn"),
}


class AttentionBlock(nn.Module):
    """Self-attention over the pixels of an image: x + self_attention(norm(x))."""

    num_heads: int = 1
    norm_eps: float = EPSILON
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Map [B, H, W, C] to the same shape."""
        B, H, W, C = x_BxHxWxC.shape
        h_BxLxC = GroupNorm(self.norm_eps, self.dtype, name="norm")(x_BxHxWxC).reshape(B, H * W, C)
        return x_BxHxWxC + self_attention(h_BxLxC, self.num_heads, self.dtype).reshape(B, H, W, C)


def choose_implementation(
    device: jax.Device, dtype: DTypeLike, *, tokens: int, head_size: int
) -> str:
    """Return the key of IMPLEMENTATIONS that computes attention on a device.

    cuDNN's flash attention never stores the [L, L] weights. It takes half precision only, and heads
    whose channels are a multiple of 8, at most 128 on Ampere (compute capability 8) and 256 from
    Hopper (9) on. Everything else uses products.
    """
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return "products"
    major = int(device.compute_capability.split(".")[0])
    largest = 256 if major >= 9 else 128 if major == 8 else 0
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    return (
        "cudnn"
        if half and tokens >= FLASH_TILE and head_size % 8 == 0 and head_size <= largest
        else "products"
    )
