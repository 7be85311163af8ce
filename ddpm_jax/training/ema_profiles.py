"""Averages of any length computed from saved ones after training, in float64.

The method is that of Karras et al. 2024, section 3 and appendix C.

An average over a run is described by its profile: the weight p(τ) of the parameters at time τ.
Those kept by `ema.update` with `sigma_rel` have p(τ) = (γ + 1) τ^γ / t^(γ+1) on [0, t], t being the
steps done. Any other profile is approximated by a sum of saved ones, and its average by the same
sum of saved averages. Time counts in steps; parameters of step k stand for the times (k - 1, k], so
nothing here is rounded to steps.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddpm_jax.errors import UsageError

WIDEST = 12**-0.5  # relative width of γ = 0: all parameters of the run weigh the same


class Profile(NamedTuple):
    """p(τ) = (γ + 1) τ^γ / t^(γ+1) on [0, t]."""

    gamma: float  # γ > 0
    t: float  # steps


class Fit(NamedTuple):
    """A sum of saved profiles that approximates a wanted one."""

    coefficients: np.ndarray  # float64 [N], one for each saved profile; their sum is 1
    error: float  # ||p - Σ c_i p_i|| / ||p||, the norms over time


def sigma_rel_from_gamma(gamma: float) -> float:
    """Return the standard deviation of a profile in units of t: (γ+1)^½ (γ+2)^-1 (γ+3)^-½."""
    return (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)


def gamma_from_sigma_rel(sigma_rel: float) -> float:
    """Return γ of a relative width (Karras et al. 2024, algorithm 2).

    It is the largest root of γ³ + 7 γ² + (16 - σ^-2) γ + 12 - σ^-2.

    Raises:
      UsageError: no γ > 0 has that width.
    """
    if not 0 < sigma_rel < WIDEST:
        raise UsageError(
            f"The relative width of an average is {sigma_rel}: it must be above 0 and below "
            f"{WIDEST:.4f}, where all of the run weighs the same; 0.05 to 0.25 are usual."
        )
    inverse_square = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse_square, 12 - inverse_square]).real.max())


def step_weights(profile: Profile) -> np.ndarray:
    """Return the weights of the parameters after each of the updates 1..t: float64 [t].

    They are (k^(γ+1) - (k-1)^(γ+1)) / t^(γ+1).
    """
    k = np.arange(int(profile.t) + 1, dtype=np.float64) / profile.t
    return np.diff(k ** (profile.gamma + 1))


def inner_product(a: Profile, b: Profile) -> float:
    """Return ∫ p_a(τ) p_b(τ) dτ.

    It is (γ_a+1) (γ_b+1) (t_min / t_max)^γ / ((γ_a+γ_b+1) t_max), with the γ of the later one.
    """
    early, late = sorted((a, b), key=lambda profile: profile.t)
    scale = (a.gamma + 1) * (b.gamma + 1) / ((a.gamma + b.gamma + 1) * late.t)
    return scale * (early.t / late.t) ** late.gamma


def fit(wanted: Profile, saved: Sequence[Profile]) -> Fit:
    """Find the least-squares coefficients, min ||p - Σ c_i p_i||² over time, with Σ c_i = 1.

    The paper does not constrain the sum. With another sum, parameters that never moved would come
    out scaled.

    Raises:
      UsageError: nothing is saved.
    """
    if not saved:
        raise UsageError("There are no saved averages to make another one of.")
    # Multiplied by t, inner products are numbers near 1.
    gram = wanted.t * np.array([[inner_product(a, b) for b in saved] for a in saved])
    target = wanted.t * np.array([inner_product(a, wanted) for a in saved])
    size = len(saved)
    # The minimum under the constraint, with a Lagrange multiplier as the last unknown.
    system = np.ones((size + 1, size + 1))
    system[:size, :size], system[size, size] = gram, 0.0
    solution, *_ = np.linalg.lstsq(system, np.append(target, 1.0), rcond=None)
    coefficients = solution[:size]
    norm = wanted.t * inner_product(wanted, wanted)
    square = norm - 2 * coefficients @ target + coefficients @ gram @ coefficients
    return Fit(coefficients, float(np.sqrt(max(square, 0.0) / norm)))
