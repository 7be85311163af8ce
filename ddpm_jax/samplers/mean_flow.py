"""Sampling by a mean velocity: exact from level to level, in one step or in several."""

import numpy as np

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.samplers.ddim import ddim
from ddpm_jax.samplers.loop import Sampler

CLEAN = 0.0  # a flow's time of clean data, where the last step leads


def mean_flow(chain: Chain, times: np.ndarray, *, dtype=np.float32) -> Sampler:
    """z_r = z_t - (t - r) u(z_t, r, t) (Geng et al. 2025, Mean Flows, algorithm 2).

    With x_0 = z_t - t u and ε = z_t + (1-t) u that is DDIM's step, (1-r) x_0 + r ε. So it is
    `euler`, but the network is given two times, that of z_t and that of the level the step leads
    to: the rows of `timesteps` are pairs, [N, 2].

    Args:
      chain: the process, a flow.
      times: the levels to visit, [N].
      dtype: of the tables.
    """
    sampler = ddim(chain, times, dtype=dtype)
    at = sampler.schedule.timesteps
    pairs = np.stack([at, np.append(np.asarray(CLEAN, at.dtype), at[:-1])], axis=1)
    return sampler._replace(schedule=sampler.schedule._replace(timesteps=pairs))
