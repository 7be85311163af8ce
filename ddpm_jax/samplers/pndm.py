"""Pseudo numerical methods (PNDM, Liu et al. 2022): classical coefficients in DDIM's step.

A classical method with steps of equal size replaces the derivative over a step by a mean of
derivatives, and these methods do so with ε: x̄_{i+1} = x̄_i + (σ_{i+1} - σ_i) ε', ε' = Σ_j c_j
ε[i-j]. Because the levels are even in time and not in σ, the order is 2, whatever that of the
classical method (section 3 of the paper). Any smooth spacing is allowed.
"""

import itertools

import numpy as np

from ddpm_jax.diffusion.chain import Chain, GivenLevels
from ddpm_jax.errors import choose
from ddpm_jax.samplers.linear import (
    Levels,
    Weights,
    evaluated_at,
    flow_weights,
    levels_from_lambdas,
    linear_sampler,
)
from ddpm_jax.samplers.loop import Sampler

# Adams-Bashforth for equal steps, by the number of known values, the newest first (Hairer et al.
# 1993, III.1).
ADAMS_BASHFORTH = (
    np.array([1.0]),
    np.array([3.0, -1.0]) / 2,
    np.array([23.0, -16.0, 5.0]) / 12,
    np.array([55.0, -59.0, 37.0, -9.0]) / 24,
)
AVERAGES = dict.fromkeys(("eps", "v"))
RUNGE_KUTTA_STEPS = 3  # until four ε are known


def plms(chain: Chain, times: np.ndarray, *, averages: str = "eps", dtype=np.float32) -> Sampler:
    """Adams-Bashforth of rising order; the first step is repeated with (ε_0 + ε_1) / 2.

    The start of Rombach et al. 2022's code and of diffusers with `skip_prk_steps`. N + 1
    evaluations: the second level is evaluated twice, and the first of its ε is not used afterwards.
      One step is `ddim`.

    Args:
      chain: the process.
      times: which of its levels are visited, [N].
      averages: the predictions that are combined: `eps`; or `v`, whose mean is turned into ε' at
        the current level, as diffusers does where the network predicts v.
      dtype: of the tables.

    Raises:
      UsageError: another prediction.
    """
    choose("prediction that plms averages", averages, AVERAGES)
    times = np.asarray(times)[::-1]
    schedule, level, levels = evaluated_at(chain, np.insert(times, 1, times[1:2]), dtype)
    again, levels = _with_strides(chain, times, levels)
    before, after = Levels(*(of[:-1] for of in levels[:3])), levels.after
    x, gain = _step(before, after, averages)
    # Column j is the prediction of j rows ago: four that are combined, and row 1's, which is
    # skipped. In units of √ᾱ'.
    mean = np.zeros((len(level), 5 if len(times) > 1 else 1))
    mean[0, 0] = gain[0]
    if len(times) > 1:
        # The first step again, with a mean of two: what it did to x_T and added is taken back. The
        # level `again` from which it starts is that of x_T, except with a stride.
        second = Levels(*(of[1] for of in before[:3]))
        x_again, gain_again = _step(again, second, averages)
        x[1] = x_again / x[0]
        added = gain[0] * (after.signal[0] / second.signal)
        mean[1, :2] = gain_again / 2, gain_again / 2 - x[1] * added
    for row in range(2, len(level)):
        others = (age for age in range(row + 1) if age != row - 1)  # all but that of row 1
        kept = list(itertools.islice(others, 4))
        mean[row, kept] = gain[row] * ADAMS_BASHFORTH[len(kept) - 1]
    return linear_sampler(
        schedule, _weights(before, x, after.signal[:, None] * mean, averages), level
    )


def _with_strides(chain: Chain, times: np.ndarray, levels: Levels) -> tuple[Levels, Levels]:
    """Return the level from which the first step is repeated, and the levels of the rows.

    On a chain with a stride a row leads one stride down; the second, which repeats the first step,
    leads from one stride above its own time to that time.

    Args:
      chain: the process.
      times: [N], noisiest first.
      levels: of the rows, the second of which is at the same time as the third.
    """
    if not isinstance(chain, GivenLevels) or chain.below is None:
        return Levels(*(of[0] for of in levels[:3])), levels
    second = times[:2][-1]
    leads_to = chain.below[np.insert(times, 1, times[1:2])]
    leads_to[1:2] = chain.half_log_snr[second]
    return levels_from_lambdas(chain.above[second]), levels._replace(leads_to=leads_to)


