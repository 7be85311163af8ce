"""Second-order methods of two evaluations a step: Heun's, the midpoint, Heun's with churn (EDM).

In x̄ and σ, where the flow is dx̄/dσ = ε. A step is two rows: to a first estimate, and from it to
the improved one. The last step, to clean data, where no evaluation is possible, has the first row
alone: 2N - 1 evaluations.
"""

import math

import numpy as np

from ddpm_jax.diffusion.chain import Chain, check_chain
from ddpm_jax.errors import UsageError
from ddpm_jax.samplers.linear import evaluated_at, flow_weights, levels_at, linear_sampler
from ddpm_jax.samplers.loop import Sampler

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
      dtype: of the tables.

    Raises:
      UsageError: a negative number.
    """
    for name, value in (
        ("s_churn", s_churn),
        ("s_min", s_min),
        ("s_max", s_max),
        ("s_noise", s_noise),
    ):
        if not value >= 0:
            raise UsageError(f"{name} is {value}: choose a number that is not negative.")
    check_chain(chain)
    times = np.asarray(times, np.float64)[::-1]
    sigma = levels_at(chain, times[::-1]).sigma[:-1]
    gamma = np.where((s_min <= sigma) & (sigma <= s_max), min(s_churn / len(times), MAX_CHURN), 0)
    raised = np.where(gamma > 0, chain.times_from_sigmas((1 + gamma) * sigma), times)
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
