"""The sampler and the levels of a model of few steps, from its config."""

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.interpolants import Method
from ddpm_jax.errors import UsageError
from ddpm_jax.samplers.consistency import few_levels
from ddpm_jax.samplers.spacing import trailing, trailing_from


def num_rounds(config: ConfigDict) -> int:
    """Return the rounds of progressive distillation, 1 for every other run."""
    c = config.distill
    return c.rounds if c.evaluations and c.method == "progressive" else 1


def own_method(config: ConfigDict, chain: Chain) -> Method | None:
    """Return how samples are made where nothing is said; None: by every sampler's defaults.

    Raises:
      UsageError: a distilled model whose levels the process does not have.
    """
    if config.distill.evaluations:
        return student_methods(config, chain)[-1]
    if steps := config.mean_flow.evaluations:
        return Method("mean_flow", steps, tuple(trailing(chain, steps).tolist()))
    return chain.method


def student_methods(config: ConfigDict, chain: Chain) -> list[Method]:
    """Return the ways to sample from a distilled model, that of most evaluations last.

    A model of consistency tuning leads to clean data from every level, so fewer evaluations than it
    was made for will do; one of progressive distillation has its own steps alone.

    Raises:
      UsageError: levels that the process does not have.
    """
    c = config.distill
    if c.method == "progressive":
        levels = halving_levels(config, chain)[2**c.rounds - 1 :: 2**c.rounds]
        return [Method("ddim", c.evaluations, tuple(levels.tolist()))]
    every = [
        few_levels(chain, steps, first=c.sigma_max, last=c.sigma_last)
        for steps in range(1, c.evaluations + 1)
    ]
    return [Method("consistency", len(times), tuple(times.tolist())) for times in every]


def halving_levels(config: ConfigDict, chain: Chain) -> np.ndarray:
    """Return the levels of the first teacher of progressive distillation, [N 2^R], rising.

    N are the evaluations of the last student, R the rounds.

    Raises:
      UsageError: the process does not have so many.
    """
    c = config.distill
    steps = c.evaluations << c.rounds
    times = trailing_from(chain, steps, c.sigma_max)
    if times[0] < 0 or np.any(np.diff(times) <= 0):
        raise UsageError(
            f"distill.rounds is {c.rounds}, so the first teacher takes {steps} steps, and the "
            f"process has fewer levels below sigma {c.sigma_max:g}: choose fewer rounds, or more "
            "noise in distill.sigma_max."
        )
    return times
