"""INTERPOLANTS: processes in continuous time, x = a(τ) x_0 + s(τ) ε, as functions of real τ.

name    a(τ), s(τ)                      network's time      as in
edm     1, τ                            ln(σ) / 4           Karras et al. 2022, this work
ve      1, √τ                           ln(σ / 2)           Song et al. 2021, SMLD
vp      e^(-B/2), √(1 - e^(-B)),        999 τ               Song et al. 2021, DDPM
        B = 9.95 τ² + 0.1 τ
flow    1 - τ, τ                        τ                   Lipman et al. 2023; Liu et al. 2023
cosine  cos(πτ/2), sin(πτ/2)            τ                   Albergo & Vanden-Eijnden 2023; SiT's GVP

All are one process: with σ = s / a, x / √(a² + s²) is the variance-preserving x_t at λ = -log σ,
and everything of this package computes in it. What is left of an interpolant is its levels, the
network's time, the scale of x in which the network is trained (`parameterization`), and τ, in
which a solver may take its steps (`samplers.runge_kutta`).

One whose levels are learned is in `learned_levels`.

Functions take NumPy arrays in float64 or JAX arrays, of any shape, and return the same kind. σ may
be 0 or infinite.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

# Karras et al. 2022, table 1: of the ablation's "VP", and how many steps its networks had
VP_BETA_RANGE, VP_BETA_MIN, VP_STEPS = 19.9, 0.1, 1000
KARRAS_RHO = 7.0  # Karras et al. 2022, table 1


class Method(NamedTuple):
    """How samples are made where nothing is said."""

    sampler: str  # of `samplers.registry.SAMPLERS`
    steps: int
    spacing: str | tuple[float, ...]  # of `samplers.spacing.SPACINGS`, or the times


HEUN = Method("heun", 18, "karras")  # Karras et al. 2022: 35 evaluations on CIFAR-10
EULER = Method("euler", 50, "trailing")


class Interpolant(NamedTuple):
    """One process; τ grows with the noise."""

    name: str
    coefficients: Callable[[chex.Array], tuple[chex.Array, chex.Array]]  # τ -> a, s
    time: Callable[[chex.Array], chex.Array]  # log σ -> τ
    network_time: Callable[[chex.Array], chex.Array]  # log σ -> what the network is given
    # least and most noise, τ; 0 is clean data, and the first of T levels 1/T of the way from it
    ends: tuple[float, float]
    # τ -> the measure by which levels are evenly spaced, and back
    measure: tuple[Callable[[chex.Array], chex.Array], Callable[[chex.Array], chex.Array]]
    method: Method = HEUN

    def derivatives(self, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return da/dτ and ds/dτ, float64, by a complex step, which cancels nothing."""
        step = 1e-100
        a, s = self.coefficients(np.asarray(time, np.float64) + 1j * step)
        return a.imag / step, s.imag / step

    def log_sigma(self, time: chex.Array) -> chex.Array:
        """Return log σ at τ, perhaps infinite."""
        xp = _of(time)
        a, s = self.coefficients(time)
        with np.errstate(divide="ignore"):
            return xp.log(s) - xp.log(xp.maximum(a, 0))  # which rounding may take below 0

    def scale(self, log_sigma: chex.Array) -> chex.Array:
        """Return √(a² + s²) at a level: x is so many times the variance-preserving x_t."""
        a, s = self.coefficients(self.time(log_sigma))
        return _of(log_sigma).hypot(a, s)

    def spaced(self, fraction: chex.Array, ends: tuple[float, float]) -> chex.Array:
        """Return τ between the ends, at a fraction of the way from least to most noise."""
        to, back = self.measure
        low, high = (float(to(np.float64(end))) for end in ends)
        return back(low + fraction * (high - low))

    def fraction(self, time: chex.Array, ends: tuple[float, float]) -> chex.Array:
        """Return the inverse of `spaced`."""
        to, _ = self.measure
        low, high = (float(to(np.float64(end))) for end in ends)
        return (to(time) - low) / (high - low)


def _of(x: Any) -> Any:
    return jnp if isinstance(x, jax.Array) else np


def _same(x: chex.Array) -> chex.Array:
    return x


def _constant_signal(noise: Callable[[chex.Array], chex.Array]) -> Callable[..., Any]:
    return lambda time: (_of(time).ones_like(time), noise(time))


