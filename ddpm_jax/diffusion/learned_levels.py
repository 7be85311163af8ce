"""Noise levels that are learned: γ(τ), a network that rises in τ, and the process made of it.

γ = 2 log σ, minus the logarithm of the signal-to-noise ratio (Kingma et al. 2021, Variational
Diffusion Models, eq. 3), and τ runs from the least noise, 0, to the most, 1:

    γ(τ) = γ_0 + (γ_1 - γ_0) (g(τ) - g(0)) / (g(1) - g(0))
    g(τ) = h + l_3(sigmoid(l_2(h))),    h = l_1(τ)

(their appendix on the monotone network) with linear layers of positive weights, so that γ rises
whatever the parameters are: its two ends are parameters of their own, and what lies between them
is g's. In training γ is a part of the loss; a trained γ makes an `Interpolant` like any other.

Functions take NumPy arrays or JAX arrays of times, of any shape, and return the same kind.
"""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.interpolants import Interpolant
from ddpm_jax.errors import UsageError

GAMMA = "gamma"  # the key of γ's parameters among those of a model
FIRST, LAST = -13.3, 5.0  # γ_0 and γ_1 at first (Kingma et al. 2021, their code)
TIMES = 1000.0  # what the network is given of a level runs from 0 to this, as in their code
FEATURES = 1024  # outputs of l_2
FLOOR = 1e-3  # least weight of a layer: no two levels become one
SPAN = 100.0  # of γ at first, at most
# of l_2 at first: its sigmoids have this slope, and their centres are even over the values of h
_SLOPE, _REACH = 10.0, 1.0
_KNOTS, _REFINEMENTS = 1025, 4  # of the inverse

# {"ends": {"first": [], "span": []}, "interior": {"l1", "l2", "l3": {"kernel", "bias"}}}
Levels = dict[str, Any]


def initial_levels(first: float = FIRST, last: float = LAST) -> Levels:
    """Return the parameters of a γ that is nearly a line from `first` to `last`, float32.

    Raises:
      UsageError: `last` is not more than `FLOOR` and at most `SPAN` above `first`.
    """
    if not FLOOR < last - first <= SPAN:
        raise UsageError(
            f"gamma runs from {first:g} to {last:g} at first: the second must be more than "
            f"{FLOOR:g} and at most {SPAN:g} above the first."
        )
    centres = np.linspace(-_REACH, _REACH, FEATURES)
    levels = {
        "ends": {"first": first, "span": _inverse_positive(last - first)},
        "interior": {
            "l1": {"kernel": _inverse_positive(2 * _REACH), "bias": -_REACH},
            "l2": {
                "kernel": np.full(FEATURES, _inverse_positive(_SLOPE)),
                "bias": -_SLOPE * centres,
            },
            "l3": {"kernel": np.full(FEATURES, _inverse_positive(1.0))},
        },
    }
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), levels)


def _of(time: Any) -> Any:
    return jnp if isinstance(time, jax.Array) else np


def _positive(parameter: chex.Array, xp: Any) -> chex.Array:
    return xp.logaddexp(parameter, 0.0) + FLOOR


def _inverse_positive(value: float) -> float:
    return math.log(math.expm1(value - FLOOR))


def _rising(interior: Levels, time: chex.Array) -> chex.Array:
    """g(τ)."""
    xp, (l1, l2, l3) = _of(time), (interior[name] for name in ("l1", "l2", "l3"))
    h = _positive(l1["kernel"], xp) * time + l1["bias"]
    kernel, bias, weight = (
        leaf.reshape((1,) * h.ndim + (-1,))
        for leaf in (_positive(l2["kernel"], xp), l2["bias"], _positive(l3["kernel"], xp))
    )
    # the logistic function, which overflows nowhere as a hyperbolic tangent
    units = 0.5 * (1 + xp.tanh(0.5 * (kernel * h[..., None] + bias)))
    return h + xp.mean(weight * units, axis=-1)


def gamma(levels: Levels, time: chex.Array) -> chex.Array:
    """γ at times τ in [0, 1], of the shape of `time`."""
    xp, ends, interior = _of(time), levels["ends"], levels["interior"]
    low, high = (_rising(interior, xp.full_like(time, end, shape=())) for end in (0, 1))
    risen = (_rising(interior, time) - low) / (high - low)
    return ends["first"] + _positive(ends["span"], xp) * risen


def gamma_and_rate(levels: Levels, time: jax.Array) -> tuple[jax.Array, jax.Array]:
    """γ and dγ/dτ, each of the shape of `time`."""
    return jax.jvp(lambda time: gamma(levels, time), (time,), (jnp.ones_like(time),))


def gamma_ends(levels: Levels) -> tuple[chex.Array, chex.Array]:
    """γ_0 and γ_1, scalars, which the interior does not change."""
    first, span = levels["ends"]["first"], levels["ends"]["span"]
    return first, first + _positive(span, _of(span))


def learned(levels: Levels, *, first: float = FIRST, last: float = LAST) -> Interpolant:
    """Return the process of a γ, variance preserving: a² = sigmoid(-γ), s² = sigmoid(γ).

    Args:
      levels: its parameters.
      first: the γ at which the network's time is 0, whatever γ_0 has become.
      last: likewise, at which it is `TIMES`.
    """
    levels = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), levels)
    knots = np.linspace(0, 1, _KNOTS)
    values = gamma(levels, knots)
    slopes = np.gradient(values, knots)

    def coefficients(time: chex.Array) -> tuple[chex.Array, chex.Array]:
        xp, at = _of(time), gamma(levels, time)
        return xp.sqrt(1 / (1 + xp.exp(at))), xp.sqrt(1 / (1 + xp.exp(-at)))

    def time_of(log_sigma: chex.Array) -> chex.Array:
        xp, wanted = _of(log_sigma), 2 * log_sigma
        time = xp.interp(wanted, values, knots)
        for _ in range(_REFINEMENTS):  # Newton's, with the slope between knots
            off = wanted - gamma(levels, time)
            time = xp.clip(time + off / xp.interp(time, knots, slopes), 0, 1)
        return time

    return Interpolant(
        "vdm",
        coefficients=coefficients,
        time=time_of,
        network_time=lambda log_sigma: TIMES * (2 * log_sigma - first) / (last - first),
        ends=(0.0, 1.0),
        measure=(lambda time: time, lambda time: time),
    )
