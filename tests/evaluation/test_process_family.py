"""Every process has one likelihood: that of the data, whichever way noise is added to them.

The data are a mixture of Gaussians, whose density is known at every level. All processes here begin
at the first level of one chain, and end where q(x_T) is N(0, I) to 1e-4.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import mixture as mixtures
from ddpm_jax.diffusion.chain import Chain, continuous_chain
from ddpm_jax.diffusion.chain_flow import flow_of_mixture, flow_of_networks
from ddpm_jax.diffusion.interpolants import EDM, INTERPOLANTS
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import make_betas, single_levels
from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation import flow_density, traces

PLANE = mixtures.make_mixture(
    [0.2, 0.5, 0.3], [[-0.6, -0.4], [0.6, -0.2], [0.1, 0.7]], [0.01, 0.09, 0.0025]
)
DDPM = Chain(make_betas("cosine", 1000))
LEAST = math.exp(DDPM.log_sigmas[0])
TIGHT = flow_density.Solver(rtol=1e-6, atol=1e-6)


def make_chain(name):
    if name == "chain":
        return DDPM
    most = {"flow": None, "cosine": None}.get(name, 1e4)
    return continuous_chain(INTERPOLANTS[name], 1000, sigma_min=LEAST, sigma_max=most)


def start():
    signal = 1 / math.hypot(1, LEAST)
    return mixtures.diffused(PLANE, np.float32(signal), np.float32(LEAST * signal))


@functools.cache
def points():
    return mixtures.sample(start(), jax.random.split(jax.random.key(0), 6))


def bits(flow):
    """Return log2 p / D of the points by a flow."""
    probes = traces.basis_probes(jax.random.split(jax.random.key(1), 6), 1, (2,))
    found = jax.jit(lambda x, probes: flow_density.log_density(flow, x, probes, solver=TIGHT))(
        points(), probes
    )
    assert found.solved.all()
    return np.asarray(found.log_prob) / (2 * math.log(2))


def exact_bits():
    return np.asarray(mixtures.log_prob(start(), points())) / (2 * math.log(2))


@pytest.mark.full
@pytest.mark.parametrize(
    "name",
    ["flow", *(pytest.param(n, marks=pytest.mark.full) for n in ("edm", "ve", "vp", "cosine"))],
)
def test_the_flow_of_every_process_has_the_density_of_the_data(name):
    error = bits(flow_of_mixture(PLANE, make_chain(name))) - exact_bits()
    assert np.abs(error).max() < 1e-3
    assert np.abs(error).mean() < 3e-4


# What a network is given of the time -> log σ.
LEVEL_OF_TIME = {
    "chain": lambda time: jnp.interp(time, np.arange(1000.0), DDPM.log_sigmas),
    "edm": lambda time: 4 * time,
    "flow": lambda time: jnp.log(time) - jnp.log1p(-time),
}


def exact_network(name, parameterization):
    def network(given, time):
        levels, rows = single_levels(-LEVEL_OF_TIME[name](time), time), jnp.arange(len(time))
        x = given / parameterization.network_input(levels, jnp.ones_like(given), rows)
        best = mixtures.optimal(PLANE, x, levels.sqrt_alphas_bar, levels.sqrt_one_minus_alphas_bar)
        return parameterization.target(levels, x, rows, best.x_0, best.eps)

    return network


@pytest.mark.full
def test_ddpm_edm_and_a_flow_of_one_exact_denoiser_have_one_likelihood():
    """Each by a network of its own target, scale and time: within the error of the solver."""
    found = {}
    for name, target in (("chain", "eps"), ("edm", "edm"), ("flow", "velocity")):
        process = make_process(make_chain(name), target)
        network = exact_network(name, process.parameterization)
        found[name] = bits(flow_of_networks(process)(network))
    for name, of_process in found.items():
        np.testing.assert_allclose(of_process, exact_bits(), atol=1e-3, err_msg=name)


@pytest.mark.parametrize("time", [-0.5, 999])
def test_a_start_outside_the_process_is_refused(time):
    with pytest.raises(UsageError, match=f"cannot start at t = {time}"):
        flow_of_networks(make_process(continuous_chain(EDM, 1000), "edm"), start=time)
