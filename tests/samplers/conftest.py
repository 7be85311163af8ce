"""Data whose probability flow is known: two Gaussians in the plane. NumPy says ε and SciPy solves the flow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.mixture import exact_denoiser, make_mixture
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.samplers.linear import levels_of
from ddpm_jax.samplers.loop import Sampler, sample
from ddpm_jax.samplers.randomness import image_keys, initial_noise


@functools.partial(jax.jit, static_argnames=("init", "step", "wrap", "num_frames"))
def run(rows, schedule, mixture, x_T, keys, *, init, step, wrap=lambda denoiser: denoiser, num_frames=0):
    """The chain with everything but its code as data: the cache shows whether another sampler is another program."""
    denoiser = wrap(exact_denoiser(mixture, schedule, variance="fixed_small"))
    return sample(denoiser, Sampler(schedule, rows, init, step, evaluations=0), x_T, keys, num_frames=num_frames)


@functools.partial(jax.jit, static_argnames="step")
def run_from(rows, schedule, mixture, state, keys, *, step):
    """The chain from a state with a history."""
    denoiser = exact_denoiser(mixture, schedule, variance="fixed_small")
    return sample(denoiser, Sampler(schedule, rows, lambda _: state, step, evaluations=0), state.x_t, keys).x_0


class Oracle:
    """The mixture, its exact flow, and ways to run a sampler on it. σ of the chain: 0.02 to 8."""

    weights = np.array([0.4, 0.6])
    means = np.array([[-0.8, 0.3], [0.6, -0.2]])
    variances = np.array([0.15, 0.3])
    chain = Chain(make_betas("linear", 200, beta_start=5e-4, beta_end=0.04))

    def start(self, count, seed=0):
        """x_T [count, 2] and keys."""
        keys = image_keys(jax.random.key(seed), jnp.arange(count))
        return initial_noise(keys, (2,)), keys

    def eps(self, x_bar, sigma):
        """E[ε|x̄] = -σ ∇ log p(x̄) of the mixture blurred by σ; x̄ [B, 2]."""
        blurred = self.variances + sigma**2
        away = x_bar[:, None] - self.means
        log_joint = np.log(self.weights / blurred) - (away**2).sum(-1) / (2 * blurred)
        joint = np.exp(log_joint - log_joint.max(axis=1, keepdims=True))
        share = joint / joint.sum(axis=1, keepdims=True)
        return sigma * np.sum((share / blurred)[..., None] * away, axis=1)

    def x_0(self, x_bar, sigma):
        return x_bar - sigma * self.eps(x_bar, sigma)

    def flow(self, x_bar, sigmas):
        """The solution of dx̄/dσ = ε at every one of the falling sigmas, [len(sigmas), B, 2], from x̄ at the first."""
        return self._flow(np.asarray(x_bar, np.float64).tobytes(), tuple(sigmas))

    @functools.cache  # noqa: B019, lives as long as the session
    def _flow(self, x_bar, sigmas):
        solution = solve_ivp(
            lambda sigma, y: self.eps(y.reshape(-1, 2), sigma).ravel(),
            (sigmas[0], sigmas[-1]),
            np.frombuffer(x_bar),
            t_eval=sigmas,
            method="DOP853",
            rtol=1e-11,
            atol=1e-12,
        )
        return solution.y.T.reshape(len(sigmas), -1, 2)

    def mixture(self, dtype=np.float32):
        return make_mixture(self.weights, self.means, self.variances, dtype=dtype)

    def run(self, sampler, x_T, keys, *, rows=None, dtype=np.float32, mixture=None, **options):
        rows = sampler.rows if rows is None else rows
        mixture = self.mixture(dtype) if mixture is None else mixture
        x_T = jnp.asarray(x_T, dtype)
        return run(rows, sampler.schedule, mixture, x_T, keys, init=sampler.init, step=sampler.step, **options)

    def run_from(self, state, sampler, rows, keys):
        return run_from(rows, sampler.schedule, self.mixture(np.float64), state, keys, step=sampler.step)

    def start_levels(self, sampler):
        """(√ᾱ, σ) of the noisiest level of a sampler's table."""
        levels = levels_of(sampler.schedule)
        return levels.signal[0], levels.sigma[0]


@pytest.fixture(scope="session")
def oracle():
    return Oracle()


@pytest.fixture(scope="session")
def programs():
    """How many programs `Oracle.run` has been compiled to."""
    return run._cache_size
