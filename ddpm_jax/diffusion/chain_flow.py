"""The probability flow of a chain or of a process in continuous time, of a network or a mixture.

A process in continuous time has it exactly. With θ = atan σ, the variance-preserving x_t is cos θ
x_0 + sin θ ε, and so

    dx/dθ = cos θ ε - sin θ x_0 = v,    dx/dt = θ'(t) v

(Salimans & Ho 2022, appendix D): finite from clean data to pure noise, whatever the process. A
chain of T steps is continued to real t by `flow`.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.chain import Chain, ContinuousChain
from ddpm_jax.diffusion.denoiser import Network
from ddpm_jax.diffusion.flow import (
    ContinuousSchedule,
    Flow,
    make_continuous,
    mixture_eps,
    network_eps,
    predicted,
    probability_flow,
)
from ddpm_jax.diffusion.gaussian import over
from ddpm_jax.diffusion.mixture import GaussianMixture, optimal
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.schedules import Schedule, single_levels
from ddpm_jax.errors import UsageError

# (x [B, *D], levels of B rows) -> E[x_0|x], E[ε|x]
Predict = Callable[[chex.Array, Schedule], tuple[chex.Array, chex.Array]]


def continued(chain: Chain) -> ContinuousSchedule:
    """Return a chain of T steps in continuous time.

    Raises:
      UsageError: it ends at alphas_bar = 0.
    """
    precise = chain.at(dtype=np.float64)
    return make_continuous(precise, time_scale=chain.time_scale, dtype=np.float32)


def flow_of_networks(process: Process, *, start: float = 0.0) -> Callable[[Network], Flow]:
    """Return network -> its flow from `start` to T-1, nothing clipped.

    Args:
      process: what it reverses.
      start: the time of the data, in [0, T-1) of a process in continuous time, else see
        `probability_flow`.

    Raises:
      UsageError: a chain of T steps that ends at alphas_bar = 0, or a start outside the process.
    """
    chain, parameterization = process.chain, process.parameterization
    if isinstance(chain, ContinuousChain):
        _check_start(chain, start)

        def flow(network: Network) -> Flow:
            return interpolant_flow(
                lambda x, levels: predicted(network, parameterization, levels, x),
                chain,
                start=start,
            )

        return flow
    continuous = continued(chain)
    probability_flow(lambda x, t: x, continuous, start=start)  # refuses a wrong start
    return lambda network: probability_flow(
        network_eps(network, continuous, parameterization=parameterization),
        continuous,
        start=start,
    )


def flow_of_mixture(mixture: GaussianMixture, chain: Chain, *, start: float = 0.0) -> Flow:
    """Return the flow of data that is a mixture of Gaussians; arguments as `flow_of_networks`."""
    if not isinstance(chain, ContinuousChain):
        continuous = make_continuous(chain.at(), time_scale=chain.time_scale)
        return probability_flow(mixture_eps(mixture, continuous), continuous, start=start)
    _check_start(chain, start)

    def predict(x: chex.Array, levels: Schedule) -> tuple[chex.Array, chex.Array]:
        best = optimal(mixture, x, levels.sqrt_alphas_bar, levels.sqrt_one_minus_alphas_bar)
        return best.x_0, best.eps

    return interpolant_flow(predict, chain, start=start)


def interpolant_flow(predict: Predict, chain: ContinuousChain, *, start: float = 0.0) -> Flow:
    """dx/dt = θ'(t) (cos θ ε - sin θ x_0), from `start` to T-1: see the module."""

    def velocity(x: chex.Array, t: chex.Array) -> chex.Array:
        angle, rate = jax.jvp(chain.angles_at, (t,), (jnp.ones_like(t),))
        log_sigma = chain.log_sigmas_at(t)
        x_0, eps = predict(x, single_levels(-log_sigma, chain.network_times_of(log_sigma)))
        a, s, rate = (over(of, x) for of in (jnp.cos(angle), jnp.sin(angle), rate))
        return rate * (a * eps - s * x_0)

    return Flow(velocity, float(start), float(chain.num_timesteps - 1))


def _check_start(chain: ContinuousChain, start: float) -> None:
    end = chain.num_timesteps - 1
    if not 0 <= start < end:
        raise UsageError(
            f"The flow cannot start at t = {start}: choose a time from 0, below {end}; 0 is usual."
        )
