"""The process as it was trained, in float64, from which any choice of its noise levels is cut.

The levels may lie on its T steps or between them.

A table of such levels is a `Schedule`; which levels a sampler wants is in `samplers.spacing`. A
process trained at real times is a `ContinuousChain`; a chain of T steps continued to real t as a
smooth function, which an adaptive solver needs, is in `flow`.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.interpolants import Interpolant, Method, tabled
from ddpm_jax.diffusion.schedules import (
    Schedule,
    check_betas,
    check_num_timesteps,
    half_log_snr,
    make_schedule,
    schedule_from_lambdas,
    step_variance,
)
from ddpm_jax.errors import UsageError

# σ of levels in continuous time: float64 tells ᾱ = 1/(1+σ²) from 1 there, float32 from 0
LEAST_SIGMA, MOST_SIGMA = 1e-8, 1e18


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """The T steps of a process and the scale of the network's times.

    σ = √((1-ᾱ)/ᾱ) is the noise level relative to data of unchanged scale.

    Between two steps log σ is linear in t, as in Karras et al. 2022's reading of discrete models
    (their code rounds).
    """

    betas: np.ndarray  # float64 [T], of `make_betas`
    time_scale: float = 1.0  # the network's time is t times this

    def __post_init__(self) -> None:
        """Refuse invalid betas: a name, say, or numbers outside (0, 1]."""
        if isinstance(self.betas, str):
            raise UsageError(
                f"A Chain is made of betas and not of a name: Chain(make_betas({self.betas!r}, "
                "1000)), with the number of timesteps."
            )
        object.__setattr__(self, "betas", np.asarray(self.betas, np.float64))
        check_betas(self.betas)

    @staticmethod
    def from_sigmas(
        sigmas: Sequence[float] | np.ndarray, network_times: np.ndarray | None = None
    ) -> "ContinuousChain":
        """Return the process with these noise levels, and with those between them.

        Args:
          sigmas: σ, the noise relative to data of unchanged scale, [T], positive, strictly rising.
          network_times: what the network is given at each, [T]; None for their numbers 0..T-1.

        Raises:
          UsageError: fewer than two levels, or levels that do not rise, or are not finite.
        """
        try:
            sigmas = np.asarray(sigmas, np.float64)
        except (TypeError, ValueError):
            raise UsageError(
                f"The sigmas of a chain are a list of numbers, not {sigmas!s:.40}: give at "
                "least two positive ones that rise."
            ) from None
        times = np.arange(sigmas.size) if network_times is None else np.asarray(network_times)
        _check_table(sigmas, times)
        return continuous_chain(tabled(sigmas, times), sigmas.size)

    @property
    def num_timesteps(self) -> int:
        """T; times run over 0..T-1, real ones too."""
        return len(self.betas)

    @property
    def has_levels_between(self) -> bool:
        """Return whether the network was trained between the T levels too."""
        return False

    @property
    def method(self) -> Method | None:
        """Return how samples are made where nothing is said; None: by every sampler's defaults."""
        return None

    def network_times(self, times: np.ndarray) -> np.ndarray:
        """Return what the network is given at real times in 0..T-1."""
        return np.asarray(times) * self.time_scale

    @property
    def log_sigmas(self) -> np.ndarray:
        """log σ at every t, float64 [T], increasing; at the end inf where no signal is left."""
        return -half_log_snr(self.betas)

    def at(self, timesteps: np.ndarray | None = None, *, dtype=np.float32) -> Schedule:
        """Return the tables of the chain that keeps only `timesteps`.

        They are int or float [N], increasing, in 0..T-1; None for all.
        """
        if timesteps is not None and np.array_equal(timesteps, np.arange(self.num_timesteps)):
            timesteps = None  # the tables as trained, to the last digit
        return make_schedule(
            self.betas, timesteps=timesteps, time_scale=self.time_scale, dtype=dtype
        )

    def times_from_sigmas(self, sigmas: np.ndarray) -> np.ndarray:
        """Return the real t at which the noise is σ, float64 of the shape of `sigmas`.

        Beyond the ends of the chain it is the end.
        """
        return np.interp(np.log(sigmas), self.log_sigmas, np.arange(self.num_timesteps))

    def nearest_steps(self, sigmas: np.ndarray) -> np.ndarray:
        """Return the t in 0..T-1 whose σ is nearest, int64 of the shape of `sigmas`.

        So EDM's samplers round levels for a network trained on T steps (Karras et al. 2022, table
        1, "iDDPM"). In the middle between two it is the noisier.

        Raises:
          UsageError: a process whose network was trained between its levels too.
        """
        if self.has_levels_between:
            raise UsageError(
                "A process in continuous time has no trained steps to round to: leave rounded out."
            )
        levels = np.exp(self.log_sigmas)
        middles = (levels[1:] + levels[:-1]) / 2
        return np.searchsorted(middles, np.asarray(sigmas, np.float64), side="right")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class GivenLevels(Chain):
    """A chain of which N levels are given one by one: samplers walk it like any other.

    Its times are the numbers of the levels, 0..N-1, least noise first; the time that the
    network gets and the noise at each are independent of each other.
    """

    network_times: np.ndarray  # [N], in 0..T-1, before `time_scale`
    half_log_snr: np.ndarray  # λ, float64 [N], strictly falling
    # λ of the levels one stride below and above each, [N], for samplers that step by the stride
    # and not to the next level; None where there is no stride.
    below: np.ndarray | None = None
    above: np.ndarray | None = None
    start_scale: float = 1.0  # of standard normal noise where a chain starts from it alone

    @property
    def num_timesteps(self) -> int:
        """N."""
        return len(self.half_log_snr)

    @property
    def log_sigmas(self) -> np.ndarray:
        """log σ of every level, [N], increasing."""
        return -self.half_log_snr

    def at(self, timesteps: np.ndarray | None = None, *, dtype=np.float32) -> Schedule:
        """Return the tables of the levels with these numbers; None for all."""
        kept = slice(None) if timesteps is None else np.asarray(timesteps, np.int64)
        return make_schedule(
            self.betas,
            timesteps=self.network_times[kept],
            lambdas=self.half_log_snr[kept],
            time_scale=self.time_scale,
            dtype=dtype,
        )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ContinuousChain(Chain):
    """A process trained at every noise level between two ends; made by `continuous_chain`.

    T of its levels have numbers, 0..T-1, as if it were a chain of T steps, and real times lie
    between them: so samplers, bounds and editing walk it. The levels are exact functions of them.
    """

    interpolant: Interpolant
    ends: tuple[float, float]  # least and most noise, τ of the interpolant, before the shift
    shift: float = 1.0  # σ is so many times the interpolant's

    @property
    def has_levels_between(self) -> bool:
        """Return True."""
        return True

    @property
    def method(self) -> Method:
        """Return that of the interpolant."""
        return self.interpolant.method

    @functools.cached_property
    def log_sigmas(self) -> np.ndarray:
        """log σ of every numbered level, [T], increasing; at the end perhaps inf."""
        return self.log_sigmas_at(np.arange(self.num_timesteps, dtype=np.float64))

    def log_sigmas_at(self, times: Any) -> Any:
        """Return log σ at real times in 0..T-1, a NumPy or a JAX array."""
        interpolant, last = self.interpolant, self.num_timesteps - 1
        time = interpolant.spaced(times / last, self.ends)
        return interpolant.log_sigma(time) + math.log(self.shift)

    def angles_at(self, times: Any) -> Any:
        """Return θ = atan σ at real times: x_t is cos θ x_0 + sin θ ε. Finite and smooth."""
        time = self.interpolant.spaced(times / (self.num_timesteps - 1), self.ends)
        a, s = self.interpolant.coefficients(time)
        return (jnp if isinstance(times, jax.Array) else np).arctan2(self.shift * s, a)

    def network_times_of(self, log_sigmas: Any) -> Any:
        """Return what the network is given at log σ, a NumPy or a JAX array."""
        return self.interpolant.network_time(log_sigmas) * self.time_scale

    def network_times(self, times: np.ndarray) -> np.ndarray:
        """Return what the network is given at real times in 0..T-1."""
        return self.network_times_of(self.log_sigmas_at(np.asarray(times, np.float64)))

    def at(self, timesteps: np.ndarray | None = None, *, dtype=np.float32) -> Schedule:
        """Return the tables of the levels at real times [N], increasing; None for all T."""
        every = np.arange(self.num_timesteps) if timesteps is None else timesteps
        log_sigmas = self.log_sigmas_at(np.asarray(every, np.float64))
        return schedule_from_lambdas(-log_sigmas, self.network_times_of(log_sigmas), dtype=dtype)

    def times_from_sigmas(self, sigmas: np.ndarray) -> np.ndarray:
        """Return the real t at which the noise is σ; beyond the ends of the chain, the end."""
        time = self.interpolant.time(np.log(sigmas) - math.log(self.shift))
        last = self.num_timesteps - 1
        return np.clip(last * self.interpolant.fraction(time, self.ends), 0, last)


