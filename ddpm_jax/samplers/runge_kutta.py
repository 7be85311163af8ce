"""Second-order methods of two evaluations a step: Heun's, the midpoint, Heun's with churn (EDM).

In x̄ and σ, where the flow is dx̄/dσ = ε, or with `runge_kutta` in the time and scale of any
interpolant. A step is two rows: to a first estimate, and from it to the improved one. The last
step, to clean data, where no evaluation is possible, has the first row alone: 2N - 1 evaluations.
From pure noise, where σ is infinite, those in σ take DDIM's step first, of one: 2N - 2.
"""

import math
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.diffusion.chain import Chain, check_chain
from ddpm_jax.diffusion.interpolants import EDM, INTERPOLANTS, Interpolant
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.samplers.linear import Weights, evaluated_at, flow_weights, levels_at, linear_sampler
from ddpm_jax.samplers.loop import Sampler

OWN = "own"
MAX_CHURN = math.sqrt(2) - 1  # Karras et al. 2022, algorithm 2: never more new noise than there is


def heun(chain: Chain, times: np.ndarray, *, dtype=np.float32) -> Sampler:
    """x̄' = x̄ + (σ'-σ) ε, then x̄ + (σ'-σ) (ε + ε') / 2 (Karras et al. 2022, algorithm 1).

    `times` [N].
    """
    return edm(chain, times, dtype=dtype)


def dpm2(chain: Chain, times: np.ndarray, *, dtype=np.float32) -> Sampler:
    """x̄' = x̄ + (σ'-σ) ε_m, ε_m at x̄ + (σ_m-σ) ε and σ_m = √(σ σ').

    DPM-Solver-2 (Lu et al. 2022a, algorithm 1).

    The midpoint is that of log σ, as in the paper and in Crowson's k-diffusion. `times` [N]; the
    network is evaluated at their midpoints too.
    """
    check_chain(chain)
    times = np.asarray(times, np.float64)[::-1]
    sigma = levels_at(chain, times[::-1]).sigma
    halfway = chain.times_from_sigmas(np.sqrt(sigma[:-2] * sigma[1:-1]))
    # Rows alternate: a level, the midpoint after it, ..., and the last level without one.
    evaluated = np.append(np.stack([times[:-1], halfway], axis=1), times[-1])
    schedule, level, levels = evaluated_at(chain, evaluated, dtype)
    eps = np.zeros((len(level), 2))
    eps[0::2, 0] = np.diff(levels.sigma)[0::2]
    # The whole step starts from the level itself, so the first half's step along its ε is
    # subtracted.
    eps[1::2, 0] = levels.sigma[2::2] - levels.sigma[:-2:2]
    eps[1::2, 1] = -eps[0:-1:2, 0]
    return linear_sampler(schedule, flow_weights(levels.signal, eps), level)


def edm(
    chain: Chain,
    times: np.ndarray,
    *,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
    rounded: bool = False,
    dtype=np.float32,
) -> Sampler:
    """Noise raised to σ̂ = (1+γ) σ, then Heun's step from there (Karras et al. 2022, algorithm 2).

    γ = min(s_churn / N, √2 - 1) at the levels with s_min <= σ <= s_max, else 0. No noise is added
    at the first level, where x_T is noise already, and σ̂ is at most the chain's largest σ, beyond
    which the network is not trained.

    Args:
      chain: the process.
      times: the levels to visit, [N]; the network is evaluated at the raised levels too.
      s_churn: the amount of noise, not negative; 0 is `heun`.
      s_min: the smallest σ at which noise is added.
      s_max: the largest such σ.
      s_noise: standard deviation of the added noise; slightly above 1 counteracts the loss of
        detail with trained networks.
      rounded: take the nearest of the chain's T levels for every level that is visited or raised
        to, as EDM's samplers do for a network trained on these alone, their iDDPM. A level to which
        several are rounded is visited as often.
      dtype: of the tables.

    Raises:
      UsageError: a negative number, no range of levels, or rounding in continuous time.
    """
    check_chain(chain)
    times = np.asarray(times, np.float64)[::-1]
    times, raised = _raised(
        chain, times, rounded, s_churn=s_churn, s_min=s_min, s_max=s_max, s_noise=s_noise
    )
    # Rows alternate: from a raised level to the next one below, and there the correction, after
    # which noise raises it again. x_T is not raised.
    evaluated = np.append(times[0], np.stack([times[1:], raised[1:]], axis=1))
    schedule, level, levels = evaluated_at(chain, evaluated, dtype)
    move, z = np.zeros((len(level), 2)), np.zeros(len(level))
    step = np.diff(levels.sigma)[0::2]
    move[0::2, 0] = step
    # (ε + ε') / 2 replaces ε, along which the row before took the whole step: half a step along the
    # new ε is added, half a step along the old one subtracted.
    move[1::2] = step[:-1, None] / 2 * np.array([1, -1])
    raise_by = -levels.steps[1::2]  # of log σ; σ̂² - σ² itself would cancel
    z[1::2] = s_noise * levels.sigma[1:-1:2] * np.sqrt(np.expm1(2 * raise_by))
    return linear_sampler(schedule, flow_weights(levels.signal, move, z), level)


