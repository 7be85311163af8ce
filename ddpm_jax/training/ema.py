"""Moving averages of the parameters: the weights that are sampled from and evaluated.

These are the update rules during training. Averages computed afterwards from saved ones are in
`ema_profiles`.
"""

import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ddpm_jax.training.ema_profiles import gamma_from_sigma_rel


class Average(NamedTuple):
    """The update rule of one average.

    At most one of `warmup`, `rampup_ratio` and `sigma_rel` is set.
    """

    # share of itself that an average keeps in an update (Ho et al. 2020, appendix B)
    decay: float = 0.9999
    # the decay is at most (1 + step) / (10 + step): TensorFlow's, with num_updates
    warmup: bool = False
    # the half-life is at most this share of the steps done; 0: not limited (EDM: 0.05)
    rampup_ratio: float = 0.0
    # above 0: a power function of time, of this relative width (EDM2), and no decay
    sigma_rel: float = 0.0


def init(params: Any) -> Any:
    """Start an average as a copy of the parameters: no buffer can be donated twice."""
    return jax.tree.map(jnp.copy, params)


def rate_at(step: chex.Array, average: Average) -> chex.Array:
    """Return 1 - decay, the share of the new parameters after update `step` (0-based).

    The result is a float32 scalar.

    It is not the decay itself, which in float32 would lose digits the nearer it is to 1.

    - constant: 1 - d;
    - `warmup`: d_t = min(d, (1 + step) / (10 + step));
    - `rampup_ratio` r: the half-life of d, or r step where that is shorter (Karras et al. 2022,
      their code);
    - `sigma_rel`: β_t = (1 - 1/t)^(γ+1) with t = step + 1 (Karras et al. 2024, section 3.1). The
      average after t updates then weighs all parameters so far in proportion to time^γ, and the
      initial ones not at all.
    """
    step = jnp.asarray(step, jnp.float32)
    if average.sigma_rel:
        return -jnp.expm1(
            (gamma_from_sigma_rel(average.sigma_rel) + 1) * jnp.log1p(-1 / (step + 1))
        )
    rate = jnp.float32(1 - average.decay)
    if average.warmup:
        return jnp.maximum(rate, 9 / (10 + step))
    if average.rampup_ratio:
        return jnp.maximum(rate, -jnp.expm1(-math.log(2) / (average.rampup_ratio * step)))
    return rate


def update(ema_params: Any, params: Any, rate: chex.Array) -> Any:
    """Return ema + rate (params - ema), leaf by leaf in float32.

    In this form parameters that do not change are a fixed point whatever the rounding of the rate.
    """
    chex.assert_trees_all_equal_shapes_and_dtypes(ema_params, params)
    return jax.tree.map(lambda average, new: average + rate * (new - average), ema_params, params)
