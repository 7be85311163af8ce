"""The process as it was trained, in float64: any choice of its noise levels, on or between its T
steps, is cut from it.

A table of such levels is a `Schedule`; which levels a sampler wants is in `samplers.spacing`. The
process continued to real t as a smooth function, which an adaptive solver needs, is in `flow`.
"""

from typing import NamedTuple

import numpy as np

from ddpm_jax.diffusion.schedules import Schedule, half_log_snr, make_schedule


class Chain(NamedTuple):
    """T steps and what the network is told of them. σ = √((1-ᾱ)/ᾱ), the noise beside data of
    unchanged scale.

    Between two steps log σ is linear in t, as in Karras et al. 2022's reading of discrete models
    (their code rounds).
    """

    betas: np.ndarray  # float64 [T], of `make_betas`
    time_scale: float = 1.0  # the network is told t times this

    @property
    def num_timesteps(self) -> int:
        """T; times run over 0..T-1, real ones too."""
        return len(self.betas)

    @property
    def log_sigmas(self) -> np.ndarray:
        """log σ at every t, float64 [T], increasing; inf at the end of a chain that destroys the
        signal."""
        return -half_log_snr(self.betas)

    def at(self, timesteps: np.ndarray | None = None, *, dtype=np.float32) -> Schedule:
        """The tables of the chain that keeps only `timesteps`, int or float [N], increasing, in
        0..T-1; None: all."""
        if timesteps is not None and np.array_equal(timesteps, np.arange(self.num_timesteps)):
            timesteps = None  # the tables as trained, to the last digit
        return make_schedule(
            self.betas, timesteps=timesteps, time_scale=self.time_scale, dtype=dtype
        )

    def times_of(self, sigmas: np.ndarray) -> np.ndarray:
        """The real t at which the noise is σ, float64 of the shape of `sigmas`; beyond the ends,
        the end."""
        return np.interp(np.log(sigmas), self.log_sigmas, np.arange(self.num_timesteps))
