"""Vector quantisation (van den Oord, Vinyals and Kavukcuoglu 2017): codes, losses, dictionary.

Indices are int32 in 0..K-1. The prior over codes is uniform, so each costs log K nats, log2 K bits.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class Quantized(NamedTuple):
    """The codes nearest to some vectors."""

    codes: chex.Array  # [..., D], the nearest rows of the codebook
    index: chex.Array  # int32 [...]


def quantize(z: chex.Array, codebook: chex.Array) -> Quantized:
    """Replace vectors z [..., D] by the nearest rows of the codebook [K, D] (eq. 1).

    Distances are Euclidean; the lower index wins a tie. No gradient flows through the choice; the
    codes are differentiable in the codebook.
    """
    chex.assert_equal(z.shape[-1], codebook.shape[-1])
    # |z - e|² without |z|², which is the same for every code; in full float32 and relative to the
    # mean of the codes, because the nearest two may be close to each other and far from the origin.
    center = jnp.mean(codebook, axis=0)
    from_center = codebook - center[None]
    centered = z - jnp.expand_dims(center, range(z.ndim - 1))
    products = jnp.einsum(
        "...d,kd->...k", centered, from_center, precision=jax.lax.Precision.HIGHEST
    )
    norms = jnp.sum(jnp.square(from_center), axis=-1)
    index = jnp.argmin(norms.reshape((1,) * (z.ndim - 1) + (-1,)) - 2 * products, axis=-1).astype(
        jnp.int32
    )
    return Quantized(codebook[index], index)


def straight_through(z: chex.Array, codes: chex.Array) -> chex.Array:
    """Return the codes with the gradient of z: the decoder's gradient passes to the encoder."""
    # Often written z + sg[codes - z], which differs from the codes by a rounding error.
    return jax.lax.stop_gradient(codes) + (z - jax.lax.stop_gradient(z))


def codebook_loss(z: chex.Array, codes: chex.Array) -> chex.Array:
    """|sg[z] - e|² per element (eq. 3, second term): moves codes to the vectors that chose them."""
    return jnp.square(jax.lax.stop_gradient(z) - codes)


def commitment_loss(z: chex.Array, codes: chex.Array) -> chex.Array:
    """|z - sg[e]|² per element (eq. 3, third term): keeps vectors near the codes they chose."""
    return jnp.square(z - jax.lax.stop_gradient(codes))


class Dictionary(NamedTuple):
    """Running averages that define a codebook without gradients (appendix A.1)."""

    counts: chex.Array  # [K], N_i: vectors per update that chose code i
    sums: chex.Array  # [K, D], m_i: their sum


def make_dictionary(codebook: chex.Array) -> Dictionary:
    """Return the averages of this codebook [K, D], each code counted once."""
    return Dictionary(jnp.ones(codebook.shape[0], codebook.dtype), jnp.array(codebook))


def update_dictionary(
    dictionary: Dictionary, z: chex.Array, index: chex.Array, *, decay: float
) -> Dictionary:
    """Move the averages towards the vectors z [..., D] of a batch (eqs. 6, 7).

    `index` [...] is the code that each vector chose.
    """
    one_hot = jax.nn.one_hot(index.reshape(-1), dictionary.counts.shape[0], dtype=z.dtype)
    counts = jnp.sum(one_hot, axis=0)
    sums = jnp.einsum(
        "nk,nd->kd", one_hot, z.reshape(-1, z.shape[-1]), precision=jax.lax.Precision.HIGHEST
    )
    return Dictionary(
        decay * dictionary.counts + (1 - decay) * counts,
        decay * dictionary.sums + (1 - decay) * sums,
    )


def dictionary_codebook(dictionary: Dictionary, *, smoothing: float = 1e-5) -> chex.Array:
    """m_i / N_i, [K, D] (eq. 8), with smoothed N_i, so that an unused code is not divided by 0.

    Args:
      dictionary: the averages.
      smoothing: ε of the Laplace smoothing (N_i + ε) / (Σ N + K ε) Σ N.
    """
    total = jnp.sum(dictionary.counts)
    counts = (dictionary.counts + smoothing) / (total + dictionary.counts.size * smoothing) * total
    return dictionary.sums / counts[:, None]


def restart_dead(
    dictionary: Dictionary, z: chex.Array, order: chex.Array, *, least: float
) -> tuple[Dictionary, chex.Array]:
    """Move each rarely chosen code to a vector of the batch (Dhariwal et al. 2020, sec. 3.1).

    Args:
      dictionary: the averages.
      z: [N, D], the vectors of the batch.
      order: [N], random numbers: the i-th dead code moves to the vector with the i-th smallest
        number, starting over if there are more codes than vectors.
      least: codes with N_i below this are dead.

    Returns:
      The dictionary, in which a moved code counts as max(least, 1) vectors, and which codes were
      dead, bool [K].
    """
    dead = dictionary.counts < least
    # The i-th dead code takes the i-th vector in a random order; others are not read below.
    places = z[jnp.argsort(order)[(jnp.cumsum(dead) - 1) % z.shape[0]]]
    weight = max(least, 1.0)
    counts = jnp.where(dead, weight, dictionary.counts)
    return Dictionary(counts, jnp.where(dead[:, None], weight * places, dictionary.sums)), dead


def usage(index: chex.Array, num_codes: int) -> chex.Array:
    """Count how often each code was chosen: indices of any shape -> int32 [K]."""
    return jnp.zeros(num_codes, jnp.int32).at[index.reshape(-1)].add(1)


def perplexity(counts: chex.Array) -> chex.Array:
    """exp of the entropy of the code frequencies, from counts [K]: between 1 and K."""
    p = counts / jnp.sum(counts)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(p, p)))
