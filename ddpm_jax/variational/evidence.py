"""The evidence lower bound, the importance-weighted bound, and the KL term of training.

log p(x) ≥ E_q[log p(x|z)] - KL(q(z|x) || p(z))           (Kingma and Welling 2014, eq. 3)
log p(x) ≥ E[log 1/K Σ_k p(x|z_k) p(z_k) / q(z_k|x)],     z_k ~ q(z|x) (Burda et al. 2016, eq. 8)
"""

import math

import chex
import jax
import jax.numpy as jnp


def importance_weighted(log_weights: chex.Array) -> chex.Array:
    """log 1/K Σ_k w_k, the importance-weighted bound (IWAE).

    Args:
      log_weights: [K, B], log p(x|z_k) + log p(z_k) - log q(z_k|x), in nats.

    Returns:
      [B], in nats. For K = 1 it is one sample of the evidence lower bound; its expectation does not
      decrease with K.
    """
    return jax.nn.logsumexp(log_weights, axis=0) - math.log(log_weights.shape[0])


def free_nats(kl: chex.Array, least: float) -> chex.Array:
    """Σ_c max(least, KL_c): the KL term with `least` free nats in each channel.

    A channel with less information costs no less, so the optimiser has no reason to remove it
    (Kingma et al. 2016, eq. 15, there with KL_c averaged over a mini-batch; here for each example,
    independently of its batch).

    Args:
      kl: [B, ..., C], in nats per element.
      least: in nats per channel, summed over positions; 0 leaves the KL unchanged.

    Returns:
      [B], in nats.
    """
    per_channel = jnp.sum(kl, axis=tuple(range(1, kl.ndim - 1)))
    return jnp.sum(jnp.maximum(per_channel, least), axis=-1)


def kl_weight(step: chex.Array, *, beta: float, warmup_steps: int) -> chex.Array:
    """Return the weight of the KL: linear from 0 to beta over warmup_steps (Bowman et al. 2016).

    A beta other than 1 is Higgins et al. (2017), eq. 4. `step` counts completed updates, so the
    first one has weight 0 if there is a warm-up.
    """
    return jnp.float32(beta) * jnp.minimum(
        1.0, step / max(warmup_steps, 1) if warmup_steps else 1.0
    )


def bits_per_dim(nats: chex.Array, num_dims: int) -> chex.Array:
    """Convert -log p of a whole image, in nats, to bits per dimension."""
    return nats / (num_dims * math.log(2))