def _check_table(sigmas: np.ndarray, times: np.ndarray) -> None:
    """Refuse levels and network times that are none: see `Chain.from_sigmas`."""
    fault = ""
    if sigmas.ndim != 1 or sigmas.size < 2:
        fault = f"have the shape {sigmas.shape}"
    elif not np.all(good := (sigmas > 0) & (sigmas < np.inf)):
        fault = f"have {sigmas[~good][0]:g} at index {np.argmin(good)}"
    elif not np.all(rises := np.diff(sigmas) > 0):
        at = np.argmin(rises)
        fault = f"go from {sigmas[at]:g} to {sigmas[at + 1]:g} at index {at}"
    elif times.shape != sigmas.shape or not np.issubdtype(times.dtype, np.number):
        fault = f"are {sigmas.size}, with network times of shape {times.shape} and {times.dtype}"
    if fault:
        raise UsageError(
            f"The sigmas of a chain {fault}: give at least two positive ones that rise, and a time "
            "for each, a number."
        )


def continuous_chain(
    interpolant: Interpolant,
    num_timesteps: int,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    shift: float = 1.0,
    time_scale: float = 1.0,
) -> ContinuousChain:
    """Return a process in continuous time with T numbered levels.

    Args:
      interpolant: of `interpolants.INTERPOLANTS`, or `interpolants.tabled`.
      num_timesteps: T, at least 2.
      sigma_min: the least noise, σ, before the shift; None for the interpolant's.
      sigma_max: the most, perhaps infinite; likewise.
      shift: every σ is so many times the interpolant's: more noise for larger images, whose
        neighbouring pixels are alike (Hoogeboom et al. 2023; Esser et al. 2024, eq. 23: in a flow,
        τ' = shift τ / (1 + (shift - 1) τ)).
      time_scale: the network's time is the interpolant's times this.

    Raises:
      UsageError: no interpolant, too few timesteps, or ends or a shift that mean nothing.
    """
    if not isinstance(interpolant, Interpolant):
        raise UsageError(
            f"An interpolant is needed, not {interpolant!r}: give INTERPOLANTS['edm'], say, of "
            "ddpm_jax.diffusion.interpolants."
        )
    check_num_timesteps(num_timesteps)
    _check_number("The shift of the noise levels", shift)
    low, high = interpolant.ends
    own = low or float(interpolant.spaced(1 / num_timesteps, (low, high))), high
    own_sigmas = np.exp(interpolant.log_sigma(np.array(own)))
    check_ends(sigma_min, sigma_max, *own_sigmas.tolist())
    ends = tuple(
        end if sigma is None else float(interpolant.time(np.log(np.float64(sigma))))
        for sigma, end in zip((sigma_min, sigma_max), own, strict=True)
    )
    last = num_timesteps - 1
    fractions = np.arange(num_timesteps) / last
    lambdas = -interpolant.log_sigma(interpolant.spaced(fractions, ends)) - math.log(shift)
    betas = step_variance(lambdas, np.append(np.inf, lambdas[:-1]))
    _check_steps(np.exp(-lambdas), betas, shift)
    return ContinuousChain(
        betas=betas,
        time_scale=time_scale,
        interpolant=interpolant,
        ends=ends,
        shift=shift,
    )


