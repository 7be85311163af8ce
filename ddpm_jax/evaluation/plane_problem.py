"""The error of a sampler at a number of network evaluations, on data whose diffusion is known.

The data are a mixture of Gaussians in the plane and the denoiser is exact, so that all error is
that of the sampler. Two measures: for every sampler the energy distance between its samples and the
data; for a deterministic one also the distance of each point from the end of the probability flow
from the same noise. On a trained model the measure is the Frechet distance (`frechet`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import cdist

from ddpm_jax import randomness
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.chain_flow import flow_of_mixture
from ddpm_jax.diffusion.mixture import GaussianMixture, exact_denoiser, make_mixture
from ddpm_jax.diffusion.mixture import sample as draw
from ddpm_jax.evaluation.flow_density import Solver, decode
from ddpm_jax.randomness import base_key
from ddpm_jax.samplers.loop import Sampler, sample
from ddpm_jax.samplers.registry import make_sampler

SOLVER = Solver(rtol=1e-6, atol=1e-6)  # of the flow that deterministic samplers are compared with


class Errors(NamedTuple):
    """The errors of one sampler at one number of steps."""

    energy: float  # √ of the energy distance to the data's distribution, in the units of x
    flow: float | None  # RMSE to the probability flow; None for a sampler with noise


def plane_mixture() -> GaussianMixture:
    """Return the data: three Gaussians of unequal weight and width within [-1, 1]²."""
    return make_mixture(
        [0.5, 0.3, 0.2], [[-0.6, -0.4], [0.6, -0.2], [0.1, 0.7]], [0.01, 0.03, 0.005]
    )


def sampler_within(
    name: str, chain: Chain, *, evaluations: int, spacing: str
) -> tuple[int, Sampler] | None:
    """Return (steps, sampler) with as many steps as `evaluations` allow; None for fewer than one.

    Raises:
      UsageError: what `make_sampler` raises.
    """
    for steps in range(min(evaluations, chain.num_timesteps), 0, -1):
        sampler = make_sampler(name, chain, steps=steps, spacing=spacing)
        if sampler.evaluations <= evaluations:
            return steps, sampler
    return None


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Return √(2 E|X-Y| - E|X-X'| - E|Y-Y'|) (Szekely & Rizzo 2013), 0 for equal distributions.

    Args:
      x: [n, D], n >= 2.
      y: [m, D], m >= 2.

    Returns:
      The root of the unbiased estimate of the square; 0 where that estimate is negative.
    """

    def within(z: np.ndarray) -> float:
        return float(cdist(z, z).sum() / (len(z) * (len(z) - 1)))

    return float(np.sqrt(max(2 * float(cdist(x, y).mean()) - within(x) - within(y), 0.0)))


class PlaneProblem:
    """N starting points in the plane, the ends of the flow from them, and N draws of the data."""

    def __init__(self, chain: Chain, *, num_samples: int, seed: int):
        self.chain, self.mixture = chain, plane_mixture()
        key = base_key(seed)
        self._keys, self._others, of_data, of_floor = (
            randomness.image_keys(key, jnp.arange(i * num_samples, (i + 1) * num_samples))
            for i in range(4)
        )
        self._x_T = randomness.initial_noise(self._keys, (2,))
        self._data = np.asarray(draw(self.mixture, of_data))
        self._floor = np.asarray(draw(self.mixture, of_floor))
        self._end = self._flow_end()

    def _flow_end(self) -> np.ndarray:
        """Follow the flow to t = 0, and return the x_0 predicted there, as every sampler does."""
        schedule = self.chain.at()
        flow = flow_of_mixture(self.mixture, self.chain)
        x_t = jax.jit(lambda x_T: decode(flow, x_T, solver=SOLVER))(self._x_T)
        return np.asarray(exact_denoiser(self.mixture, schedule)(x_t, jnp.zeros(len(x_t), int)).x_0)

    def floor(self) -> float:
        """Return the energy distance of as many exact draws: the part due to chance."""
        return energy_distance(self._floor, self._data)

    def errors(self, sampler: Sampler) -> Errors:
        """Run the sampler from the starting points, twice, with different noise in its steps."""
        denoiser = exact_denoiser(self.mixture, sampler.schedule, variance="fixed_small")
        run = jax.jit(lambda keys: sample(denoiser, sampler, self._x_T, keys).x_0)
        x_0, again = np.asarray(run(self._keys)), np.asarray(run(self._others))
        deterministic = np.array_equal(x_0, again)
        flow = float(np.sqrt(np.mean(np.square(x_0 - self._end)))) if deterministic else None
        return Errors(energy_distance(x_0, self._data), flow)
