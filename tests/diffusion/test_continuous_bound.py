"""The bound as a function of the levels: its terms by the paper's equations, and what it is of an
exact denoiser.

Of an exact denoiser the diffusion term between two levels is what is lost of the information that
y = x + σ ε has about x: I(σ_0) - I(σ_1), I = h(y) - ½ log(2πe σ²) (Guo, Shamai & Verdú 2005).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import mixture as mixtures
from ddpm_jax.diffusion.continuous_bound import (
    continuous_weight,
    decoder_term,
    discrete_weight,
    prior_term,
)
from ddpm_jax.diffusion.learned_levels import gamma, gamma_and_rate, initial_levels

FIRST, LAST = -6.0, 4.0
LINE = ([0.3, 0.7], [[-0.5], [0.4]], [0.04, 0.09])
X, EPS = np.linspace(-2.5, 2.5, 201), np.linspace(-6, 6, 121)


@pytest.fixture(scope="module", autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def line():
    return mixtures.make_mixture(*LINE, dtype=np.float64)


def levels(seed):
    """Levels between the same ends, all but a line."""
    rng = np.random.default_rng(seed)
    made = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), initial_levels(FIRST, LAST))
    interior = jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape), made["interior"])
    interior["l3"]["kernel"] = interior["l3"]["kernel"] + 6 * np.sin(np.linspace(0, 9 + seed, 1024))
    return jax.tree.map(jnp.asarray, {**made, "interior": interior})


def squared_error(line, gammas):
    """E (ε - E[ε|z])² at each γ, by the trapezoid rule over x and ε."""
    x, eps = (grid.ravel() for grid in np.meshgrid(X, EPS, indexing="ij"))
    density = np.exp(mixtures.log_prob(line, X[:, None])) * (X[1] - X[0])
    normal = np.exp(-0.5 * EPS**2) / math.sqrt(2 * math.pi) * (EPS[1] - EPS[0])
    weight = np.outer(density, normal).ravel()

    def at(level):
        a, s = jnp.sqrt(jax.nn.sigmoid(-level)), jnp.sqrt(jax.nn.sigmoid(level))
        z = (a * x + s * eps)[:, None]
        best = mixtures.optimal(line, z, jnp.full(x.shape, a), jnp.full(x.shape, s))
        return weight @ jnp.square(best.eps[:, 0] - eps)

    return np.asarray(jax.jit(lambda g: jax.lax.map(at, g))(jnp.asarray(gammas)))


def information(line, level):
    """I(y; x) in nats at y = x + e^(γ/2) ε."""
    y = np.linspace(-60, 60, 240_001)
    q = mixtures.diffused(line, np.float64(1), np.exp(level / 2))
    log_q = np.asarray(mixtures.log_prob(q, y[:, None]))
    entropy = -np.sum(np.exp(log_q) * log_q) * (y[1] - y[0])
    return entropy - 0.5 * math.log(2 * math.pi * math.e) - level / 2


def continuous(line, levels):
    nodes, weights = np.polynomial.legendre.leggauss(120)
    at, rate = gamma_and_rate(levels, jnp.asarray((nodes + 1) / 2))
    return float(weights / 2 @ (continuous_weight(rate) * squared_error(line, at)))


def discrete(line, levels, steps):
    at = gamma(levels, jnp.arange(steps + 1) / steps)
    weight = discrete_weight(at[1:], at[:-1], steps)
    return float(np.mean(weight * squared_error(line, at[1:])))


@pytest.mark.full
def test_the_continuous_bound_depends_on_the_ends_alone_and_a_discrete_one_falls_to_it(line):
    exact = (information(line, FIRST) - information(line, LAST)) / math.log(2)
    assert exact > 2  # bits
    for seed in (0, 1):
        made = levels(seed)
        # the two schedules differ widely
        assert abs(gamma(made, jnp.float64(0.5)) - gamma(levels(1 - seed), jnp.float64(0.5))) > 0.3
        assert continuous(line, made) == pytest.approx(exact, abs=1e-4)
        gaps = np.array([discrete(line, made, steps) for steps in (8, 32, 128, 512)]) - exact
        assert np.all(gaps > 0)
        ratios = gaps[1:] / gaps[:-1]
        assert np.all(ratios < 0.5)
        assert ratios[-1] == pytest.approx(1 / 4, abs=0.02)  # of order 1/T


def test_prior_and_decoder_are_the_papers():
    rng = np.random.default_rng(0)
    pixels, eps = rng.integers(0, 256, (2, 3, 3, 1)), rng.normal(size=(2, 3, 3, 1))
    x = pixels / 127.5 - 1
    for first in (-13.3, -9.0, -4.0):
        # p(x_i|z_0,i) is proportional to q(z_0,i|x_i), over all values
        z = x + np.exp(first / 2) * eps
        values = np.arange(256) / 127.5 - 1
        likelihoods = np.exp(-0.5 * np.exp(-first) * (z[..., None] - values) ** 2)
        probabilities = likelihoods / likelihoods.sum(axis=-1, keepdims=True)
        chosen = np.take_along_axis(probabilities, pixels[..., None], axis=-1)
        found = decoder_term(jnp.float64(first), jnp.asarray(x), jnp.asarray(eps))
        np.testing.assert_allclose(found, -np.log2(chosen).mean(axis=(1, 2, 3, 4)), rtol=1e-7)

    variance = 1 / (1 + np.exp(-5.0))
    kl = 0.5 * ((1 - variance) * x**2 + variance - np.log(variance) - 1)
    found = prior_term(jnp.float64(5.0), jnp.asarray(x))
    np.testing.assert_allclose(found, kl.mean(axis=(1, 2, 3)) / np.log(2), rtol=1e-9)
