"""The noise levels of diffusers' schedulers: `diffusers_levels`, a chain that our samplers walk.

A scheduler there is a method, which is one of our samplers, and its own choice of times, σ, first
and last level. What they choose differently from `spacing.space` (read in diffusers 0.42):

- LMS, Euler, Euler ancestral and Heun have real times for linspace, and σ linear between two steps;
  with linspace and trailing they start from z σ and not from z √(σ²+1);
- DPM-Solver++ and UniPC space N+1 times and leave out the least noisy, except for trailing;
- leading times are shifted by `steps_offset`;
- DDIM and PNDM step from t to t - ⌊T/N⌋ whatever the next time is; below 0 that is clean data, or
  the level of t = 0;
- σ spaced as Karras et al. have it lie between the ends of the chosen times, for DPM-Solver++ and
  UniPC between those of the whole chain; the times of the latter are rounded.
"""

import dataclasses

import numpy as np

from ddpm_jax.diffusion.chain import Chain, GivenLevels, check_chain
from ddpm_jax.diffusion.interpolants import KARRAS_RHO
from ddpm_jax.errors import UsageError, choose

IN_SIGMA = ("lms", "euler", "euler_ancestral", "heun")
MULTISTEP = ("dpmpp_2m", "dpmpp_2m_sde", "unipc")
STRIDING = ("ddim", "plms")
THEIRS = (*IN_SIGMA, *MULTISTEP, *STRIDING, "ancestral")  # samplers that are a scheduler there
TIMES = ("linspace", "leading", "trailing")
SIGMAS = ("karras", "exponential")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchedulerOptions:
    """The options of diffusers' schedulers that decide their levels, as the classes have them."""

    spacing: str | None = None  # of `TIMES`; None: `default_spacing`
    sigmas: str | None = None  # of `SIGMAS`, between the ends of the spacing; None: at its times
    steps_offset: int = 0  # added to the times of leading
    # whether the last step leads to clean data or to t = 0; None: DDIM's does, PNDM's does not
    set_alpha_to_one: bool | None = None


def default_spacing(sampler: str) -> str:
    """Return the spacing that the scheduler's class has where nothing is said."""
    return "linspace" if sampler in (*IN_SIGMA, *MULTISTEP) else "leading"


def scheduler_options(sampler: str, parameterization: str) -> dict[str, str]:
    """Return the options of a sampler with which it computes as the scheduler does.

    PNDM averages what the network predicts, ε or v, and the other methods ε or x_0.
    """
    return {"averages": "v"} if (sampler, parameterization) == ("plms", "v") else {}


def diffusers_levels(
    sampler: str,
    chain: Chain,
    steps: int,
    *,
    spacing: str | None = None,
    scheduler: SchedulerOptions,
) -> GivenLevels:
    """Return the N levels at which diffusers' scheduler evaluates the network.

    Args:
      sampler: one of `THEIRS`.
      chain: the process.
      steps: N.
      spacing: of `TIMES` or `SIGMAS`, in place of the scheduler's; None: the scheduler's.
      scheduler: its options.

    Returns:
      A chain whose times are 0..N-1, the numbers of the levels, least noise first.

    Raises:
      UsageError: a sampler or spacing that diffusers does not have, or steps out of range.
    """
    check_chain(chain)
    if chain.has_levels_between:
        raise UsageError(
            "diffusers' levels are those of its schedulers of chains, and this process is in "
            "continuous time: leave levels out."
        )
    if sampler not in THEIRS:
        raise UsageError(
            f"The sampler {sampler} has no levels of diffusers: choose one of {', '.join(THEIRS)}, "
            "or leave levels out."
        )
    if not np.isfinite(chain.log_sigmas[-1]) and sampler not in ("ddim", "ancestral"):
        raise UsageError(
            f"This chain ends at alphas_bar = 0, where diffusers' scheduler of {sampler} has no "
            "first level: choose ddim or ancestral, or leave levels out."
        )
    scheduler = _with_spacing(sampler, scheduler, spacing)
    named = scheduler.spacing or default_spacing(sampler)
    times = _times(sampler, chain.num_timesteps, steps, named, scheduler.steps_offset)
    whole = np.exp(chain.log_sigmas)
    sigmas = np.interp(times, np.arange(len(whole)), whole)
    if scheduler.sigmas:
        ends = (whole if sampler in MULTISTEP else sigmas)[[0, -1]]
        times, sigmas = _spaced_sigmas(sampler, chain, ends, scheduler.sigmas, steps)
    below = above = None
    if sampler in STRIDING:
        to_one = scheduler.set_alpha_to_one
        below, above = _strides(
            chain, times, steps, sampler == "ddim" if to_one is None else to_one
        )
    unscaled = sampler in IN_SIGMA and named != "leading"
    return GivenLevels(
        betas=chain.betas,
        time_scale=chain.time_scale,
        network_times=times,
        half_log_snr=-np.log(sigmas),
        below=below,
        above=above,
        start_scale=float(sigmas[-1] / np.hypot(sigmas[-1], 1)) if unscaled else 1.0,
    )


