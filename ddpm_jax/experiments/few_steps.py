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


def own_method(
    config: ConfigDict, chain: Chain, *, sampler: str | None = None, steps: int | None = None
) -> Method | None:
    """Return how samples are made where nothing else is said; None: by every sampler's defaults.

    Args:
      config: of the model.
      chain: its process.
      sampler: if one is named. By another than its own a model of few steps is sampled like any of
        its process, but at its own levels if it has learned no others.
      steps: if their number is given. A model of consistency tuning leads to clean data from every
        level and a mean flow between any two, so any number will do; one of progressive
        distillation has its own steps alone.

    Raises:
      UsageError: a distilled model whose levels the process does not have; of progressive
        distillation, another number of steps.
    """
    c = config.distill
    if c.evaluations and c.method == "progressive":
        times = halving_levels(config, chain)[2**c.rounds - 1 :: 2**c.rounds].tolist()
        if steps not in (None, c.evaluations):
            raise UsageError(
                f"steps is {steps}, but this model of progressive distillation has learned the "
                f"{c.evaluations} timesteps {','.join(f'{time:g}' for time in times)} alone: leave "
                "steps out, or give a spacing too."
            )
        return Method("ddim", c.evaluations, tuple(times))
    if c.evaluations and sampler in (None, "consistency"):
        steps = steps or c.evaluations
        times = few_levels(chain, steps, first=c.sigma_max, last=c.sigma_last)
        return Method("consistency", steps, tuple(times.tolist()))
    if config.mean_flow.evaluations and sampler in (None, "mean_flow"):
        if steps is not None:
            return Method("mean_flow", steps, "trailing")
        steps = config.mean_flow.evaluations
        return Method("mean_flow", steps, tuple(trailing(chain, steps).tolist()))
    return chain.method


def student_methods(config: ConfigDict, chain: Chain) -> list[Method]:
    """Return the ways to sample from a distilled model that are compared, most evaluations last.

    A model of consistency tuning is compared by fewer evaluations too, the powers of two.

    Raises:
      UsageError: levels that the process does not have.
    """
    most = config.distill.evaluations
    of_any = config.distill.method == "consistency"
    fewer = [1 << n for n in range((most - 1).bit_length())] if of_any else []
    return [own_method(config, chain, steps=steps) for steps in (*fewer, most)]


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
