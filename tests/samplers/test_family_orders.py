"""Every process x every target x every sampler without noise converges at its order.

The exact denoiser of a mixture is given as a network of each target, at the target's own scale. One
program for each target walks all processes and samplers, whose levels and weights are arguments.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import mixture as mixtures
from ddpm_jax.diffusion.chain import continuous_chain
from ddpm_jax.diffusion.interpolants import INTERPOLANTS
from ddpm_jax.diffusion.learned_levels import initial_levels, learned
from ddpm_jax.diffusion.parameterization import MU, PARAMETERIZATIONS
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import single_levels
from ddpm_jax.samplers import linear
from ddpm_jax.samplers.linear import LinearState, levels_at
from ddpm_jax.samplers.loop import Sampler, advance, begin
from ddpm_jax.samplers.registry import SAMPLERS
from ddpm_jax.samplers.spacing import space

STEPS = (40, 80, 160)
ROWS, HISTORY = 320, 12  # as many as any of these samplers has
METHODS = {  # -> order, as in docs/samplers.md
    "ddim": 1,
    "euler": 1,
    "heun": 2,
    "dpm2": 2,
    "edm": 2,
    "runge_kutta": 2,
    "lms": 2,
    "plms": 2,
    "pndm": 2,
    "dpmpp_2m": 2,
    "unipc": 3,
}
OPTIONS = {"lms": {"order": 2}}
# process -> the levels that are walked: of one that is learned, those even in its own time
PROCESSES = dict.fromkeys(("chain", *INTERPOLANTS), "karras") | {"vdm": "linspace"}
SIGMA_MIN, SIGMA_MAX = 0.02, 8.0


def make_chain(oracle, name):
    if name == "chain":
        return oracle.chain
    of = learned(trained_levels()) if name == "vdm" else INTERPOLANTS[name]
    return continuous_chain(of, 1000, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)


def trained_levels():
    """Return parameters of a γ that bends, as training could have made it; its ends are wider."""
    levels = initial_levels(2 * np.log(SIGMA_MIN) - 1, 2 * np.log(SIGMA_MAX) + 1)
    levels = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), levels)
    weights = levels["interior"]["l3"]
    weights["kernel"] = weights["kernel"] + 3 * np.linspace(-1, 2, weights["kernel"].size)
    return levels


def network_of(parameterization, mixture):
    """Return a network that knows the mixture; it is given λ as its time."""

    def network(given, half_log_snr):
        levels, rows = single_levels(half_log_snr, half_log_snr), jnp.arange(len(given))
        x = given / parameterization.network_input(levels, jnp.ones_like(given), rows)
        best = mixtures.optimal(
            mixture, x, levels.sqrt_alphas_bar, levels.sqrt_one_minus_alphas_bar
        )
        return parameterization.target(levels, x, rows, best.x_0, best.eps)

    return network


def padded(table, width=None):
    """Repeat the last row up to ROWS, and add columns of zeros up to `width`."""
    table = np.concatenate([table, np.repeat(table[-1:], ROWS - len(table), axis=0)])
    return table if width is None else np.pad(table, ((0, 0), (0, width - table.shape[1])))


def empty(x):
    return LinearState(x, *(jnp.zeros((HISTORY, *x.shape), x.dtype) for _ in range(2)))


@functools.partial(jax.jit, static_argnames="process")
def walk(schedule, rows, count, x_T, mixture, *, process):
    network = network_of(process.parameterization, mixture)
    denoiser = process.denoiser(network, schedule, clip="none")
    sampler = Sampler(schedule, rows, empty, linear.step, evaluations=0, draws=0)
    return advance(denoiser, sampler, begin(sampler, x_T), None, 0, count).state.x_t


def error(oracle, process, name, spacing, steps):
    """Return the largest error at the first level; clean data would hide the last step."""
    chain, (x_T, _) = process.chain, oracle.start(8)
    times = space(chain, spacing, steps)
    sampler = SAMPLERS[name](chain, times, **OPTIONS.get(name, {}), dtype=np.float64)
    schedule = sampler.schedule._replace(timesteps=sampler.schedule.half_log_snr)
    weights = sampler.rows.weights
    columns = {of: padded(getattr(weights, of), HISTORY + 1) for of in ("x_0", "eps")}
    weights = weights._replace(x=padded(weights.x), z=None, **columns)
    rows = sampler.rows._replace(level=padded(sampler.rows.level), weights=weights)
    found = walk(
        jax.tree.map(padded, schedule),
        rows,
        sampler.num_rows - 1,
        np.float64(x_T),
        oracle.mixture(np.float64),
        process=process._replace(chain=oracle.chain),  # whose levels are in the schedule
    )
    levels = levels_at(chain, times)
    *_, end = oracle.flow(np.float64(x_T) / levels.signal[0], levels.sigma[[0, -2]])
    return np.abs(found - levels.signal[-2] * end).max()


@pytest.mark.full
@pytest.mark.parametrize("target", [t for t, of in PARAMETERIZATIONS.items() if of is not MU])
def test_every_process_and_sampler_converges_at_its_order(oracle, target):
    with jax.enable_x64(True):
        for name, spacing in PROCESSES.items():
            process = make_process(make_chain(oracle, name), target)
            for method, order in METHODS.items():
                errors = [error(oracle, process, method, spacing, steps) for steps in STEPS]
                found = -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]
                # The next term of the error expansion shows at these N. An order is 1 away.
                assert found == pytest.approx(order, abs=0.25), (name, method, errors)