def _with_spacing(
    sampler: str, scheduler: SchedulerOptions, spacing: str | None
) -> SchedulerOptions:
    """Return the options with another spacing, if any; refuse σ that it does not have."""
    if spacing in SIGMAS:
        scheduler = dataclasses.replace(scheduler, sigmas=spacing)
    elif spacing is not None:
        choose("spacing of diffusers", spacing, dict.fromkeys(TIMES + SIGMAS))
        scheduler = dataclasses.replace(scheduler, spacing=spacing, sigmas=None)
    if scheduler.sigmas and (sampler == "euler_ancestral" or sampler not in IN_SIGMA + MULTISTEP):
        raise UsageError(
            f"diffusers' scheduler of the sampler {sampler} has no spacing {scheduler.sigmas}: "
            f"choose {', '.join(TIMES)}."
        )
    return scheduler


def _times(sampler: str, num_timesteps: int, steps: int, spacing: str, offset: int) -> np.ndarray:
    """Return the times that a spacing chooses, float64 [N], increasing."""
    dropped = int(sampler in MULTISTEP and spacing != "trailing")  # the least noisy, not walked
    count = steps + dropped
    if not 1 <= steps <= num_timesteps - dropped:
        raise UsageError(
            f"steps is {steps}: with diffusers' levels choose 1 to {num_timesteps - dropped}."
        )
    if spacing == "linspace":
        times = np.linspace(0, num_timesteps - 1, count)
        times = times if sampler in IN_SIGMA else np.round(times)
    elif spacing == "leading":
        times = np.arange(count) * (num_timesteps // count) + float(offset)
    else:
        # Their `arange` too; rounding may make it one longer than N.
        times = np.round(np.arange(num_timesteps, 0, -num_timesteps / steps))[:steps][::-1] - 1
    times = times[dropped:]
    if times[-1] > num_timesteps - 1:
        raise UsageError(
            f"steps is {steps}: with the spacing leading and steps_offset {offset} the chain would "
            f"start at t = {times[-1]:.0f}, beyond its {num_timesteps} timesteps; take fewer."
        )
    return times


def _spaced_sigmas(
    sampler: str, chain: Chain, ends: np.ndarray, kind: str, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the times and σ of N levels from ends[0] to ends[1], [N] each, increasing."""
    root = 1 / KARRAS_RHO
    if kind == "karras":
        sigmas = np.linspace(ends[1] ** root, ends[0] ** root, steps)[::-1] ** KARRAS_RHO
    else:
        sigmas = np.exp(np.linspace(*np.log(ends[::-1]), steps))[::-1]
    times = chain.times_from_sigmas(sigmas)
    if sampler in MULTISTEP:
        # Their table is one of integers; it rounds Karras's times, and cuts the others' fraction.
        times = np.round(times) if kind == "karras" else np.floor(times)
    return times, sigmas


def _strides(
    chain: Chain, times: np.ndarray, steps: int, to_one: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return λ of the levels ⌊T/N⌋ steps below and above each time, [N] each."""
    half_log_snr, times = -chain.log_sigmas, times.astype(np.int64)
    stride = chain.num_timesteps // steps
    end = np.inf if to_one else half_log_snr[0]
    below = np.where(times >= stride, half_log_snr[np.maximum(times - stride, 0)], end)
    return below, half_log_snr[np.minimum(times + stride, chain.num_timesteps - 1)]
