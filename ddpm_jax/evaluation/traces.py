"""Random and exact probes for the trace of a Jacobian.

tr J = E[zᵀ J z] for probes z with E[z zᵀ] = I (Hutchinson 1990; FFJORD, Grathwohl et al. 2019).
With the probes √D e_1, ..., √D e_D the mean over probes is the exact trace: one program for both.
"""

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

# (keys [B], P, shape) -> probes float32 [B, P, *shape]
Probes = Callable[[chex.PRNGKey, int, tuple[int, ...]], chex.Array]


def basis_probes(keys: chex.PRNGKey, num_probes: int, shape: tuple[int, ...]) -> chex.Array:
    """Return √D times the unit vectors, float32 [B, D, *shape]: the exact trace.

    They are the same for all keys [B] and for any `num_probes`.
    """
    size = math.prod(shape)
    basis = math.sqrt(size) * jnp.eye(size).reshape(size, *shape)
    return jnp.broadcast_to(basis[None], (*keys.shape, *basis.shape))


def rademacher_probes(keys: chex.PRNGKey, num_probes: int, shape: tuple[int, ...]) -> chex.Array:
    """Draw signs ±1, float32 [B, P, *shape], with keys [B].

    The estimate is exact where the Jacobian is diagonal.
    """
    return jax.vmap(lambda key: jax.random.rademacher(key, (num_probes, *shape), jnp.float32))(keys)


def gaussian_probes(keys: chex.PRNGKey, num_probes: int, shape: tuple[int, ...]) -> chex.Array:
    """Draw normal numbers, float32 [B, P, *shape], with keys [B].

    The variance of the estimate with signs is at most that with these.
    """
    return jax.vmap(lambda key: jax.random.normal(key, (num_probes, *shape)))(keys)


TRACES: dict[str, Probes] = {
    "exact": basis_probes,
    "rademacher": rademacher_probes,
    "gaussian": gaussian_probes,
}
