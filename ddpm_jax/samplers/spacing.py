"""Which N of the chain's noise levels a sampler visits: SPACINGS, functions (chain, N) -> times.

Those of RANGED may be kept to a range of σ, as in "karras:0.002,80".

Times are float64 or int64 [N], increasing, in 0..T-1: `Chain.at` makes their table. The last step
of every sampler leads from the first of them to clean data. Integer times are steps that the
network was trained on; the spacings in σ = √((1-ᾱ)/ᾱ) lie between them.

Of the integer ones, `linspace` keeps both ends; `leading` and `trailing` are those of Lin et al.
2024, table 2.
"""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from ddpm_jax.diffusion.chain import Chain, check_chain
from ddpm_jax.diffusion.interpolants import KARRAS_RHO
from ddpm_jax.diffusion.schedules import spaced_timesteps
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.numerals import number

# least and most σ, of which a spacing keeps what the chain has
SigmaRange = tuple[float, float]
WHOLE: SigmaRange = (0.0, math.inf)


def linspace(chain: Chain, steps: int, sigmas: SigmaRange = WHOLE) -> np.ndarray:
    """Evenly spaced over 0..T-1, both ends kept (Nichol & Dhariwal 2021, section 4).

    Rounded to the steps of a chain, not in continuous time: of the process `edm` the levels are
    those of Karras et al. 2022, eq. 5. In a range of σ it is over the steps with these σ, counted
    from the noisiest, which is their discretisation "iDDPM" (table 1).
    """
    if sigmas != WHOLE:
        return _linspace_within(chain, steps, sigmas)
    if chain.has_levels_between and steps > 1:
        return np.linspace(0, chain.num_timesteps - 1, steps)
    return spaced_timesteps(chain.num_timesteps, steps)


def _linspace_within(chain: Chain, steps: int, sigmas: SigmaRange) -> np.ndarray:
    low, high = np.log(np.maximum(sigmas, np.finfo(np.float64).tiny))
    if chain.has_levels_between:
        with np.errstate(divide="ignore", invalid="ignore"):  # at an infinite end
            ends = chain.times_from_sigmas(np.exp(_within(chain, sigmas)))
        return np.linspace(*ends, steps) if steps > 1 else ends[1:]
    kept = np.flatnonzero((low <= chain.log_sigmas) & (chain.log_sigmas <= high))
    if steps > len(kept):
        raise UsageError(
            f"steps is {steps}: the chain has {len(kept)} timesteps with sigma in {sigmas[0]:g} to "
            f"{sigmas[1]:g}, so choose at most so many."
        )
    return kept[::-1][spaced_timesteps(len(kept), steps)][::-1] if steps > 1 else kept[-1:]


