"""The noise levels that a config names, and those that a model has learned."""

import math

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.diffusion.chain import Chain, check_ends, continuous_chain
from ddpm_jax.diffusion.interpolants import INTERPOLANTS
from ddpm_jax.diffusion.learned_levels import (
    FIRST,
    LAST,
    Levels,
    gamma_ends,
    initial_levels,
    learned,
)
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.errors import UsageError

RESCALED_TIME = 1000.0  # the time at t = T under rescale_timesteps (Improved DDPM's code)
NEAREST = 1.001  # least quotient of the ends of learned levels before training


def make_chain(config: ConfigDict) -> Chain:
    """Return the noise levels that the config names; before training, if they are learned.

    Raises:
      UsageError: fields that make none.
    """
    c = config.diffusion
    if has_learned_levels(config):
        return learned_chain(config, first_levels(config))
    if c.process != "chain":
        return continuous_chain(
            INTERPOLANTS[c.process],
            c.num_timesteps,
            sigma_min=c.sigma_min,
            sigma_max=c.sigma_max,
            shift=c.shift,
            time_scale=RESCALED_TIME if c.rescale_timesteps else 1.0,
        )
    betas = make_betas(
        c.schedule,
        c.num_timesteps,
        beta_start=c.beta_start,
        beta_end=c.beta_end,
        scale_betas=c.scale_betas,
        zero_terminal_snr=c.zero_terminal_snr,
    )
    return Chain(betas, time_scale=RESCALED_TIME / c.num_timesteps if c.rescale_timesteps else 1.0)


def has_learned_levels(config: ConfigDict) -> bool:
    """Return whether the noise levels are among the parameters."""
    return config.diffusion.process == "vdm"


def first_levels(config: ConfigDict) -> Levels:
    """Return the parameters of the levels before training.

    Raises:
      UsageError: ends that are none.
    """
    return initial_levels(*_first_ends(config))


def learned_chain(config: ConfigDict, levels: Levels) -> Chain:
    """Return the process in continuous time of learned levels, T of which have a number."""
    first, last = _first_ends(config)
    ends = (math.exp(float(np.asarray(end)) / 2) for end in gamma_ends(levels))
    sigma_min, sigma_max = ends
    return continuous_chain(
        learned(levels, first=first, last=last),
        config.diffusion.num_timesteps,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
    )


def _first_ends(config: ConfigDict) -> tuple[float, float]:
    """Return γ = 2 log σ of the least and the most noise before training."""
    c = config.diffusion
    first = FIRST if c.sigma_min is None else 2 * math.log(c.sigma_min)
    last = LAST if c.sigma_max is None else 2 * math.log(c.sigma_max)
    sigmas = math.exp(first / 2), math.exp(last / 2)
    check_ends(c.sigma_min, c.sigma_max, *sigmas)
    if sigmas[1] < NEAREST * sigmas[0]:
        raise UsageError(
            f"The noise levels run from sigma {sigmas[0]:g} to {sigmas[1]:g}, and learned ones "
            f"need more room: the second must be {NEAREST} times the first or more."
        )
    return first, last
