"""Sampling by a consistency function: to the data in one evaluation, and again from fresh noise."""

import numpy as np

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.errors import UsageError
from ddpm_jax.samplers.linear import Weights, linear_sampler, visited
from ddpm_jax.samplers.loop import Sampler


def consistency(chain: Chain, times: np.ndarray, *, dtype=np.float32) -> Sampler:
    """x_{i+1} = √ᾱ' x_0 + √(1-ᾱ') z (Song et al. 2023, algorithm 1); no noise at the end.

    Of a model that was distilled into a consistency function. To another's prediction of x_0, the
    mean of all images that may be there, it adds the noise of the next level and not what is
    missing: its samples lack detail.

    Args:
      chain: the process.
      times: the levels to visit, [N]; the model is evaluated once at each.
      dtype: of the tables.
    """
    schedule, levels = visited(chain, times, dtype)
    after = levels.after
    weights = Weights(
        x=np.zeros(len(times)),
        x_0=after.signal[:, None],
        eps=np.zeros((len(times), 0)),
        z=after.noise,
    )
    return linear_sampler(schedule, weights)


def few_levels(chain: Chain, steps: int, *, first: float, last: float) -> np.ndarray:
    """Return the times of few levels, [N], increasing: from σ of `first` down to that of `last`.

    Their log σ are evenly spaced. Levels that the chain does not have are its ends.

    Args:
      chain: the process.
      steps: N; for one, `first` alone.
      first: σ where samples begin.
      last: σ of the last evaluation, below `first`.

    Raises:
      UsageError: levels that do not fall.
    """
    sigmas = np.geomspace(first, last, steps)[::-1]
    times = chain.times_from_sigmas(sigmas)
    if np.any(np.diff(times) <= 0):
        raise UsageError(
            f"Samples of {steps} evaluations from sigma {first:g} to {last:g} are of levels that "
            "the process does not have, or that do not fall: choose others."
        )
    return times
