"""The variational bound of a perfect prediction, on a line, summed in float64.

On average over the data it exceeds the entropy by Σ_t E KL(q(x_{t-1}|x_t) || p(x_{t-1}|x_t)) and
nothing else. Expanding log q(x_{t-1}) about x_t gives q(x_{t-1}|x_t) the variance β (1 + β (1 +
(log q)'')) and the third cumulant β³ (log q)''' to leading order in β, so that a Gaussian of the
right mean costs, in nats,

    of variance β                ¼ β² E[(1 + (log q)'')²]         Σ_t ∝ 1/T for β ∝ 1/T
    of the right variance        1/12 β³ E[(log q)''']²           Σ_t ∝ 1/T²
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import mixture as mixtures
from ddpm_jax.diffusion.chain import Chain, continuous_chain
from ddpm_jax.diffusion.gaussian import q_sample
from ddpm_jax.diffusion.interpolants import INTERPOLANTS
from ddpm_jax.diffusion.likelihood import bound_term, prior_term
from ddpm_jax.diffusion.schedules import make_schedule, spaced_timesteps

pytestmark = pytest.mark.full

FULL = 900  # steps of the finest chain; shorter ones visit the same noise levels
STEPS = (30, 100, 300, 900)
# Of mean 0 and variance 1.01, so that N(0, 1) is q(x_T) to 1e-7
MEANS, WEIGHTS, VARIANCES = np.array([[-0.9], [0.9]]), [0.5, 0.5], [0.2, 0.2]
BETAS = np.full(FULL, 0.01)


@pytest.fixture(scope="module")
def line():
    with jax.enable_x64(True):
        yield mixtures.make_mixture(WEIGHTS, MEANS, VARIANCES, dtype=np.float64)


def make_chain(steps, process="chain"):
    """The levels of a chain, or of a process in continuous time between the same ends."""
    if process == "chain":
        return make_schedule(BETAS, timesteps=spaced_timesteps(FULL, steps), dtype=np.float64)
    least, most = np.exp(Chain(BETAS).log_sigmas[[0, -1]])
    chain = continuous_chain(INTERPOLANTS[process], FULL, sigma_min=least, sigma_max=most)
    return chain.at(np.linspace(0, FULL - 1, steps), dtype=np.float64)


def nodes(line):
    """Return x_0 and ε on a grid, with the weight q(x_0) N(ε) of each pair.

    The trapezoid rule is exact to 1e-9 here.
    """
    x_0, eps = np.linspace(-3.6, 3.6, 91), np.linspace(-6, 6, 61)
    of_x_0 = np.exp(np.asarray(mixtures.log_prob(line, x_0[:, None]))) * (x_0[1] - x_0[0])
    of_eps = np.exp(-0.5 * eps**2) / np.sqrt(2 * np.pi) * (eps[1] - eps[0])
    return (
        np.repeat(x_0, len(eps))[:, None],
        np.tile(eps, len(x_0))[:, None],
        np.outer(of_x_0, of_eps).ravel(),
    )


def mean_bound(line, steps, variance, process):
    """Return E[L_T + Σ L_t + L_0] in nats.

    The decoder is a density, of the exact variance; that of `bound_term` is of 8 bits.
    """
    chain = make_chain(steps, process)
    x_0, eps, weight = nodes(line)
    denoiser = mixtures.exact_denoiser(line, chain, variance=variance)
    decode = mixtures.exact_denoiser(line, chain)

    def term(t):
        t = jnp.full(len(x_0), t)
        x_t = q_sample(chain, x_0, t, eps)
        return weight @ bound_term(chain, denoiser(x_t, t), x_0, x_t, t)

    first = jnp.zeros(len(x_0), int)
    p = decode(q_sample(chain, x_0, first, eps), first)
    decoder = (
        0.5
        * ((x_0 - p.mean) ** 2 / jnp.exp(p.log_variance) + p.log_variance + np.log(2 * np.pi))[:, 0]
    )
    divergences = jax.jit(lambda: jax.lax.map(term, jnp.arange(1, steps)))().sum() * np.log(2)
    return float(weight @ prior_term(chain, x_0) * np.log(2) + divergences + weight @ decoder)


def entropy(line):
    x, _, weight = nodes(line)
    return float(-weight @ mixtures.log_prob(line, x))


def predicted(line, steps, process):
    """The two sums of the file's docstring over the chain, by derivatives of log q on a grid."""
    chain = make_chain(steps, process)
    x = np.linspace(-7, 7, 1001)

    def term(t):
        levels = chain.sqrt_alphas_bar, chain.sqrt_one_minus_alphas_bar
        q_t = mixtures.diffused(line, *(jnp.asarray(level)[t] for level in levels))

        def log_q(x):
            return mixtures.log_prob(q_t, x[None, None])[0]

        weight = jnp.exp(jax.vmap(log_q)(x)) * (x[1] - x[0])
        second, third = (
            jax.vmap(jax.grad(jax.grad(log_q)))(x),
            jax.vmap(jax.grad(jax.grad(jax.grad(log_q))))(x),
        )
        beta = jnp.asarray(chain.betas)[t]
        return jnp.stack(
            [beta**2 / 4 * (weight @ (1 + second) ** 2), beta**3 / 12 * (weight @ third**2)]
        )

    large, matched = jax.jit(lambda: jax.lax.map(term, jnp.arange(steps)))().T
    # The decoder, t = 0, is moment-matched in both.
    return {"fixed_large": float(large[1:].sum()), "moment_matched": float(matched.sum())}


@pytest.mark.slow
@pytest.mark.parametrize("process", ["chain", "edm", "flow"])
@pytest.mark.parametrize(("variance", "order"), [("fixed_large", 1), ("moment_matched", 2)])
def test_the_bound_is_above_the_entropy_and_tightens_at_the_order_and_by_the_amount_of_theory(
    line, variance, order, process
):
    bounds = [mean_bound(line, steps, variance, process) for steps in STEPS]
    gaps = np.array(bounds) - entropy(line)
    assert np.all(gaps > 0)
    assert np.all(np.diff(gaps) < 0)
    ratios = gaps / [predicted(line, steps, process)[variance] for steps in STEPS]
    # The next order is a factor 1 + c/T: it falls to a third from T to 3T, and what is then left of
    # it is c / 1800.
    np.testing.assert_allclose((3 * ratios[-1] - ratios[-2]) / 2, 1, atol=0.025)
    # The decoder's share does not fall with T, since the least noise stays: 1 % of the last gap at
    # order 1, 9 % at 2.
    slopes = -np.diff(np.log(gaps)) / np.diff(np.log(STEPS))
    assert slopes[-1] == pytest.approx(order, abs=0.05 if order == 1 else 0.25)
