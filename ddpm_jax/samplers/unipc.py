"""UniPC (Zhao et al. 2023): a multistep predictor, corrected once the next x_0 is known.

The correction costs no evaluation.

Belongs here: UniP and UniC on predictions of x_0 (its data-prediction form) and their union. With h
= λ' - λ, primes for the next level and x_0(u) interpolated, both are

    x' = √(1-ᾱ')/√(1-ᾱ) x + √ᾱ' ∫ e^(-(λ'-u)) x_0(u) du

UniP-p interpolates at the p newest known levels; UniC-p, once x_0 has been predicted at the new
level too, at p+1. With two levels, both give the difference the weight B(h)/2 instead of that of
the integral; B(h) is h for bh1 and 1 - e^-h for bh2. With more levels the equations of the paper
(eq. 5) have the integral's weights as their solution, whatever B(h) is.
"""

import numpy as np

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.samplers.adams import lagrange_integrals
from ddpm_jax.samplers.linear import Levels, Weights, linear_sampler, visited
from ddpm_jax.samplers.loop import Sampler

MAX_ORDER = 3
VARIANTS = {"bh1": lambda h: h, "bh2": lambda h: -np.expm1(-h)}  # B(h)


def unipc(
    chain: Chain, times: np.ndarray, *, order: int = 2, variant: str = "bh2", dtype=np.float32
) -> Sampler:
    """UniPC-p: UniC-p on the step before, then UniP-p (Zhao et al. 2023, algorithm 1). Order p+1.

    p rises 1, 2, ... at the start and falls ..., 2, 1 at the end, where the last step leads to x_0
    as last predicted. The state holds the x̃ that UniP predicted; UniC replaces UniP's sum by its
    own, so a row is

        x̃_{i+1} = a (x̃_i - Σ_j UniP_{i-1}[j] x_0[i-1-j] + Σ_j UniC_{i-1}[j] x_0[i-j]) + Σ_j
        UniP_i[j] x_0[i-j]

    Args:
      chain: the process.
      times: the levels to visit, [N].
      order: p, 1 to 3.
      variant: the weight of a single difference: `bh1` or `bh2`.
      dtype: of the tables.

    Raises:
      UsageError: another order or variant.
    """
    if order not in range(1, MAX_ORDER + 1):
        raise UsageError(f"order is {order}: unipc has the orders 1 to {MAX_ORDER}.")
    choose("variant of unipc", variant, VARIANTS)
    schedule, levels = visited(chain, times, dtype)
    num_steps = len(levels.signal) - 1
    keep = np.append(levels.noise[1:-1] / levels.noise[:-2], 0)
    x_0 = np.zeros((num_steps, order + 1))
    predicted = corrected = np.zeros(0)  # the weights of the step before, newest x_0 first
    for i in range(num_steps):
        # The state holds the prediction of the step before. Its sum is subtracted, one column
        # further to the right because its newest x_0 is now the second newest ...
        x_0[i, 1 : len(predicted) + 1] -= keep[i] * predicted
        # ... and the corrector's, which includes the newest x_0, is added in its place.
        x_0[i, : len(corrected)] += keep[i] * corrected
        # No more levels than are known, and an order that falls to 1 at the last step.
        p = min(order, i + 1, num_steps - i)
        if i < num_steps - 1:
            predicted = _weights(levels, i, np.arange(i, i - p, -1), variant)
            corrected = _weights(levels, i, np.arange(i + 1, i - p, -1), variant)
        else:
            predicted = np.ones(1)
        x_0[i, : len(predicted)] += predicted
    return linear_sampler(schedule, Weights(x=keep, x_0=x_0, eps=np.zeros((num_steps, 0)), z=None))


def _weights(levels: Levels, i: int, known: np.ndarray, variant: str) -> np.ndarray:
    """Return the weights of the x_0 at levels `known` in the step from level i to i+1.

    They are √ᾱ' times the integral of the module's formula.
    """
    start, end = levels.half_log_snr[i : i + 2]
    nodes = levels.half_log_snr[known]
    if len(known) == 2:
        # The two weights sum to the integral of a constant; the slope's share goes from one to
        # the other.
        half = 0.5 * VARIANTS[variant](end - start)
        other = 1 - np.argmin(np.abs(known - i))  # the one that is not level i
        weights = np.full(2, -np.expm1(start - end))
        slope = half * (end - start) / (nodes[other] - start)
        weights[other], weights[1 - other] = slope, weights[1 - other] - slope
    else:
        weights = lagrange_integrals(nodes, start, end, lambda u: np.exp(u - end))
    return levels.signal[i + 1] * weights
