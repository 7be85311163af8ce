"""Attention of pixels or tokens to themselves or to others, computed as suits the device."""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from ddpm_jax.models.layers import (
    EPSILON,
    NUM_GROUPS,
    GroupNorm,
    default_init,
    dense,
    scaled,
    zero_init,
)

# tokens in a tile of the flash kernels: with fewer, most of a tile would idle
FLASH_TILE = 128
# bytes of the float32 weights that are in memory at once; above, the queries are taken in pieces
PIECE = 2**26
# likewise, where one head is computed after the other: what fits the second cache of a core
PIECE_OF_A_HEAD = 5 * 2**18
KEYS = 256  # of such a piece at most
BY_HEADS = 2**18  # weights of a head from which that is faster on a CPU


def attention(
    h_BxLxC: jax.Array,
    context_BxMxE: jax.Array,
    num_heads: int,
    dtype: DTypeLike,
    *,
    qkv_bias: bool = True,
    qkv_init: nn.initializers.Initializer = default_init,
    out_init: nn.initializers.Initializer = zero_init,
    upcast: bool = False,
    causal: bool = False,
    out_features: int | None = None,
) -> jax.Array:
    """Let every token of h attend to all of the context: proj_out(softmax(q k^T / sqrt(D)) v).

    q is a linear map of h, k and v are linear maps of the context; self-attention is that of h to
    h. The maps are layers q, k, v and proj_out of the calling module. In names, B is the batch, L
    and M are the tokens, C and E the channels, N the heads and D = C / N the channels of a head.

    Args:
      h_BxLxC: what attends.
      context_BxMxE: what is attended to.
      num_heads: N, a divisor of C.
      dtype: of the computation.
      qkv_bias: whether the maps to q, k and v have a bias.
      qkv_init: of their weights.
      out_init: of the weights of proj_out.
      upcast: give the product float32 factors; its sum and the softmax are float32 in any case.
      causal: let token i attend to the tokens up to i only.
      out_features: F, of proj_out; None for C.

    Returns:
      [B, L, F] in `dtype`.
    """
    B, L, C = h_BxLxC.shape
    N, D = num_heads, C // num_heads

    def heads(name: str, x_BxKxF: jax.Array) -> jax.Array:
        layer = dense(C, use_bias=qkv_bias, kernel_init=qkv_init, dtype=dtype, name=name)
        return layer(x_BxKxF).reshape(B, -1, N, D)

    q_BxLxNxD = heads("q", h_BxLxC)
    k_BxMxNxD, v_BxMxNxD = (heads(name, context_BxMxE) for name in ("k", "v"))
    if upcast:
        q_BxLxNxD, k_BxMxNxD = (array.astype(jnp.float32) for array in (q_BxLxNxD, k_BxMxNxD))
    o_BxLxNxD = attend(q_BxLxNxD, k_BxMxNxD, v_BxMxNxD, is_causal=causal)
    F = C if out_features is None else out_features
    return dense(F, name="proj_out", dtype=dtype, kernel_init=out_init)(o_BxLxNxD.reshape(B, L, C))


def attend(
    q_BxLxNxD: jax.Array, k_BxMxNxD: jax.Array, v_BxMxNxD: jax.Array, *, is_causal: bool = False
) -> jax.Array:
    """Return softmax(q k^T / sqrt(D)) v, [B, L, N, D] in the type of v, as suits the device."""
    implementation = choose_implementation(
        jax.local_devices()[0],
        q_BxLxNxD.dtype,
        queries=q_BxLxNxD.shape[1],
        keys=k_BxMxNxD.shape[1],
        head_size=q_BxLxNxD.shape[3],
    )
    compute = IMPLEMENTATIONS[implementation]
    return compute(q_BxLxNxD, k_BxMxNxD, v_BxMxNxD, is_causal=is_causal)


