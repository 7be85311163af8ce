"""The evidence lower bound of a latent variable model, its tighter relative, and what training
makes of its KL term.

log p(x) ≥ E_q[log p(x|z)] - KL(q(z|x) || p(z))                                   (Kingma and Welling 2014, eq. 3)
log p(x) ≥ E[log 1/K Σ_k p(x|z_k) p(z_k) / q(z_k|x)],   z_k ~ q(z|x)              (Burda et al. 2016, eq. 8)
"""

import math

import chex
import jax
import jax.numpy as jnp


def importance_weighted(log_weights: chex.Array) -> chex.Array:
    """The importance-weighted bound (IWAE): log of the mean of K weights.

    Args:
      log_weights: [K, B], log p(x|z_k) + log p(z_k) - log q(z_k|x), in nats.

    Returns:
      [B], in nats. For K = 1 it is one draw of the evidence lower bound; its expectation never
      falls with K.
    """
    return jax.nn.logsumexp(log_weights, axis=0) - math.log(log_weights.shape[0])


def free_nats(kl: chex.Array, least: float) -> chex.Array:
    """The KL term with `least` nats free in each channel: Σ_c max(least, KL_c).

    A channel that says less costs no less, so that the optimiser has no reason to silence it
    (Kingma et al. 2016, eq. 15, there with KL_c averaged over a mini-batch; here of one example,
    whatever batch it is in).

    Args:
      kl: [B, ..., C], in nats per element.
      least: in nats per channel, which here is all positions of it; 0 leaves the KL as it is.

    Returns:
      [B], in nats.
    """
    per_channel = jnp.sum(kl, axis=tuple(range(1, kl.ndim - 1)))
    return jnp.sum(jnp.maximum(per_channel, least), axis=-1)


def kl_weight(step: chex.Array, *, beta: float, warmup_steps: int) -> chex.Array:
    """What the KL is multiplied with in training: linearly from 0 to beta over warmup_steps (Bowman
    et al. 2016).

    Beta other than 1 is Higgins et al. 2017, eq. 4. `step` counts updates done, so the first one
    has weight 0 if there is a warm-up.
    """
    return jnp.float32(beta) * jnp.minimum(
        1.0, step / max(warmup_steps, 1) if warmup_steps else 1.0
    )


def bits_per_dim(nats: chex.Array, num_dims: int) -> chex.Array:
    """-log p of a whole image in nats, as bits per dimension."""
    return nats / (num_dims * math.log(2))
