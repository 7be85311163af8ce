"""Which N of the chain's noise levels a sampler visits: SPACINGS, functions (chain, N) -> times.

Times are float64 or int64 [N], increasing, in 0..T-1: `Chain.at` makes their table. The last step
of every sampler leads from the first of them to clean data. Integer times are steps that the
network was trained on; the spacings in σ = √((1-ᾱ)/ᾱ) lie between them.

Of the integer ones, `linspace` keeps both ends; `leading` and `trailing` are those of Lin et al.
2024, table 2.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.schedules import spaced_timesteps
from ddpm_jax.errors import UsageError, choose

KARRAS_RHO = 7.0  # Karras et al. 2022, table 1


def linspace(chain: Chain, steps: int) -> np.ndarray:
    """Evenly spread over 0..T-1, both ends kept (Nichol & Dhariwal 2021, section 4)."""
    return spaced_timesteps(chain.num_timesteps, steps)


def leading(chain: Chain, steps: int) -> np.ndarray:
    """0, k, 2k, ... with k = ⌊T/N⌋ (Song et al. 2020, the code of DDIM). Leaves out t = T-1: noise
    enters too early."""
    return np.arange(steps) * (chain.num_timesteps // steps)


def trailing(chain: Chain, steps: int) -> np.ndarray:
    """T-1, T-1-k, T-1-2k, ... with k = T/N, rounded (Lin et al. 2024, section 3.3)."""
    return (
        np.sort(np.round(chain.num_timesteps * (1 - np.arange(steps) / steps)).astype(np.int64)) - 1
    )


def quadratic(chain: Chain, steps: int) -> np.ndarray:
    """⌊c i²⌋ with c such that the last is T-1 (Song et al. 2020, appendix D.2): dense where there
    is little noise.

    Where two would fall on the same step, the later ones move up by what it takes.
    """
    if steps == 1:
        return np.array([chain.num_timesteps - 1])
    times = np.floor((chain.num_timesteps - 1) * np.linspace(0, 1, steps) ** 2).astype(np.int64)
    order = np.arange(steps)
    return np.maximum.accumulate(times - order) + order


def karras(chain: Chain, steps: int) -> np.ndarray:
    """σ^(1/7) linear from the noise of t = 0 to that of t = T-1 (Karras et al. 2022, eq. 5)."""
    low, high = np.exp(_ends(chain)) ** (1 / KARRAS_RHO)
    return _of_sigmas(chain, np.linspace(high, low, steps)[::-1] ** KARRAS_RHO)


def exponential(chain: Chain, steps: int) -> np.ndarray:
    """log σ linear from the noise of t = 0 to that of t = T-1; the log-SNR is -2 log σ, so it is
    linear as well."""
    low, high = _ends(chain)
    return _of_sigmas(chain, np.exp(np.linspace(high, low, steps)[::-1]))


SPACINGS: dict[str, Callable[[Chain, int], np.ndarray]] = {
    "linspace": linspace,
    "leading": leading,
    "trailing": trailing,
    "quadratic": quadratic,
    "karras": karras,
    "exponential": exponential,
    "logsnr": exponential,  # the name by which users of DPM-Solver know it
}


def space(chain: Chain, spacing: str | Sequence[float], steps: int) -> np.ndarray:
    """The times of a chain of N steps.

    Args:
      chain: the process.
      spacing: a key of `SPACINGS`, or the times themselves in either order.
      steps: N, 1..T; for a list, its length.

    Returns:
      [N], increasing, in 0..T-1. One step starts at T-1, `leading`'s at 0.

    Raises:
      UsageError: an unknown spacing; N outside 1..T; times that repeat or lie outside the chain; a
        spacing in σ for a chain whose noise has no end.
    """
    last = chain.num_timesteps - 1
    if not isinstance(spacing, str):
        times = np.sort(np.asarray(spacing))
        if times.size == 0:
            raise UsageError("The list of timesteps is empty: give at least one.")
        if times.ndim != 1 or len(times) != steps:
            raise UsageError(
                f"steps is {steps}, but the list of timesteps has {times.size}: leave out the one."
            )
        # NaN is none of these
        if not (np.all(np.diff(times) > 0) and times[0] >= 0 and times[-1] <= last):
            raise UsageError(f"The timesteps {list(spacing)} must differ and lie in 0..{last}.")
        return times
    make = choose("spacing", spacing, SPACINGS)
    if not 1 <= steps <= last + 1:
        raise UsageError(
            f"steps is {steps}: the chain has {last + 1} timesteps, so choose 1 to {last + 1}."
        )
    return make(chain, steps)


def _ends(chain: Chain) -> np.ndarray:
    ends = chain.log_sigmas[[0, -1]]
    if not np.isfinite(ends[1]):
        raise UsageError(
            "This schedule ends at alphas_bar = 0, where sigma has no end to space by: choose the "
            "spacing linspace, trailing or quadratic."
        )
    return ends


def _of_sigmas(chain: Chain, sigmas: np.ndarray) -> np.ndarray:
    """Times of increasing σ. The last is T-1 and of two or more the first is 0, exactly."""
    times = chain.times_of(sigmas)
    times[0] = 0
    times[-1] = chain.num_timesteps - 1
    return times