def attention_by_products(
    q_BxLxNxD: jax.Array, k_BxMxNxD: jax.Array, v_BxMxNxD: jax.Array, *, is_causal: bool = False
) -> jax.Array:
    """Return softmax(q k^T / sqrt(D)) v by two matrix products, one per head.

    The heads are moved before the tokens first: on a CPU that takes 0.6 of the time of
    `jax.nn.dot_product_attention` (six heads of 64 channels, 256 tokens).

    The [L, M] weights of all heads take at most `PIECE` bytes at once, forward and backward: more
    are computed for one piece of the queries after the other. Every query sees all its keys, so the
    result does not depend on the pieces.
    """
    q_BxNxLxD, k_BxNxMxD, v_BxNxMxD = (
        array.swapaxes(1, 2) for array in (q_BxLxNxD, k_BxMxNxD, v_BxMxNxD)
    )
    keys = k_BxNxMxD.shape[2]
    scale = q_BxNxLxD.shape[3] ** -0.5
    o_BxNxLxD = _in_pieces(
        q_BxNxLxD, k_BxNxMxD, v_BxNxMxD, keys, PIECE, scale=scale, is_causal=is_causal
    )
    return o_BxNxLxD.swapaxes(1, 2)


def attention_by_heads(
    q_BxLxNxD: jax.Array, k_BxMxNxD: jax.Array, v_BxMxNxD: jax.Array, *, is_causal: bool = False
) -> jax.Array:
    """Return softmax(q k^T / sqrt(D)) v, one head of one example after the other.

    On a CPU a product of two large matrices is computed by all cores in tiles, and one over a batch
    of them is not: 8 heads of 40 channels, 4,096 tokens take 0.3 of the time of
    `attention_by_products` on two cores. The keys are taken in pieces too, so that the weights of a
    piece stay in the cache from one product to the other.
    """
    B, L, N, D = q_BxLxNxD.shape
    scale = D**-0.5
    if q_BxLxNxD.dtype == jnp.float32:  # fewer numbers to scale than the products are
        q_BxLxNxD, scale = scale * q_BxLxNxD, 1.0
    heads = [
        array.swapaxes(1, 2).reshape(B * N, -1, D) for array in (q_BxLxNxD, k_BxMxNxD, v_BxMxNxD)
    ]
    keys = piece_of_keys(k_BxMxNxD.shape[1])
    compute = jax.checkpoint(
        lambda head: _in_pieces(*head, keys, PIECE_OF_A_HEAD, scale=scale, is_causal=is_causal)
    )
    o_HeadsxLxD = jax.lax.map(compute, heads)
    return o_HeadsxLxD.reshape(B, N, L, D).swapaxes(1, 2)


