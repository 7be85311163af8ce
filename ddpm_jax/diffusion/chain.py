"""The process as it was trained, in float64, from which any choice of its noise levels is cut.

The levels may lie on its T steps or between them.

A table of such levels is a `Schedule`; which levels a sampler wants is in `samplers.spacing`. The
process continued to real t as a smooth function, which an adaptive solver needs, is in `flow`.
"""

import dataclasses
from typing import Any

import numpy as np

from ddpm_jax.diffusion.schedules import Schedule, check_betas, half_log_snr, make_schedule
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

    @property
    def num_timesteps(self) -> int:
        """T; times run over 0..T-1, real ones too."""
        return len(self.betas)

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
