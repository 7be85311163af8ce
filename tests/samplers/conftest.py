"""Data with a known probability flow: two Gaussians in the plane.

NumPy computes ε and SciPy solves the flow.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.mixture import exact_denoiser, make_mixture
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.randomness import image_keys, initial_noise
from ddpm_jax.samplers.linear import LinearState, levels_from_schedule
from ddpm_jax.samplers.loop import Noise, Sampler, advance, begin, finish, sample
from ddpm_jax.samplers.registry import SAMPLERS
from ddpm_jax.samplers.spacing import space

STEPS = (40, 80, 160)  # of the tests of convergence
MOST_ROWS = 2 * STEPS[-1]  # of their samplers: two evaluations a step


@functools.partial(jax.jit, static_argnames=("init", "step", "wrap", "num_frames"))
def run(
    rows, schedule, mixture, x_T, keys, *, init, step, wrap=lambda denoiser: denoiser, num_frames=0
):
    """Run a chain with everything but its code as data.

    The cache of compiled programs shows whether another sampler is another program.
    """
    denoiser = wrap(exact_denoiser(mixture, schedule, variance="fixed_small"))
    return sample(
        denoiser,
        Sampler(schedule, rows, init, step, evaluations=0),
        x_T,
        keys,
        num_frames=num_frames,
    )


@functools.partial(jax.jit, static_argnames="step")
def run_between(rows, schedule, mixture, state, keys, first, last, *, step):
    """The rows first..last-1 of a chain from a state with a history; bounds are data too."""
    denoiser = exact_denoiser(mixture, schedule, variance="fixed_small")
    sampler = Sampler(schedule, rows, lambda _: state, step, evaluations=0)
    walk = begin(sampler, state.x_t)
    return finish(sampler, advance(denoiser, sampler, walk, keys, first, last)).x_0


def padded(table, length):
    """A pytree of [N, ...] arrays with the last row repeated up to `length`."""

    def pad(column):
        return np.pad(column, [(0, length - len(column)), *[(0, 0)] * (column.ndim - 1)], "edge")

    return jax.tree.map(lambda column: pad(np.asarray(column)), table)


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
        """Return the solution of dx̄/dσ = ε at each of the falling sigmas, [len(sigmas), B, 2].

        It starts from x̄ at the first.
        """
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
        return run(
            rows,
            sampler.schedule,
            mixture,
            x_T,
            keys,
            init=sampler.init,
            step=sampler.step,
            **options,
        )

    def errors(self, name, options, spacing, *, exact_history=0, change=lambda rows, sigma: rows):
        """Return the largest error at the level t = 0, for each of STEPS, in float64.

        Clean data would hide the last step.

        With `exact_history` the chain starts that many levels later, on the exact solution, with
        the exact predictions of the levels before. `change` makes other rows of a sampler's.
        """
        found = []
        with jax.enable_x64(True):
            x_T, keys = self.start(16)
            for steps in STEPS:
                times = space(self.chain, spacing, steps)
                sampler = SAMPLERS[name](self.chain, times, **options, dtype=np.float64)
                levels = levels_from_schedule(self.chain.at(times, dtype=np.float64))
                x_bar = self.flow(x_T / levels.signal[0], levels.sigma[:-1])
                state = jax.tree.map(np.asarray, sampler.init(x_T))
                if exact_history:
                    state = self.exact_state(state, x_bar, levels, exact_history)
                # tables of one length for all STEPS, so that these are one program
                x = run_between(
                    padded(change(sampler.rows, levels.sigma), MOST_ROWS),
                    padded(sampler.schedule, MOST_ROWS),
                    self.mixture(np.float64),
                    state,
                    keys,
                    exact_history,
                    sampler.num_rows - 1,
                    step=sampler.step,
                )
                found.append(np.abs(np.asarray(x) - levels.signal[-2] * x_bar[-1]).max())
        return np.array(found)

    def order(self, *args, **options):
        """The fitted slope of -log error against log N."""
        return -np.polyfit(np.log(STEPS), np.log(self.errors(*args, **options)), 1)[0]

    def exact_state(self, empty, x_bar, levels, i):
        """Return the state of a linear sampler at level i of the exact solution x̄ [N, B, 2].

        Its history is exact too.
        """
        histories = [
            np.array(
                [of(x_bar[j], levels.sigma[j]) for j in range(i - 1, -1, -1)][: len(kept)]
            ).reshape(kept.shape)
            for of, kept in ((self.x_0, empty.x_0), (self.eps, empty.eps))
        ]
        return LinearState(levels.signal[i] * x_bar[i], *histories)

    def start_levels(self, sampler):
        """(√ᾱ, σ) of the noisiest level of a sampler's table."""
        levels = levels_from_schedule(sampler.schedule)
        return levels.signal[0], levels.sigma[0]


@pytest.fixture(scope="session")
def oracle():
    return Oracle()


@pytest.fixture(scope="session")
def programs():
    """How many programs `Oracle.run` has been compiled to."""
    return run._cache_size


@functools.partial(jax.jit, static_argnames=("step", "prediction"))
def _walk_row(state, row, schedule, output, z, *, step, prediction):
    process = make_process(Oracle.chain, prediction, "fixed_small")  # of which only names are used
    denoiser = Denoiser(schedule, lambda *_: output, process.interpret)
    return step(denoiser, state, row, Noise(None, z))[0]


@pytest.fixture(scope="session")
def replay():
    """A walk with recorded outputs: (sampler, x_T, outputs [N, ...], prediction, noise [N, ...])."""

    def replay(sampler, x, outputs, prediction, noises=None):
        """Return x before every row and after the last, float32 [N+1, ...]."""
        state, xs = sampler.init(jnp.asarray(x, jnp.float32)), [np.asarray(x)]
        for i, output in enumerate(outputs):
            row = jax.tree.map(lambda table, i=i: table[i], sampler.rows)
            z = np.zeros_like(output)[None] if noises is None else noises[i][None]
            of = {"step": sampler.step, "prediction": prediction}
            state = _walk_row(state, row, sampler.schedule, output, z, **of)
            xs.append(np.asarray(state.x_t))
        return np.stack(xs)

    return replay
