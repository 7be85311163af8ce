"""Which t to train on: uniform, antithetic, or importance sampling by past losses.

Every draw depends on the key and on the example's global index in the batch, never on the batch
around it, so one device and eight draw the same. The choice of t for sampling is in
`schedules.spaced_timesteps`.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from ddpm_jax.randomness import fold_in_each

HISTORY = 10  # losses remembered per t (Nichol & Dhariwal 2021, section 3.3)
# share of uniform draws, so that every t keeps being measured and no weight explodes
UNIFORM_SHARE = 0.001


class LossHistory(NamedTuple):
    """The last losses seen at every t; a pytree that is carried from step to step."""

    losses: chex.Array  # float32 [T, HISTORY], a ring buffer per t
    counts: chex.Array  # int32 [T], losses ever seen


def uniform(key: chex.PRNGKey, index: chex.Array, num_timesteps: int) -> chex.Array:
    """Draw t uniformly over 0..T-1, independently for each example.

    `index` is the global index, int [B]; returns int32 [B].
    """
    return jax.vmap(lambda k: jax.random.randint(k, (), 0, num_timesteps))(fold_in_each(key, index))


def antithetic(key: chex.PRNGKey, index: chex.Array, num_timesteps: int) -> chex.Array:
    """Draw uniform t in pairs: examples 2i and 2i+1 get t and T-1-t.

    This lowers the variance of the mean loss of a batch.

    `index` is the global index, int [B]; returns int32 [B]. (Song et al. 2020, DDIM's code.)
    """
    t = uniform(key, index // 2, num_timesteps)
    return jnp.where(index % 2 == 0, t, num_timesteps - 1 - t)


def init_history(num_timesteps: int) -> LossHistory:
    """Return an empty history."""
    return LossHistory(jnp.zeros((num_timesteps, HISTORY)), jnp.zeros((num_timesteps,), jnp.int32))


def importance_probabilities(history: LossHistory) -> chex.Array:
    """p_t ∝ √E[L_t²] over the remembered losses once every t has a full history, else uniform.

    Nichol & Dhariwal 2021, eq. 18.

    Losses that are all 0 give the uniform distribution as well.

    Returns:
      float32 [T], sums to 1, each at least UNIFORM_SHARE / T.
    """
    num_timesteps = history.counts.shape[0]
    root_mean_square = jnp.sqrt(jnp.mean(jnp.square(history.losses), axis=1))
    warm = jnp.all(history.counts >= HISTORY) & jnp.any(root_mean_square > 0)
    p = jnp.where(warm, root_mean_square, 1.0)
    return (1 - UNIFORM_SHARE) * p / jnp.sum(p) + UNIFORM_SHARE / num_timesteps


def importance(
    key: chex.PRNGKey, index: chex.Array, history: LossHistory
) -> tuple[chex.Array, chex.Array]:
    """Draw t from `importance_probabilities`, by inverting their cumulative sum.

    Nichol & Dhariwal 2021, eq. 18.

    Args:
      key: for the batch's draws of t.
      index: the examples' global indices, int [B].
      history: past losses.

    Returns:
      t int32 [B], and the weights 1 / (T p_t), float32 [B], under which a mean of losses estimates
      that over uniform t.
    """
    p = importance_probabilities(history)
    u = jax.vmap(jax.random.uniform)(fold_in_each(key, index))
    cumulative = jnp.cumsum(p)
    t = jnp.searchsorted(cumulative, u * cumulative[-1], side="right")
    t = jnp.minimum(t, p.shape[0] - 1).astype(jnp.int32)
    return t, 1.0 / (p.shape[0] * p[t])


def update_history(history: LossHistory, t: chex.Array, losses: chex.Array) -> LossHistory:
    """Write the losses of a whole batch into the ring buffers, in the order of the batch.

    Args:
      history: past losses.
      t: int [N], of the examples on all devices; a t may occur several times.
      losses: float32 [N], the unweighted loss of each.

    Returns:
      The new history; the oldest losses of each t are overwritten.
    """
    same = t[:, None] == t[None, :]
    rank = jnp.sum(jnp.tril(same, k=-1), axis=1)  # earlier examples of the batch with the same t
    # later ones would overwrite the others in the same scatter
    last = jnp.sum(same, axis=1) - rank <= HISTORY
    counts = jnp.asarray(history.counts)
    slot = (counts[t] + rank) % HISTORY
    row = jnp.where(last, t, counts.shape[0])  # an index past the end is dropped
    return LossHistory(
        losses=jnp.asarray(history.losses).at[row, slot].set(losses, mode="drop"),
        counts=counts.at[t].add(1),
    )
