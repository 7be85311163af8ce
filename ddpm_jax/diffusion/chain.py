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
    half_log_snr,
    make_schedule,
    schedule_from_lambdas,
    step_variance,
)
from ddpm_jax.errors import UsageError


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
        sigmas = np.asarray(sigmas, np.float64)
        times = np.arange(sigmas.size) if network_times is None else np.asarray(network_times)
        if not (
            sigmas.ndim == 1
            and sigmas.size > 1
            and sigmas[0] > 0
            and np.all(np.diff(sigmas) > 0)
            and np.isfinite(sigmas[-1])
            and times.shape == sigmas.shape
        ):
            raise UsageError(
                f"The sigmas of a chain are {sigmas.tolist()} with {times.size} times: give at "
                "least two positive ones that rise, and a time for each."
            )
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
      UsageError: too few timesteps, or ends or a shift that mean nothing.
    """
    if num_timesteps < 2:
        raise UsageError(f"num_timesteps is {num_timesteps}: a chain needs at least 2 timesteps.")
    if not 0 < shift < math.inf:
        raise UsageError(f"The shift of the noise levels is {shift}: choose a positive number.")
    low, high = interpolant.ends
    own = low or float(interpolant.spaced(1 / num_timesteps, (low, high))), high
    ends = tuple(
        end if sigma is None else float(interpolant.time(np.log(np.float64(sigma))))
        for sigma, end in zip((sigma_min, sigma_max), own, strict=True)
    )
    if not 0 <= ends[0] < ends[1]:
        raise UsageError(
            f"The noise levels run from sigma {sigma_min} to {sigma_max}: the first must be "
            "positive and below the second."
        )
    last = num_timesteps - 1
    fractions = np.arange(num_timesteps) / last
    lambdas = -interpolant.log_sigma(interpolant.spaced(fractions, ends)) - math.log(shift)
    return ContinuousChain(
        betas=step_variance(lambdas, np.append(np.inf, lambdas[:-1])),
        time_scale=time_scale,
        interpolant=interpolant,
        ends=ends,
        shift=shift,
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
