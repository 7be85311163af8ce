"""A learned weighting of noise levels: the uncertainty u(σ) of EDM2 (Karras et al. 2024, eq. 21).

The loss L of an example becomes L / e^u + u, whose minimum over u is at u = log E[L | σ]: every
level then counts as if its loss were 1. u is a linear map of Fourier features of log σ / 4, zero at
first, so that training begins with equal weights. Its parameters are a subtree of those of the
network in training, and in no moving average, since only training uses them.

As in their appendix B.3 but for the features, which are spread evenly here and drawn there, and for
the map, which they normalise.
"""

import math
import statistics
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np

UNCERTAINTY = "uncertainty"  # the subtree of its parameters
FEATURES = 128
FARTHEST = 20.0  # of log σ from 0: levels beyond, pure noise too, are taken for these
# quantiles of the standard normal distribution, and phases that fill 0..1 evenly in any order
FREQUENCIES = np.array(
    [statistics.NormalDist().inv_cdf((i + 0.5) / FEATURES) for i in range(FEATURES)]
)
PHASES = np.arange(FEATURES) * (np.sqrt(5) - 1) / 2 % 1


def log_uncertainty(params: Any, log_sigma: chex.Array) -> chex.Array:
    """Return u at log σ [B], float32 [B]; `params` of `with_uncertainty`, the whole tree."""
    level = jnp.clip(log_sigma, -FARTHEST, FARTHEST) / 4
    turns = jnp.outer(level, jnp.float32(FREQUENCIES)) + jnp.float32(PHASES)[None]
    features = math.sqrt(2) * jnp.cos(2 * math.pi * turns)
    return jnp.sum(features * params[UNCERTAINTY]["kernel"][None], axis=-1) / math.sqrt(FEATURES)


def with_uncertainty(params: Any) -> Any:
    """Return the parameters of a network with those of u, all 0."""
    return {**params, UNCERTAINTY: {"kernel": jnp.zeros(FEATURES)}}


def without_uncertainty(params: Any) -> Any:
    """Return the parameters of the network alone."""
    return {name: leaves for name, leaves in params.items() if name != UNCERTAINTY}
