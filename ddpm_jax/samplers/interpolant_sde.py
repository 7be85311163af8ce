"""Stochastic samplers of an interpolant, in its own time and scale (Ma et al. 2024, section 2.3).

With X = a x_0 + s ε, V = a' x_0 + s' ε and the score -ε/s, every D(τ) >= 0 gives a diffusion whose
marginals are those of the flow. Down from τ, dτ < 0, it is

    dX = (V + D ε/s) dτ + √(2D) dW

Their w is 2D, and their t is 1 - τ. D = 0 is the flow; `sbdm` is the reverse of the forward process
(Song et al. 2021).
"""

import math
from collections.abc import Callable
from numbers import Real

import numpy as np

from ddpm_jax.diffusion.chain import Chain, check_chain
from ddpm_jax.diffusion.interpolants import EDM, VE, Interpolant
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.samplers.linear import (
    Weights,
    evaluated_at,
    levels_at,
    linear_sampler,
    visited,
)
from ddpm_jax.samplers.loop import Sampler
from ddpm_jax.samplers.runge_kutta import OWN, Place, path_of, place

LAST_STEPS = {
    "mean": "the last step without its noise",
    "euler": "Euler's step of the flow",
    "tweedie": "x_0 as predicted",
}
# D at a place, up to a factor; those that are no functions of a and s are of 1 - τ in 0..1
DIFFUSIONS: dict[str, Callable[[Place], np.ndarray]] = {
    "sigma": lambda at: at.noise,
    "sbdm": lambda at: at.noise * (at.noise_rate - at.noise * at.signal_rate / at.signal),
    "constant": lambda at: np.ones_like(at.time),
    "linear": lambda at: at.time,
    "decreasing": lambda at: np.square(1 - np.cos(math.pi * at.time)) / 4,
    "increasing_decreasing": lambda at: np.square(np.sin(math.pi * at.time)),
}
OF_UNIT_TIME = ("linear", "decreasing", "increasing_decreasing")


def diffusion_of(path: Interpolant, at: Place, form: str, norm: float = 1.0) -> np.ndarray:
    """Return D at τ, float64 of the shape of `at.time`.

    Args:
      path: the interpolant.
      at: of `runge_kutta.place`; with `sbdm` nowhere pure noise.
      form: a key of `DIFFUSIONS`.
      norm: not negative; D is so many times the form, but of `decreasing`, as in SiT's code,
        (1 - norm cos πτ)² / 4.

    Raises:
      UsageError: an unknown form, one that this path has not, or a norm that is negative.
    """
    of_form = choose("diffusion", form, DIFFUSIONS)
    if not (isinstance(norm, Real) and 0 <= norm < math.inf):
        raise UsageError(f"norm is {norm}: choose a number that is not negative.")
    if form in OF_UNIT_TIME and path in (EDM, VE):
        raise UsageError(
            f"The diffusion {form} is a function of times in 0..1, which the path {path.name} does "
            "not have: choose sigma, sbdm or constant, or another path."
        )
    if form == "decreasing":
        return np.square(1 - norm * np.cos(math.pi * at.time)) / 4
    return norm * of_form(at)


def interpolant_sde(
    chain: Chain,
    times: np.ndarray,
    *,
    diffusion: str = "sigma",
    norm: float = 1.0,
    last: str = "mean",
    order: int = 1,
    path: str = OWN,
    dtype=np.float32,
) -> Sampler:
    """X + h (V + D ε/s) + √(2D|h|) z: Euler and Maruyama's method, or of order 2 Heun's.

    Heun's has the noise of a step first, then Heun's step of the drift (SiT's code; Karras et al.
    2022, algorithm 2, has the noise at a raised level instead). No noise is added to x_T. Both are
    of first order in distribution.

    Args:
      chain: the process.
      times: the levels to visit, [N].
      diffusion: D: a key of `DIFFUSIONS`.
      norm: how much of it; see `diffusion_of`.
      last: of the step to clean data, where D and the score end: a key of `LAST_STEPS`.
      order: 1, or 2 with 2N - 1 evaluations.
      path: as in `runge_kutta`.
      dtype: of the tables.

    Raises:
      UsageError: an unknown name, or a number out of range.
    """
    if order not in (1, 2):
        raise UsageError(f"order is {order}: interpolant_sde has the orders 1 and 2.")
    choose("last step", last, LAST_STEPS)
    check_chain(chain)
    course = path_of(chain, path)
    tau = course.time(-levels_at(chain, times).half_log_snr[:-1])
    at = place(course, tau)
    step = np.append(tau[1:], 0.0) - tau  # h
    amount = diffusion_of(course, at, diffusion, norm)
    # V + D ε/s as weights of x_0 and ε, [2, N], and what of it the step from each level takes
    rate = np.stack([at.signal_rate, at.noise_rate + amount / at.noise])
    taken, carried = rate * step, at.scale.copy()
    if last != "mean":
        taken[1, -1] = at.noise_rate[-1] * step[-1]
    if last == "tweedie":
        taken[:, -1], carried[-1] = (1, 0), 0
    noise = np.append(np.sqrt(-2 * amount * step)[:-1], 0)
    after = np.append(at.scale[1:], 1)  # the scale at the end of a step
    if order == 1:
        schedule, _ = visited(chain, times, dtype)
        weights = Weights(carried / after, *(taken / after)[..., None], noise / after)
        return linear_sampler(schedule, weights)
    # From a level to the estimate at the next, and there the other half: two rows a step, the last
    # has one. A row at the end of a step adds the noise of the next.
    falling = times[::-1]
    evaluated = np.append(np.stack([falling[:-1], falling[1:]], axis=1), falling[-1])
    schedule, level, _ = evaluated_at(chain, evaluated, dtype)
    x, z = np.ones(len(level)), np.zeros(len(level))
    along = np.zeros((2, len(level), 2))
    x[0::2], z[1::2] = carried / after, noise[1:] / after[:-1]
    along[:, 0::2, 0] = taken / after
    half = step[:-1] / after[:-1] / 2
    along[:, 1::2, 0], along[:, 1::2, 1] = half * rate[:, 1:], -half * rate[:, :-1]
    return linear_sampler(schedule, Weights(x, *along, z), level)
