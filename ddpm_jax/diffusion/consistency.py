"""Consistency: one evaluation of D(x, σ) leads to the end of the flow that passes through x at σ.

A denoiser is tuned into such a function by asking that two neighbouring levels t > r of one path,
x_0 + t ε and x_0 + r ε, be mapped to one image; the step from t to r is coarse at first, down to
clean data, and finer with every stage (Geng et al. 2024, Consistency Models Made Easy; ECT). Levels
are σ, the noise relative to data of unchanged scale.
"""

import chex
import jax
import jax.numpy as jnp

STRENGTH = 8.0  # k of the mapping, Geng et al. 2024, section 3.2; their b is 1


def earlier_sigma(
    sigma: chex.Array, stage: chex.Numeric, *, shrinks: float = 2.0, strength: float = STRENGTH
) -> chex.Array:
    """Return the level whose image that of σ is compared with, 0 for clean data.

      r = max(σ (1 - (1 + k / (1 + e^σ)) / q^(stage + 1)), 0)

    Args:
      sigma: σ, any shape.
      stage: 0, 1, ..., perhaps traced; each divides the step by q.
      shrinks: q, above 1.
      strength: k; steps at small σ are 1 + k / 2 times as long as at large ones. 0: none are.

    Source: Geng et al. 2024, eq. 11.
    """
    share = (1 + strength * jax.nn.sigmoid(-sigma)) / shrinks ** (stage + 1.0)
    return jnp.maximum(sigma * (1 - share), 0)


def consistency_loss(
    found: chex.Array,
    wanted: chex.Array,
    sigma: chex.Array,
    earlier: chex.Array,
    *,
    huber: float = 0.0,
) -> chex.Array:
    """Compare the images at two levels of a path, weighted by 1 / (σ - r).

    Args:
      found: D at σ, [B, ...].
      wanted: D at the earlier level, or x_0 where that is 0; of the shape of `found`. No gradient
        is wanted of it.
      sigma: [B].
      earlier: r, [B], below σ.
      huber: c of the pseudo-Huber distance √(d² + c²) - c; with 0 it is the distance d itself. Not
        negative.

    Returns:
      [B], in units of the data over σ's.

    Source: Song & Dhariwal 2023, eq. 5; Geng et al. 2024, eq. 12.
    """
    squared = jnp.sum(
        jnp.square(found - jax.lax.stop_gradient(wanted)), axis=tuple(range(1, found.ndim))
    )
    if huber > 0:
        # √(d² + c²) - c without cancelling
        distance = squared / (jnp.sqrt(squared + huber**2) + huber)
    else:
        # the gradient of a root is infinite at 0, where the images agree
        positive = squared > 0
        distance = jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)
    return distance / (sigma - earlier)