def _step(before: Levels, after: Levels, averages: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a and g of x' = a x + √ᾱ' g p, p the mean of predictions: equation 9 of the paper.

    For v, ε' = √ᾱ v + √(1-ᾱ) x.
    """
    x, move = after.signal / before.signal, after.sigma - before.sigma
    if averages == "eps":
        return x, move
    return x + after.signal * move * before.noise, move * before.signal


def _weights(levels: Levels, x: np.ndarray, mean: np.ndarray, averages: str) -> Weights:
    """Return the rows x' = x_i x + Σ_j mean_ij p[i-j], the predictions being at `levels`."""
    if averages == "eps":
        return Weights(x=x, x_0=np.zeros((len(x), 0)), eps=mean, z=None)
    row, age = np.indices(mean.shape)
    made = np.maximum(row - age, 0)  # the row of each prediction; before row 0 the weight is 0
    # v = √ᾱ ε - √(1-ᾱ) x_0
    return Weights(x=x, x_0=-mean * levels.noise[made], eps=mean * levels.signal[made], z=None)


def pndm(chain: Chain, times: np.ndarray, *, dtype=np.float32) -> Sampler:
    """Three pseudo Runge-Kutta steps, then Adams-Bashforth of order 4: the paper's F-PNDM.

    N + 9 evaluations for N > 3: a Runge-Kutta step takes four, two of them at the time halfway to
    the next level. The last step leads to clean data, where no evaluation is possible, and is
    multistep for every N.

    Args:
      chain: the process.
      times: which of its levels are visited, [N].
      dtype: of the tables.
    """
    times = np.asarray(times, np.float64)[::-1]
    starts = min(RUNGE_KUTTA_STEPS, len(times) - 1)
    halfway = (times[:starts] + times[1 : starts + 1]) / 2
    stages = np.stack([times[:starts], halfway, halfway, times[1 : starts + 1]], axis=1)
    schedule, level, levels = evaluated_at(chain, np.append(stages, times[starts:]), dtype)
    sigma = levels.sigma
    # Column j is the ε of j rows ago. A multistep row needs the first stage of each Runge-Kutta
    # step, four rows apart, so the history is as long as the start.
    eps = np.zeros((len(level), 4 * starts + 1))
    for row in range(0, 4 * starts, 4):
        eps[row : row + 4, :4] = _runge_kutta(
            half=sigma[row + 1] - sigma[row], whole=sigma[row + 3] - sigma[row]
        )
    for row in range(4 * starts, len(level)):
        # Age 0 is this row's own ε; of the rows of the start only each first stage counts.
        ages = (age for age in range(row + 1) if row - age >= 4 * starts or (row - age) % 4 == 0)
        kept = list(itertools.islice(ages, 4))
        eps[row, kept] = (sigma[row + 1] - sigma[row]) * ADAMS_BASHFORTH[len(kept) - 1]
    return linear_sampler(schedule, flow_weights(levels.signal, eps), level)


def _runge_kutta(half: float, whole: float) -> np.ndarray:
    """Return the four rows of a step of x̄ by `whole`; columns are the ε, the newest first.

    From its initial x̄ it moves by half ε_1, half ε_2, whole ε_3, and whole (ε_1 + 2 ε_2 + 2 ε_3 +
    ε_4) / 6. A row starts where the row before it ended, so each is the difference of two of these.
    """
    reached = np.array(
        [
            [half, 0, 0, 0],
            [0, half, 0, 0],
            [0, 0, whole, 0],
            [whole / 6, whole / 3, whole / 3, whole / 6],
        ]
    )
    # Reversed up to the stage, because a row's columns begin with the newest ε.
    change = np.diff(reached, axis=0, prepend=np.zeros((1, 4)))  # columns ε_1 .. ε_4
    return np.stack(
        [np.append(change[stage, stage::-1], np.zeros(3 - stage)) for stage in range(4)]
    )