def piece_of_keys(number: int) -> int:
    """Return how many of the keys a head takes at once: as many, or a divisor in KEYS/2..KEYS."""
    return next((size for size in range(KEYS, KEYS // 2, -1) if number % size == 0), number)


class _Sums(NamedTuple):
    """The sums over some keys of which softmax(l) v is made, where l are the logits."""

    m: jax.Array  # [..., P, 1], the largest l
    weights: jax.Array  # [..., P, 1], the sum of exp(l - m)
    values: jax.Array  # [..., P, D], the sum of exp(l - m) v


def _in_pieces(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    keys: int,
    size: int,
    *,
    scale: float,
    is_causal: bool,
) -> jax.Array:
    """Return softmax(scale q k^T) v, [..., L, D], with weights of `size` bytes at a time.

    With fewer keys at a time than all it is Rabe and Staats (2021), Self-attention Does Not Need
    O(n^2) Memory: the sums so far are relative to the largest logit so far.

    Args:
      q: [..., L, D].
      k: [..., M, D].
      v: likewise.
      keys: that are taken at once, a divisor of M.
      size: of float32 weights; if all take more, the queries are taken in pieces.
      scale: 1 / sqrt(D), or 1 where q has it.
      is_causal: as in `attention`.
    """
    *batch, L, D = q.shape
    M = k.shape[-2]

    def add(
        before: _Sums | None,
        q_P: jax.Array,
        k_K: jax.Array,
        v_K: jax.Array,
        i: ArrayLike,
        j: ArrayLike,
    ) -> _Sums:
        """Add the keys from j on to the sums of the queries from i on."""
        logits = jnp.matmul(q_P, k_K.swapaxes(-1, -2), preferred_element_type=jnp.float32)
        if scale != 1:  # scaled after the product, in float32, whatever the type of q
            logits *= scale
        if is_causal:
            positions_P = i + jnp.arange(q_P.shape[-2])
            seen_PxK = j + jnp.arange(keys)[None, :] <= positions_P[:, None]
            seen = jnp.expand_dims(seen_PxK, tuple(range(logits.ndim - 2)))
            logits = jnp.where(seen, logits, -jnp.inf)  # the first key is seen by all
        m = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
        m = m if before is None else jnp.maximum(before.m, m)
        weights = jnp.exp(logits - m)
        at_least_float32 = jnp.promote_types(v_K.dtype, jnp.float32)
        o = jnp.matmul(weights.astype(v_K.dtype), v_K, preferred_element_type=at_least_float32)
        found = _Sums(m, weights.sum(axis=-1, keepdims=True), o)
        if before is None:
            return found
        kept = jnp.exp(before.m - m)
        return _Sums(m, kept * before.weights + found.weights, kept * before.values + found.values)

    def piece(q_P: jax.Array, i: ArrayLike = 0) -> jax.Array:
        if keys == M:
            found = add(None, q_P, k, v, i, 0)
        else:
            k_pieces, v_pieces = (
                jnp.moveaxis(x.reshape(*batch, -1, keys, D), -3, 0) for x in (k, v)
            )
            first = add(None, q_P, k_pieces[0], v_pieces[0], i, 0)
            found, _ = jax.lax.scan(
                lambda before, given: (add(before, q_P, *given[:2], i, given[2]), None),
                first,
                (k_pieces[1:], v_pieces[1:], jnp.arange(keys, M, keys)),
            )
        # divided after the product, which is smaller than the weights
        return (found.values / found.weights).astype(v.dtype)

    count = -(-4 * math.prod(batch) * L * keys // size)
    if count <= 1:
        return piece(q)
    P = -(-L // count)  # the last piece is filled up with queries of zeros
    q = jnp.pad(q, [(0, 0)] * len(batch) + [(0, count * P - L), (0, 0)])
    pieces = jnp.moveaxis(q.reshape(*batch, count, P, D), -3, 0)
    starts = P * jnp.arange(count)
    o = jax.lax.map(lambda both: jax.checkpoint(piece)(*both), (pieces, starts))
    return jnp.moveaxis(o, 0, -3).reshape(*batch, count * P, D)[..., :L, :]


IMPLEMENTATIONS = {
    "products": attention_by_products,
    "heads": attention_by_heads,
    "cudnn": functools.partial(jax.nn.dot_product_attention, implementation="cudnn"),
}


class AttentionBlock(nn.Module):
    """Self-attention over the pixels of an image: x + attention(norm(x), norm(x))."""

    num_heads: int = 1
    norm_eps: float = EPSILON
    dtype: DTypeLike = jnp.float32
    norm_groups: int = NUM_GROUPS  # of channels; 0: x is not normalised
    smallest_group: int = 1  # channels of a group at least
    skip_scale: float = 1.0  # of the sum
    qkv_scale: float = 1.0  # of the variance of the initial weights of q, k and v

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Map [B, H, W, C] to the same shape."""
        B, H, W, C = x_BxHxWxC.shape
        h_BxHxWxC = x_BxHxWxC
        if self.norm_groups:
            groups = self.norm_groups, self.smallest_group
            h_BxHxWxC = GroupNorm(self.norm_eps, self.dtype, *groups, name="norm")(h_BxHxWxC)
        h_BxLxC = h_BxHxWxC.reshape(B, H * W, C)
        init = nn.initializers.variance_scaling(self.qkv_scale, "fan_avg", "uniform")
        h_BxLxC = attention(h_BxLxC, h_BxLxC, self.num_heads, self.dtype, qkv_init=init)
        return scaled(x_BxHxWxC + h_BxLxC.reshape(B, H, W, C), self.skip_scale)


def choose_implementation(
    device: jax.Device, dtype: DTypeLike, *, queries: int, keys: int, head_size: int
) -> str:
    """Return the key of IMPLEMENTATIONS that computes attention on a device.

    cuDNN's flash attention never stores the [L, L] weights. It takes half precision only, and heads
    whose channels are a multiple of 8, at most 128 on Ampere (compute capability 8) and 256 from
    Hopper (9) on. A CPU computes large heads one after the other. Everything else uses products.
    """
    if device.platform == "cpu" and queries * keys >= BY_HEADS:
        return "heads"
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return "products"
    major = int(device.compute_capability.split(".")[0])
    largest = 256 if major >= 9 else 128 if major == 8 else 0
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    return (
        "cudnn"
        if half and min(queries, keys) >= FLASH_TILE and head_size % 8 == 0 and head_size <= largest
        else "products"
    )