def leading(chain: Chain, steps: int) -> np.ndarray:
    """0, k, 2k, ... with k = ⌊T/N⌋ (Song et al. 2020, the code of DDIM).

    It leaves out t = T-1, so the chain starts from the noise of a lower level.
    """
    return np.arange(steps) * (chain.num_timesteps // steps)


def trailing(chain: Chain, steps: int) -> np.ndarray:
    """T-1, T-1-k, T-1-2k, ... with k = T/N, rounded (Lin et al. 2024, section 3.3).

    Not rounded in continuous time: of a flow the levels are τ = 1, 1 - 1/N, ..., 1/N.
    """
    if chain.has_levels_between:
        return chain.num_timesteps * np.arange(1, steps + 1) / steps - 1
    return (
        np.sort(np.round(chain.num_timesteps * (1 - np.arange(steps) / steps)).astype(np.int64)) - 1
    )


def trailing_from(chain: Chain, steps: int, sigma: float) -> np.ndarray:
    """Return `trailing`, with its N levels even from σ down: t, t-k, t-2k, ... with k = (t+1)/N.

    Of M levels every second, counted from the noisiest, are those of M/2: the levels of a model
    whose number of steps is halved (Salimans & Ho 2022, algorithm 2). Rounded to the steps of a
    chain.

    Args:
      chain: the process.
      steps: N.
      sigma: where the walk begins; the noisiest level where that has less noise.

    Returns:
      [N], in 0..T-1, rising if there are as many levels.
    """
    last = chain.times_from_sigmas(np.array([sigma]))[0]
    times = (last + 1) * np.arange(1, steps + 1) / steps - 1
    return times if chain.has_levels_between else np.round(times)


def quadratic(chain: Chain, steps: int) -> np.ndarray:
    """⌊c i²⌋ with c such that the last is T-1 (Song et al. 2020, appendix D.2).

    The levels are dense where there is little noise.

    Where two would fall on the same step, the later ones move up until all differ.
    """
    if steps == 1:
        return np.array([chain.num_timesteps - 1])
    times = np.floor((chain.num_timesteps - 1) * np.linspace(0, 1, steps) ** 2).astype(np.int64)
    order = np.arange(steps)
    return np.maximum.accumulate(times - order) + order


def karras(chain: Chain, steps: int, sigmas: SigmaRange = WHOLE) -> np.ndarray:
    """σ^(1/7) linear from the noise of t = 0 to that of t = T-1 (Karras et al. 2022, eq. 5)."""
    low, high = np.exp(_ends(chain, sigmas)) ** (1 / KARRAS_RHO)
    return _times_of(chain, np.linspace(high, low, steps)[::-1] ** KARRAS_RHO, sigmas)


def exponential(chain: Chain, steps: int, sigmas: SigmaRange = WHOLE) -> np.ndarray:
    """log σ linear from the noise of t = 0 to that of t = T-1, and so the log-SNR, -2 log σ."""
    low, high = _ends(chain, sigmas)
    return _times_of(chain, np.exp(np.linspace(high, low, steps)[::-1]), sigmas)


def sections(chain: Chain, counts: Sequence[int]) -> np.ndarray:
    """Return times of equal parts of the chain, counts[0] in that of the least noise, and so on.

    The spacing of OpenAI's code for Improved DDPM and for guided diffusion, there called
    `timestep_respacing`. In each part the times are evenly spaced, both ends kept, and rounded; a
    single one is the first of its part.

    Args:
      chain: the process.
      counts: for each part; the parts differ by at most one step, the earlier ones being longer.

    Returns:
      int64 [sum(counts)], increasing.

    Raises:
      UsageError: a count that is negative or more than its part has steps, or nothing but zeros.
    """
    check_chain(chain)
    lengths = [len(part) for part in np.array_split(np.arange(chain.num_timesteps), len(counts))]
    times, start = [], 0
    for count, length in zip(counts, lengths, strict=True):
        if not 0 <= count <= length:
            raise UsageError(
                f"A section of {count} steps: {len(counts)} parts of {chain.num_timesteps} "
                f"timesteps have {length} each, so choose at most so many."
            )
        stride = (length - 1) / (count - 1) if count > 1 else 1
        # Summed and not multiplied, as in that code: where a time is rounded, a last digit counts.
        offsets = np.cumsum([0.0] + [stride] * (count - 1)) if count else np.zeros(0)
        times.append(start + np.round(offsets).astype(np.int64))
        start += length
    if not sum(counts):
        raise UsageError("The sections have no step at all: give at least one.")
    return np.concatenate(times)


SPACINGS: dict[str, Callable[[Chain, int], np.ndarray]] = {
    "linspace": linspace,
    "leading": leading,
    "trailing": trailing,
    "quadratic": quadratic,
    "karras": karras,
    "exponential": exponential,
    "logsnr": exponential,  # the name by which users of DPM-Solver know it
}


RANGED = ("linspace", "karras", "exponential", "logsnr")
SECTIONS = "sections:"  # before counts, which would otherwise look like a list of times


def steps_in(spacing: str | Sequence[float]) -> int | None:
    """Return the number of steps in a list of times or sections; None for other spacings.

    Raises:
      UsageError: sections that are not whole numbers.
    """
    if not isinstance(spacing, str):
        return len(spacing)
    return sum(_counts(spacing)) if spacing.startswith(SECTIONS) else None


def _counts(spacing: str) -> list[int]:
    try:
        return [int(count) for count in spacing.removeprefix(SECTIONS).split(",")]
    except ValueError:
        raise UsageError(
            f"The spacing {spacing!r} has no list of counts: give them as in {SECTIONS}10,10,20."
        ) from None


def space(chain: Chain, spacing: str | Sequence[float], steps: int | None = None) -> np.ndarray:
    """Return the times that a chain of N steps visits.

    Args:
      chain: the process.
      spacing: a key of `SPACINGS`; one of `RANGED` and a range of σ, as in "karras:0.002,80", of
        which it keeps what the chain has; the times themselves in either order; or
        "sections:10,10,20", see `sections`.
      steps: N, 1..T; None where the spacing determines it.

    Returns:
      [N], increasing, in 0..T-1. A single step starts at T-1, with `leading` at 0.

    Raises:
      UsageError: an unknown spacing; N outside 1..T; times that repeat or lie outside the chain; a
        spacing in σ for a chain that ends at an infinite σ.
    """
    check_chain(chain)
    last, given = chain.num_timesteps - 1, steps_in(spacing)
    if given is not None and steps not in (None, given):
        what = "sections have" if isinstance(spacing, str) else "list of timesteps has"
        raise UsageError(f"steps is {steps}, but the {what} {given}: leave out the one.")
    if not isinstance(spacing, str):
        times = np.sort(np.asarray(spacing))
        if times.size == 0:
            raise UsageError("The list of timesteps is empty: give at least one.")
        # NaN is none of these
        if not (
            times.ndim == 1 and np.all(np.diff(times) > 0) and times[0] >= 0 and times[-1] <= last
        ):
            raise UsageError(f"The timesteps {list(spacing)} must differ and lie in 0..{last}.")
        return times
    if given is not None:
        return sections(chain, _counts(spacing))
    make = _chosen(spacing)
    if steps is None:
        raise UsageError(f"steps is missing: the spacing {spacing} needs 1 to {last + 1} of them.")
    if not 1 <= steps <= last + 1:
        raise UsageError(
            f"steps is {steps}: the chain has {last + 1} timesteps, so choose 1 to {last + 1}."
        )
    return make(chain, steps)


def _chosen(spacing: str) -> Callable[[Chain, int], np.ndarray]:
    """Return the spacing of a name, which a range of σ may follow.

    Raises:
      UsageError: an unknown spacing, or a range that it cannot have.
    """
    name, colon, text = spacing.partition(":")
    if not (colon and name in SPACINGS):
        listed = not any(character.isalpha() for character in spacing)
        hint = f" A list is one of numbers, or of counts after {SECTIONS!r}." if listed else ""
        return choose("spacing", spacing, SPACINGS, hint=hint)
    least, _, most = text.partition(",")
    try:
        low = number(least, valid=lambda sigma: sigma >= 0)
        high = math.inf if most == "inf" else number(most)
    except ValueError:
        low, high = math.nan, math.nan
    if not low < high:
        raise UsageError(
            f"The spacing {spacing!r} has no range of sigma: give the least and the most, as in "
            "karras:0.002,80."
        )
    if name not in RANGED:
        raise UsageError(
            f"The spacing {name} is of all T timesteps and takes no range of sigma: "
            f"{', '.join(RANGED)} do."
        )
    return functools.partial(SPACINGS[name], sigmas=(low, high))


def _within(chain: Chain, sigmas: SigmaRange) -> np.ndarray:
    """Return log σ of the ends of what a chain has of a range, the second perhaps inf.

    Raises:
      UsageError: it has nothing of it.
    """
    ends = chain.log_sigmas[[0, -1]]
    if sigmas != WHOLE:
        low, high = sigmas
        ends = np.log([max(low, np.exp(ends[0])), min(high, np.exp(ends[1]))])
        if not ends[0] < ends[1]:
            raise UsageError(
                f"The range of sigma {low:g} to {high:g} has nothing of the chain's: choose one "
                "within its noise levels."
            )
    return ends


def _ends(chain: Chain, sigmas: SigmaRange) -> np.ndarray:
    """Return the ends of `_within`, both finite.

    Raises:
      UsageError: it has nothing of the range, or the second is infinite.
    """
    ends = _within(chain, sigmas)
    if not np.isfinite(ends[1]):
        raise UsageError(
            "This schedule ends at alphas_bar = 0, where sigma has no end to space by: choose the "
            "spacing linspace, trailing or quadratic, or an end, as in karras:0.002,80."
        )
    return ends


def _times_of(chain: Chain, levels: np.ndarray, sigmas: SigmaRange) -> np.ndarray:
    """Return the times of increasing σ; of all, the last exactly T-1 and the first of several 0."""
    times = chain.times_from_sigmas(levels)
    if sigmas == WHOLE:
        times[0] = 0
        times[-1] = chain.num_timesteps - 1
    return times
