"""Latents from a codebook (van den Oord, Vinyals and Kavukcuoglu 2017): nearest code, its losses,
the dictionary.

Indices are int32 in 0..K-1. The prior over codes is uniform, so each costs log K nats, log2 K bits,
whichever it is.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class Quantized(NamedTuple):
    """Vectors and the codes that they became."""

    codes: chex.Array  # [..., D], the nearest rows of the codebook
    index: chex.Array  # int32 [...]


def quantize(z: chex.Array, codebook: chex.Array) -> Quantized:
    """Replace vectors z [..., D] by the nearest rows of the codebook [K, D] in Euclidean distance
    (eq. 1).

    The lower index wins a tie. No gradient passes the choice; the codes are differentiable in the
    codebook.
    """
    chex.assert_equal(z.shape[-1], codebook.shape[-1])
    # |z - e|² without |z|², which is the same for every code; in full float32 and from the codes'
    # own centre, because the nearest two may be close to each other and far from the origin.
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
    """The codes, with the gradient of z: what the decoder wants of its input is handed to the
    encoder as it is."""
    # Often written z + sg[codes - z], which is off by a rounding from what decoding the codes alone
    # would see.
    return jax.lax.stop_gradient(codes) + (z - jax.lax.stop_gradient(z))


def codebook_loss(z: chex.Array, codes: chex.Array) -> chex.Array:
    """|sg[z] - e|² per element, the shape of z: moves codes to the vectors that chose them (eq. 3,
    second term)."""
    return jnp.square(jax.lax.stop_gradient(z) - codes)


def commitment_loss(z: chex.Array, codes: chex.Array) -> chex.Array:
    """|z - sg[e]|² per element, the shape of z: keeps vectors near the codes that they chose (eq.
    3, third term)."""
    return jnp.square(z - jax.lax.stop_gradient(codes))


class Dictionary(NamedTuple):
    """Running averages that make a codebook without gradients (appendix A.1)."""

    counts: chex.Array  # [K], N_i: vectors per update that chose code i
    sums: chex.Array  # [K, D], m_i: their sum


def make_dictionary(codebook: chex.Array) -> Dictionary:
    """The averages that stand for this codebook [K, D], each code chosen once."""
    return Dictionary(jnp.ones(codebook.shape[0], codebook.dtype), jnp.array(codebook))


def update_dictionary(
    dictionary: Dictionary, z: chex.Array, index: chex.Array, *, decay: float
) -> Dictionary:
    """Move the averages towards the vectors z [..., D] of one batch and the codes [...] they chose
    (eqs. 6, 7)."""
    one_hot = jax.nn.one_hot(index.reshape(-1), dictionary.counts.shape[0], dtype=z.dtype)
    counts = jnp.sum(one_hot, axis=0)
    sums = jnp.einsum(
        "nk,nd->kd", one_hot, z.reshape(-1, z.shape[-1]), precision=jax.lax.Precision.HIGHEST
    )
    return Dictionary(
        decay * dictionary.counts + (1 - decay) * counts,
        decay * dictionary.sums + (1 - decay) * sums,
    )


def codebook_of(dictionary: Dictionary, *, smoothing: float = 1e-5) -> chex.Array:
    """m_i / N_i, [K, D] (eq. 8), each N_i moved towards the mean of all, so that an unused code is
    no division by 0.

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
    """Put each code that hardly any vector chooses on a vector of the batch (Dhariwal et al. 2020,
    sec. 3.1).

    Args:
      dictionary: the averages.
      z: [N, D], the batch's vectors.
      order: [N], drawn at random: the i-th dead code is given the vector with the i-th smallest
        number, from the start again where there are more codes than vectors.
      least: codes with N_i below this are dead.

    Returns:
      The dictionary, where a new place counts as `least` vectors, or as 1 where that is more, and
      which codes were dead, bool [K].
    """
    dead = dictionary.counts < least
    places = z[jnp.argsort(order)[(jnp.cumsum(dead) - 1) % z.shape[0]]]
    weight = max(least, 1.0)
    counts = jnp.where(dead, weight, dictionary.counts)
    return Dictionary(counts, jnp.where(dead[:, None], weight * places, dictionary.sums)), dead


def usage(index: chex.Array, num_codes: int) -> chex.Array:
    """How often each code was chosen: indices of any shape -> int32 [K]."""
    return jnp.zeros(num_codes, jnp.int32).at[index.reshape(-1)].add(1)


def perplexity(counts: chex.Array) -> chex.Array:
    """exp of the entropy of the codes' frequencies, from counts [K]: 1 if one code serves all, K if
    all do alike."""
    p = counts / jnp.sum(counts)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(p, p)))
