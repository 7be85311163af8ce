"""The timesteps of the bound that are visited: one random t in each run of adjacent ones."""

from typing import NamedTuple

import chex
import jax
import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.randomness import TIMES, row_keys

# A constant never changes: that would change every result.
SHORTER = 4  # a run that starts at t has at most t / SHORTER timesteps


class Strata(NamedTuple):
    """R runs of adjacent timesteps that together are 0..T-1.

    One t is drawn from each, and counts for all of it.
    """

    first: np.ndarray  # int32 [R], increasing
    size: np.ndarray  # int32 [R], adds up to T

    def weights(self) -> np.ndarray:
        """Return the size of each t's stratum, float64 [T]: the weight of a drawn term."""
        return np.repeat(self.size, self.size).astype(np.float64)


def make_strata(num_timesteps: int, stride: int = 1) -> Strata:
    """Divide 0..T-1 into runs of `stride` timesteps, shorter at the start: from t on at most t/4.

    A t drawn uniformly from each run, its term counted once for every t of the run, makes an
    unbiased estimate of the sum over all t; with `stride` 1 every t is taken and the sum is exact.
    The terms are largest and change fastest at small t, roughly like 1/t, so that runs proportional
    to t cost few more evaluations and remove most of the variance; the decoder's term at t = 0 is a
    run by itself.

    Args:
      num_timesteps: T.
      stride: in 1..T.

    Raises:
      UsageError: `stride` is not in 1..T.
    """
    if not 1 <= stride <= num_timesteps:
        raise UsageError(
            f"The timestep stride is {stride}: the chain has {num_timesteps} timesteps, so choose "
            f"1 (all of them) to {num_timesteps}."
        )
    first, size = [], []
    t = 0
    while t < num_timesteps:
        first.append(t)
        size.append(min(stride, max(1, t // SHORTER), num_timesteps - t))
        t += size[-1]
    return Strata(np.array(first, np.int32), np.array(size, np.int32))


def draw_timesteps(
    keys: chex.PRNGKey, row: chex.Array, first: chex.Array, size: chex.Array
) -> chex.Array:
    """Draw one t of stratum number `row` for each image, uniform and independent: int32 [B]."""
    keys = row_keys(row_keys(keys, TIMES), row)
    return jax.vmap(lambda key: first + jax.random.randint(key, (), 0, size))(keys)