def _raised(
    chain: Chain, times: np.ndarray, rounded: bool, **churn: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the falling times [N], perhaps rounded, and those of σ̂ = (1+γ) σ; see `edm`.

    Raises:
      UsageError: a negative number, no range of levels, or rounding in continuous time.
    """
    for name, value in churn.items():
        if not (isinstance(value, Real) and value >= 0):
            raise UsageError(f"{name} is {value}: choose a number that is not negative.")
    if churn["s_min"] > churn["s_max"]:
        raise UsageError(
            f"s_min is {churn['s_min']} and s_max {churn['s_max']}, so no level is between them: "
            "choose an s_max above s_min."
        )
    _check_switch("rounded", rounded)
    sigma, time_of = levels_at(chain, times[::-1]).sigma[:-1], chain.times_from_sigmas
    if rounded:
        times, time_of = chain.nearest_steps(sigma).astype(np.float64), chain.nearest_steps
        sigma = np.exp(chain.log_sigmas)[times.astype(np.int64)]
    chosen = (churn["s_min"] <= sigma) & (sigma <= churn["s_max"])
    gamma = np.where(chosen, min(churn["s_churn"] / len(times), MAX_CHURN), 0)
    return times, np.where(gamma > 0, time_of((1 + gamma) * sigma), times)


def _check_switch(name: str, value: Any) -> None:
    if not isinstance(value, bool | np.bool_):
        raise UsageError(f"{name} is {value!r}: it must be True or False.")


def _log_sigmas(chain: Chain, times: np.ndarray) -> np.ndarray:
    """Return log σ at times in any order, float64; a time may repeat."""
    distinct, which = np.unique(times, return_inverse=True)
    return -chain.at(distinct, dtype=np.float64).half_log_snr[which]


def path_of(chain: Chain, path: str) -> Interpolant:
    """Return the interpolant that a path names: the process's own, of a chain of T steps EDM's.

    Raises:
      UsageError: an unknown path.
    """
    if path != OWN:
        return choose("path", path, INTERPOLANTS, hint=f" {OWN!r} is the process's.")
    return INTERPOLANTS.get(getattr(chain, "interpolant", EDM).name, EDM)


class Place(NamedTuple):
    """A path at some τ: x = a x_0 + s ε, and what a second of it changes. Float64, of one shape."""

    time: np.ndarray  # τ
    signal: np.ndarray  # a
    noise: np.ndarray  # s
    scale: np.ndarray  # √(a² + s²)
    signal_rate: np.ndarray  # a'
    noise_rate: np.ndarray  # s'


def place(path: Interpolant, time: np.ndarray, *, scaled: bool = True) -> Place:
    """Return a path at τ; not scaled, the one with a = 1 and the same σ."""
    (a, s), (a_rate, s_rate) = path.coefficients(time), path.derivatives(time)
    if not scaled:
        a, s, a_rate, s_rate = a * 0 + 1, s / a, a * 0, (s_rate * a - s * a_rate) / a**2
    return Place(time, a, s, np.hypot(a, s), a_rate, s_rate)


def runge_kutta(
    chain: Chain,
    times: np.ndarray,
    *,
    order: int = 2,
    path: str = OWN,
    scaled: bool = True,
    alpha: float = 1.0,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
    rounded: bool = False,
    dtype=np.float32,
) -> Sampler:
    """X' = X + αh V, then X + h ((1 - 1/2α) V + 1/2α V') (Karras et al. 2022, algorithm 3).

    X = a x_0 + s ε is the x of an interpolant, and V = a' x_0 + s' ε its velocity dX/dτ. Which
    levels are visited does not depend on it: so this is their sampler of the ablation with any
    schedule and scaling, and Heun's or the midpoint method of a flow. With the path edm it is
    `edm`, without churn and with α = 1 `heun`.

    Args:
      chain: the process.
      times: the levels to visit, [N]; the network is evaluated between them and at raised ones too.
      order: 2, or 1 for Euler's X + h V alone, with N evaluations.
      path: whose τ is the time of the steps: a key of `interpolants.INTERPOLANTS`; "own" for the
        process's, of a chain of T steps edm.
      scaled: at the path's scale; otherwise a = 1 and s = σ(τ).
      alpha: where V' is evaluated, in (0, 1]: 1 is Heun's method, 1/2 the midpoint, 2/3 Ralston's.
      s_churn: as in `edm`, and likewise the other options.
      s_min: see `edm`.
      s_max: see `edm`.
      s_noise: see `edm`.
      rounded: see `edm`; where V' is evaluated between two levels, the network is given the time
        of the nearest.
      dtype: of the tables.

    Raises:
      UsageError: an unknown path, a number out of range, or rounding in continuous time.
    """
    if order not in (1, 2):
        raise UsageError(f"order is {order}: runge_kutta has the orders 1 and 2.")
    order = int(order)
    _check_switch("scaled", scaled)
    if not (isinstance(alpha, Real) and 0 < alpha <= 1):
        raise UsageError(f"alpha is {alpha}: choose a number above 0 and up to 1; 1 is Heun's.")
    check_chain(chain)
    course = path_of(chain, path)
    times = np.asarray(times, np.float64)[::-1]
    times, raised = _raised(
        chain, times, rounded, s_churn=s_churn, s_min=s_min, s_max=s_max, s_noise=s_noise
    )
    raised[0] = times[0]  # x_T is noise already
    reached, begun = (_log_sigmas(chain, of) for of in (times, raised))
    begins = course.time(begun)  # τ̂ of every step
    step = np.append(course.time(reached), 0.0)[1:] - begins  # h
    between = begins[:-1] + alpha * step[:-1]
    halfway = chain.times_from_sigmas(np.exp(course.log_sigma(between)))
    halfway = times[1:] if alpha == 1 else halfway  # a level that is visited, to the last digit
    # A level and, at order 2, the second evaluation of its step, and the last level without one.
    evaluated, tau = (
        np.append(np.stack([of[:-1], *second], axis=1), of[-1])
        for of, second in ((raised, [halfway][: order - 1]), (begins, [between][: order - 1]))
    )
    schedule, level, _ = evaluated_at(chain, evaluated, dtype)
    if rounded:
        nearest = chain.network_times(chain.nearest_steps(schedule.sigma))
        schedule = schedule._replace(timesteps=nearest.astype(schedule.timesteps.dtype))
    at = place(course, tau, scaled=scaled)
    after = np.append(at.scale[1:], place(course, np.zeros(1), scaled=scaled).scale)
    # At the end of a step X is brought to the scale of the raised level, and noise is added.
    end, start = slice(order - 1, -1, order), slice(order, None, order)
    grown, z = np.ones(len(tau)), np.zeros(len(tau))
    grown[end] = at.signal[start]
    grown[end] /= place(course, course.time(reached[1:]), scaled=scaled).signal
    added = np.exp(reached[1:]) * np.sqrt(np.expm1(2 * (begun[1:] - reached[1:])))
    z[end] = s_noise * added * at.signal[start] / after[end]
    # The share of a step along the velocity at the row, and at the row before it.
    along = np.zeros((len(tau), order))
    along[0::order, 0] = step
    if order == 2:
        along[:-1:2, 0] *= alpha
        along[1::2] = step[:-1, None] * np.array([1 / (2 * alpha), 1 - 1 / (2 * alpha) - alpha])
    along *= (grown / after)[:, None]
    x_0, eps = (
        along * np.stack([np.roll(of, back) for back in range(order)], axis=1)
        for of in (at.signal_rate, at.noise_rate)
    )
    weights = Weights(x=grown * at.scale / after, x_0=x_0, eps=eps, z=z)
    return linear_sampler(schedule, weights, level)