def _vp_coefficients(time: chex.Array) -> tuple[chex.Array, chex.Array]:
    xp = _of(time)
    integrated_beta = (VP_BETA_RANGE / 2 * time + VP_BETA_MIN) * time
    return xp.exp(-0.5 * integrated_beta), xp.sqrt(-xp.expm1(-integrated_beta))


def _vp_time(log_sigma: chex.Array) -> chex.Array:
    """Solve ½ β_d τ² + β_min τ = log(1 + σ²) for τ, without cancelling at small σ."""
    xp = _of(log_sigma)
    grown = xp.logaddexp(xp.zeros_like(log_sigma), 2 * log_sigma)
    root = xp.sqrt(VP_BETA_MIN**2 + 2 * VP_BETA_RANGE * grown)
    return 2 * grown / (VP_BETA_MIN + root)


def _flow_time(log_sigma: chex.Array) -> chex.Array:
    """σ / (1 + σ), the logistic function of log σ."""
    xp = _of(log_sigma)
    return xp.exp(-xp.logaddexp(xp.zeros_like(log_sigma), -log_sigma))


def _angle(log_sigma: chex.Array) -> chex.Array:
    xp = _of(log_sigma)
    with np.errstate(over="ignore"):
        return 2 / math.pi * xp.arctan(xp.exp(log_sigma))


def _cosine_coefficients(time: chex.Array) -> tuple[chex.Array, chex.Array]:
    xp = _of(time)
    # cos(πτ/2), exactly 0 at τ = 1
    return xp.sin(math.pi / 2 * (1 - time)), xp.sin(math.pi / 2 * time)


def _exp(x: chex.Array) -> chex.Array:
    return _of(x).exp(x)


def _log(x: chex.Array) -> chex.Array:
    return _of(x).log(x)


EDM = Interpolant(
    "edm",
    coefficients=_constant_signal(_same),
    time=_exp,
    network_time=lambda log_sigma: log_sigma / 4,
    ends=(0.002, 80.0),
    measure=(lambda time: time ** (1 / KARRAS_RHO), lambda value: value**KARRAS_RHO),
)
VE = Interpolant(
    "ve",
    coefficients=_constant_signal(lambda time: _of(time).sqrt(time)),
    time=lambda log_sigma: _exp(2 * log_sigma),
    network_time=lambda log_sigma: log_sigma - math.log(2),
    ends=(0.02**2, 100.0**2),
    measure=(_log, _exp),
)
VP = Interpolant(
    "vp",
    coefficients=_vp_coefficients,
    time=_vp_time,
    network_time=lambda log_sigma: (VP_STEPS - 1) * _vp_time(log_sigma),
    ends=(1e-5, 1.0),
    measure=(_same, _same),
)
FLOW = Interpolant(
    "flow",
    coefficients=lambda time: (1 - time, time),
    time=_flow_time,
    network_time=_flow_time,
    ends=(0.0, 1.0),
    measure=(_same, _same),
    method=EULER,
)
COSINE = Interpolant(
    "cosine",
    coefficients=_cosine_coefficients,
    time=_angle,
    network_time=_angle,
    ends=(0.0, 1.0),
    measure=(_same, _same),
    method=EULER,
)
INTERPOLANTS = {choice.name: choice for choice in (EDM, VE, VP, FLOW, COSINE)}


def tabled(sigmas: np.ndarray, network_times: np.ndarray) -> Interpolant:
    """Return the interpolant through given levels, a = 1; τ counts them from 1.

    Between two levels log σ is linear in τ, and the network's time in log σ.

    Args:
      sigmas: σ, float64 [T], positive and strictly rising; the last may not be infinite.
      network_times: what the network is given at each, [T].
    """
    log_sigmas, numbers = np.log(sigmas), np.arange(1.0, len(sigmas) + 1)

    def interpolated(x: chex.Array, at: np.ndarray, values: np.ndarray) -> chex.Array:
        return _of(x).interp(x, at, values)

    return Interpolant(
        "tabled",
        coefficients=_constant_signal(lambda time: _exp(interpolated(time, numbers, log_sigmas))),
        time=lambda log_sigma: interpolated(log_sigma, log_sigmas, numbers),
        network_time=lambda log_sigma: interpolated(log_sigma, log_sigmas, network_times),
        ends=(1.0, float(len(sigmas))),
        measure=(_same, _same),
    )