def check_ends(
    sigma_min: float | None, sigma_max: float | None, own_min: float, own_max: float
) -> None:
    """Refuse ends of the noise levels that are none; None for the process's own.

    Raises:
      UsageError: no numbers, beyond `LEAST_SIGMA` and `MOST_SIGMA`, or not rising.
    """
    if sigma_min is not None:
        _check_number("sigma_min", sigma_min)
    if sigma_max is not None:
        _check_number("sigma_max", sigma_max, infinite=math.isinf(own_max))
    first, last = (
        own if given is None else float(given)
        for given, own in ((sigma_min, own_min), (sigma_max, own_max))
    )
    if not first < last:
        from_text, to_text = (
            f"{own:.4g} (the process's own)" if given is None else f"{given:g}"
            for given, own in ((sigma_min, own_min), (sigma_max, own_max))
        )
        raise UsageError(
            f"The noise levels run from sigma {from_text} to {to_text}: the first must be below "
            "the second."
        )


def _check_number(what: str, value: Any, *, infinite: bool = False) -> None:
    """Refuse what is no number from `LEAST_SIGMA` to `MOST_SIGMA`, perhaps infinite."""
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (LEAST_SIGMA <= number <= MOST_SIGMA or (infinite and number == math.inf)):
        raise UsageError(
            f"{what} is {value!r}: choose a number from {LEAST_SIGMA:g} to {MOST_SIGMA:g}."
        )


