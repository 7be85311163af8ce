"""Self-attention over the pixels of a feature map, by the program that suits the device."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ddpm_jax.models.layers import EPSILON, GroupNorm, dense, zero_init

FLASH_TILE = 128  # pixels that a block of the flash kernels works on at once: with fewer, most of it would idle


class AttentionBlock(nn.Module):
    """Every pixel attends to every pixel of its image: x + proj_out(softmax(q k^T / sqrt(D)) v).

    q, k and v are linear maps of norm(x). In names, B is the batch, H and W the height and width, C the channels,
    L = H W the pixels, N the heads and D = C / N the channels of a head.
    """

    num_heads: int = 1
    norm_eps: float = EPSILON
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Returns the input with what it attended to added, same shape; the softmax is float32 whatever `dtype` is."""
        B, H, W, C = x_BxHxWxC.shape
        L, N, D = H * W, self.num_heads, C // self.num_heads
        h_BxLxC = GroupNorm(self.norm_eps, self.dtype, name="norm")(x_BxHxWxC).reshape(B, L, C)
        q_BxLxNxD = dense(C, name="q", dtype=self.dtype)(h_BxLxC).reshape(B, L, N, D)
        k_BxLxNxD = dense(C, name="k", dtype=self.dtype)(h_BxLxC).reshape(B, L, N, D)
        v_BxLxNxD = dense(C, name="v", dtype=self.dtype)(h_BxLxC).reshape(B, L, N, D)
        implementation = choose_implementation(jax.local_devices()[0], self.dtype, pixels=L, head_size=D)
        o_BxLxNxD = jax.nn.dot_product_attention(q_BxLxNxD, k_BxLxNxD, v_BxLxNxD, implementation=implementation)
        h_BxLxC = dense(C, name="proj_out", dtype=self.dtype, kernel_init=zero_init)(o_BxLxNxD.reshape(B, L, C))
        return x_BxHxWxC + h_BxLxC.reshape(B, H, W, C)


def choose_implementation(device: jax.Device, dtype: DTypeLike, *, pixels: int, head_size: int) -> str:
    """Returns which `jax.nn.dot_product_attention` computes attention on a device: "cudnn" or "xla".

    cuDNN's flash attention never stores the [L, L] weights. It takes half precision only, and heads of a multiple of 8
    channels, at most 128 of them on Ampere (compute capability 8) and 256 from Hopper (9) on. All else has XLA's.
    """
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return "xla"
    major = int(device.compute_capability.split(".")[0])
    largest = 256 if major >= 9 else 128 if major == 8 else 0
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    return "cudnn" if half and pixels >= FLASH_TILE and head_size % 8 == 0 and head_size <= largest else "xla"
