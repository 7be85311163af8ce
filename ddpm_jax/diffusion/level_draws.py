"""Which noise levels a process in continuous time is trained on: distributions of σ.

Each maps u, uniform on (0, 1), to log σ, rising: so u is the quantile of a level, and pairs u, 1-u
are antithetic. Draws of a chain's t are in `timesteps`.
"""

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.chain import ContinuousChain
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.randomness import fold_in_each

# u float32 [B] -> log σ [B]
LogSigma = Callable[[chex.Array], chex.Array]

LOG_MEAN, LOG_STD = -1.2, 1.2  # P_mean, P_std of Karras et al. 2022, table 1
MODE_SCALE = 1.29  # s of Esser et al. 2024, eq. 20
LEVEL_DISTRIBUTIONS = {
    "uniform": "even in the process's own time",
    "lognormal": "ln σ normal: EDM's; of a flow, whose logit τ is ln σ, the logit-normal of SD3",
    "mode": "of a flow, SD3's with heavy tails",
}


def level_distribution(
    name: str,
    chain: ContinuousChain,
    *,
    log_mean: float = LOG_MEAN,
    log_std: float = LOG_STD,
    mode_scale: float = MODE_SCALE,
) -> LogSigma:
    """Return the distribution `name` of levels, each shifted as the chain is.

    Args:
      name: a key of `LEVEL_DISTRIBUTIONS`. `uniform` is that of Song et al. 2021 for ve (in log σ)
        and vp (in τ), and of flows; for edm it is that of the levels of its samplers.
      chain: the process.
      log_mean: mean of ln σ before the shift, of `lognormal`.
      log_std: its standard deviation, positive.
      mode_scale: of `mode`, in [-1, 2 / (π - 2)], where it is monotone: above 0 more levels lie in
        the middle, and the ends keep a density (Esser et al. 2024, eq. 20).

    Raises:
      UsageError: an unknown name, or a number out of range.
    """
    choose("distribution of levels", name, LEVEL_DISTRIBUTIONS)
    if not log_std > 0:
        raise UsageError(f"The standard deviation of ln sigma is {log_std}: it must be above 0.")
    if not -1 <= mode_scale <= 2 / (math.pi - 2):
        raise UsageError(
            f"The scale of the mode distribution is {mode_scale}: choose a number from -1 to "
            f"{2 / (math.pi - 2):.2f}."
        )
    shift = math.log(chain.shift)

    def lognormal(u: chex.Array) -> chex.Array:
        return log_mean + log_std * jax.scipy.special.ndtri(u) + shift

    def mode(u: chex.Array) -> chex.Array:
        # eq. 20 at 1 - u, since theirs falls
        time = u - mode_scale * (jnp.square(jnp.sin(math.pi / 2 * u)) - u)
        return jnp.log(time) - jnp.log1p(-time) + shift

    def uniform(u: chex.Array) -> chex.Array:
        # A flow is trained from clean data on, though its first level is not there by default.
        first = chain.interpolant.spaced(1 / chain.num_timesteps, chain.interpolant.ends)
        low = 0.0 if chain.interpolant.ends[0] == 0 and chain.ends[0] == first else chain.ends[0]
        time = chain.interpolant.spaced(u, (low, chain.ends[1]))
        return chain.interpolant.log_sigma(time) + shift

    return {"lognormal": lognormal, "mode": mode, "uniform": uniform}[name]


def quantiles(key: chex.PRNGKey, index: chex.Array, *, antithetic: bool) -> chex.Array:
    """Draw u on (0, 1) for each example; with `antithetic` 2i and 2i+1 get u and 1-u.

    `index` is the global index, int [B]; returns float32 [B].
    """
    keys = fold_in_each(key, index // 2 if antithetic else index)
    # Multiples of 2^-23 are drawn. In the middle between two neither u nor 1-u is 0 or 1, whose
    # quantiles are infinite, and both are exact.
    u = jax.vmap(jax.random.uniform)(keys) + 2.0**-24
    return jnp.where(index % 2 == 0, u, 1 - u) if antithetic else u


def spread_quantiles(key: chex.PRNGKey, index: chex.Array, count: int) -> chex.Array:
    """Draw u on (0, 1) for each of `count` examples, even over all of them: (u_0 + i/k) mod 1.

    One number is drawn for the batch, and the mean over it has the least variance (Kingma et al.
    2021, their low-discrepancy sampler).

    `index` is the global index, int [B]; returns float32 [B].
    """
    u = (jax.random.uniform(key) + index / count) % 1
    # as in `quantiles`, so that none is 0 or 1
    return jnp.floor(u * 2.0**23) * 2.0**-23 + 2.0**-24


def numbered(quantile: chex.Array, num_timesteps: int) -> chex.Array:
    """Return quantiles in [0, 1) as int32 in 0..T-1: the numbers by which losses are recorded."""
    return jnp.minimum((quantile * num_timesteps).astype(jnp.int32), num_timesteps - 1)