def _check_steps(sigmas: np.ndarray, betas: np.ndarray, shift: float) -> None:
    """Refuse levels, σ and β of each [T], beyond what float64 tells apart."""
    shifted = f" with a shift of {shift:g}" if shift != 1 else ""
    finite = sigmas[:-1] if np.isinf(sigmas[-1]) else sigmas
    rounding = 1 + 1e-6
    if not (sigmas[0] > LEAST_SIGMA / rounding and finite[-1] < MOST_SIGMA * rounding):
        raise UsageError(
            f"The noise levels{shifted} run from sigma {sigmas[0]:.4g} to {finite[-1]:.4g}: they "
            f"must lie in {LEAST_SIGMA:g} to {MOST_SIGMA:g}."
        )
    good = (betas > 0) & (betas < 1)
    good[-1] |= betas[-1] == 1
    if np.all(good):
        return
    at = int(np.argmin(good))
    before = f"sigma {sigmas[at - 1]:.4g}" if at else "clean data"
    raise UsageError(
        f"The step from {before} to sigma {sigmas[at]:.4g}, of {len(sigmas)} noise levels"
        f"{shifted}, {'leaves no signal' if betas[at] > 0.5 else 'is none'} in float64: choose "
        "other ends, or another number of timesteps."
    )


def check_chain(chain: Any) -> None:
    """Refuse anything but a `Chain`, a `Schedule` for example.

    Raises:
      UsageError: see above.
    """
    if not isinstance(chain, Chain):
        raise UsageError(
            f"A Chain is needed, all T steps that the network was trained on, not a "
            f"{type(chain).__name__}: make one by Chain(make_betas('linear', 1000)); a Schedule is "
            "a table that chain.at(times) cuts from it."
        )
