"""Exponential moving average of the parameters: the weights that are sampled from and evaluated."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax


def init(params: Any) -> Any:
    """Starts the average at the parameters: a copy, because a donated buffer cannot be given twice."""
    return jax.tree.map(jnp.copy, params)


def decay_at(step: chex.Array, decay: float, *, warmup: bool) -> chex.Array:
    """The decay used after update number `step` (0-based), float32 scalar.

    Constant as in Ho et al. 2020, or min(decay, (1 + step) / (10 + step)) with `warmup`, which forgets the initial
    weights sooner in short runs (the ramp of TensorFlow's ExponentialMovingAverage with num_updates).
    """
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1 + step) / (10 + step)) if warmup else jnp.float32(decay)


def update(ema_params: Any, params: Any, decay: chex.Array) -> Any:
    """ema <- decay * ema + (1 - decay) * params, leaf by leaf in float32 (Ho et al. 2020, appendix B: decay 0.9999)."""
    chex.assert_trees_all_equal_shapes_and_dtypes(ema_params, params)
    return optax.incremental_update(params, ema_params, 1 - decay)
