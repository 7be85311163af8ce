"""DPM-Solver++ (Lu et al. 2022b): the linear part of the flow exact, x_0 interpolated.

With λ = log(√ᾱ / √(1-ᾱ)) and h = λ' - λ, and a prime for the next level, the solution of the flow
from one level to the next is (eq. 8 of the paper; with noise, its solvers for diffusion SDEs)

    x' = √(1-ᾱ')/√(1-ᾱ) e^(-ηh) x + √ᾱ' ∫ (1+η) e^(-(1+η)(λ'-u)) x_0(u) du + √(1-ᾱ') √(1 - e^(-2ηh))
    z

η = 0 is the probability flow, η = 1 the reverse diffusion; every η has the same marginals (Karras
et al. 2022, eq. 6, with the amount of Langevin noise constant in λ). Methods differ in what
replaces x_0(u): one prediction gives DDIM.

The last step leads to λ = ∞: it is x_0 as last predicted.
"""

from collections.abc import Callable

import numpy as np

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.errors import UsageError
from ddpm_jax.samplers.adams import lagrange_integrals
from ddpm_jax.samplers.linear import Weights, linear_sampler, visited
from ddpm_jax.samplers.loop import Sampler


def dpmpp_2m(chain: Chain, times: np.ndarray, *, dtype=np.float32) -> Sampler:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2), of second order.

    `times` [N]; `dtype` is that of the tables.
    """
    return _solver(chain, times, second_order, columns=2, eta=0.0, dtype=dtype)


def dpmpp_3m(chain: Chain, times: np.ndarray, *, dtype=np.float32) -> Sampler:
    """DPM-Solver++ with a parabola through three predictions.

    Third order after its start: see `third_order`.
    """
    return _solver(chain, times, third_order, columns=3, eta=0.0, dtype=dtype)


def dpmpp_2m_sde(chain: Chain, times: np.ndarray, *, eta: float = 1.0, dtype=np.float32) -> Sampler:
    """SDE-DPM-Solver++(2M) of the same paper.

    `eta` is the amount of noise, not negative; 0 is `dpmpp_2m`.
    """
    return _solver(chain, times, second_order, columns=2, eta=eta, dtype=dtype)


def dpmpp_3m_sde(chain: Chain, times: np.ndarray, *, eta: float = 1.0, dtype=np.float32) -> Sampler:
    """SDE-DPM-Solver++ with three predictions, Crowson's `dpmpp_3m_sde`.

    `eta` as in `dpmpp_2m_sde`; 0 is `dpmpp_3m`.
    """
    return _solver(chain, times, third_order, columns=3, eta=eta, dtype=dtype)


def second_order(half_log_snr: np.ndarray, i: int, rate: float) -> np.ndarray:
    """(1 - e^(-(1+η)h)) (x_0[i] + (x_0[i] - x_0[i-1]) / 2r), r = h[i-1] / h[i].

    Lu et al. 2022b, algorithm 2.

    Args:
      half_log_snr: λ of the levels.
      i: the step, from level i to the next.
      rate: 1 + η.

    Returns:
      The weights of the known x_0, the newest first: [2], and [1] at the first step.
    """
    step = half_log_snr[i + 1] - half_log_snr[i]
    whole = -np.expm1(-rate * step)
    if i == 0:
        return np.array([whole])
    # Extrapolated to the middle of the step by the slope between the two levels.
    r = (half_log_snr[i] - half_log_snr[i - 1]) / step
    return whole * np.array([1 + 0.5 / r, -0.5 / r])


def third_order(half_log_snr: np.ndarray, i: int, rate: float) -> np.ndarray:
    """The integral of the parabola through three x_0, at the second step of a line.

    Arguments as for `second_order`.

    The code of the paper, k-diffusion and diffusers give the second difference half its weight (the
    second derivative is twice what they divide by r_0 + r_1), which makes a method of second order.
    The second step is `second_order`, as theirs.
    """
    if i < 2:
        return second_order(half_log_snr, i, rate)
    end = half_log_snr[i + 1]
    known = half_log_snr[i - 2 : i + 1][::-1]
    return lagrange_integrals(
        known, half_log_snr[i], end, lambda u: rate * np.exp(-rate * (end - u))
    )


def _solver(
    chain: Chain,
    times: np.ndarray,
    x_0_weights: Callable[[np.ndarray, int, float], np.ndarray],
    *,
    columns: int,
    eta: float,
    dtype,
) -> Sampler:
    if not 0 <= eta < np.inf:
        raise UsageError(
            f"eta is {eta}: choose 0 (no noise), 1 (the reverse diffusion) or another number above "
            "0."
        )
    schedule, levels = visited(chain, times, dtype)
    steps = levels.steps[:-1]  # all but the last, which is infinite
    # Column j is the x_0 of j rows ago; the methods give fewer at the start.
    x_0 = np.zeros((len(steps) + 1, columns))
    for i in range(len(steps)):
        weights = x_0_weights(levels.half_log_snr, i, 1 + eta)
        x_0[i, : len(weights)] = levels.signal[i + 1] * weights
    # To λ = ∞ the linear part vanishes, the integral is the newest x_0, and no noise is left.
    x_0[-1, 0] = 1
    weights = Weights(
        x=np.append(levels.noise[1:-1] / levels.noise[:-2] * np.exp(-eta * steps), 0),
        x_0=x_0,
        eps=np.zeros((len(x_0), 0)),
        z=np.append(levels.noise[1:-1] * np.sqrt(-np.expm1(-2 * eta * steps)), 0),
    )
    return linear_sampler(schedule, weights)
