"""The objective of learned levels: the paper's loss, and another gradient for their interior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.chain import continuous_chain
from ddpm_jax.diffusion.learned_levels import (
    FIRST,
    GAMMA,
    LAST,
    gamma,
    initial_levels,
    learned,
)
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.errors import UsageError
from ddpm_jax.randomness import base_key, example_keys, normal, stream
from ddpm_jax.training.bound_objective import bound_objective
from ddpm_jax.training.objective import Drawing

BATCH, T = 8, 20


@pytest.fixture(scope="module", autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def network(params, x, time, condition, keys):
    """Something with curvature in everything."""
    time = (time / 1000).reshape(-1, 1, 1, 1)
    return jnp.tanh(params["w"] * x + params["b"] * time) * params["c"]


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    levels = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), initial_levels())
    interior = jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape), levels["interior"])
    # its ends have moved from the config's
    ends = {"first": levels["ends"]["first"] + 0.7, "span": levels["ends"]["span"] - 0.4}
    own = {"w": np.float64(0.8), "b": np.float64(-0.5), "c": np.float64(0.9)}
    return jax.tree.map(jnp.asarray, own | {GAMMA: {"ends": ends, "interior": interior}})


def make(apply=network, *, steps=None, target="eps", **changes):
    process = make_process(continuous_chain(learned(initial_levels()), T), target, "posterior")
    options = {"timestep_sampling": "low_discrepancy", "batch_size": BATCH}
    return bound_objective(apply, process, Drawing(flip=False), steps=steps, **options | changes)


def images():
    return np.random.default_rng(1).integers(0, 256, (BATCH, 2, 2, 1)) / 127.5 - 1


def loss_of(objective, params, index=None):
    index = np.arange(BATCH) if index is None else index
    return objective.loss(params, (), (), {"x_0": images()[index]}, base_key(3), index)


def evaluate(objective, params, index=None):
    return jax.jit(lambda params: loss_of(objective, params, index))(params)


def mean_of(objective, what):
    def mean(params):
        loss, aux = loss_of(objective, params)
        return jnp.mean({"loss": loss, "square": jnp.square(aux.diffusion)}[what])

    return mean


def slope(f, params, direction):
    """df along a direction, by a central difference of order 4."""

    def at(step):
        return float(f(jax.tree.map(lambda p, d: p + step * d, params, direction)))

    h = 1e-4
    return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)


def along(params, part, seed=5):
    """A random direction in one part of the parameters."""
    rng = np.random.default_rng(seed)
    kept = {"network": ("w", "b", "c"), "ends": (GAMMA, "ends"), "interior": (GAMMA, "interior")}

    def entry(path, leaf):
        names = [key.key for key in path]
        inside = names[0] in kept[part] if part == "network" else names[:2] == list(kept[part])
        return jnp.asarray(rng.normal(size=leaf.shape) * inside)

    return jax.tree_util.tree_map_with_path(entry, params)


@pytest.mark.full
@pytest.mark.parametrize("steps", [None, 6])
def test_the_gradient_is_of_the_bound_but_in_the_interior_of_the_square_where_t_is_infinite(steps):
    objective, params = make(steps=steps), parameters()
    gradient = jax.jit(jax.grad(mean_of(objective, "loss")))(params)
    bound, square = (jax.jit(mean_of(objective, what)) for what in ("loss", "square"))
    for part in ("network", "ends", "interior"):
        direction = along(params, part)
        products = jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)
        found = sum(jax.tree.leaves(products))
        minimised = square if part == "interior" and steps is None else bound
        expected = slope(minimised, params, direction)
        assert abs(expected) > 1e-3
        assert found == pytest.approx(expected, rel=1e-6), part


@pytest.mark.parametrize("steps", [None, 6])
def test_a_compiled_loss_has_the_same_gradient(steps):
    objective, params = make(steps=steps), parameters()

    def mean(params):
        return jnp.mean(loss_of(objective, params)[0])

    found, expected = (jax.jit(jax.grad(f))(params) for f in (jax.jit(mean), mean))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)


def paper(params, gamma_t, weight, x_0, eps, eps_0, ends):
    """The loss of Kingma et al. 2021 in bits/dim: their equations, in NumPy."""
    variance = (1 / (1 + np.exp(-gamma_t))).reshape(-1, 1, 1, 1)
    z = np.sqrt(1 - variance) * x_0 + np.sqrt(variance) * eps
    time = (gamma_t - FIRST) / (LAST - FIRST)
    own = {name: float(params[name]) for name in "wbc"}
    eps_hat = np.tanh(own["w"] * z + own["b"] * time.reshape(-1, 1, 1, 1)) * own["c"]
    diffusion = 0.5 * weight * np.sum((eps - eps_hat) ** 2, axis=(1, 2, 3))

    first, last = ends
    z_0 = x_0 + np.exp(first / 2) * eps_0  # over α_0
    values = np.arange(256) / 127.5 - 1
    logits = -0.5 * np.exp(-first) * (z_0[..., None] - values) ** 2
    logits -= np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    pixel = np.rint((x_0 + 1) * 127.5).astype(int)
    decoder = -np.take_along_axis(logits, pixel[..., None], -1).sum(axis=(1, 2, 3, 4))
    var_1 = 1 / (1 + np.exp(-last))
    prior = 0.5 * np.sum((1 - var_1) * x_0**2 + var_1 - np.log(var_1) - 1, axis=(1, 2, 3))
    dims = x_0[0].size * np.log(2)
    return diffusion / dims, decoder / dims, prior / dims


def seen(objective_of, params):
    """What a network is given, and what the objective then says."""
    inputs = []

    def apply(params, x, time, condition, keys):
        inputs.append((np.asarray(x), np.asarray(time)))
        return network(params, x, time, condition, keys)

    loss, aux = loss_of(objective_of(apply), params)
    return *inputs[0], np.asarray(loss), aux


@pytest.mark.parametrize("steps", [None, 6])
def test_the_loss_is_the_papers_at_times_even_over_the_batch(steps):
    params = parameters()
    z, time, loss, aux = seen(lambda apply: make(apply, steps=steps), params)
    gamma_t = FIRST + time / 1000 * (LAST - FIRST)
    x_0 = images()
    variance = (1 / (1 + np.exp(-gamma_t))).reshape(-1, 1, 1, 1)
    eps = (z - np.sqrt(1 - variance) * x_0) / np.sqrt(variance)

    levels = jax.tree.map(np.asarray, params[GAMMA])
    u_0 = float(jax.random.uniform(stream(base_key(3), "t")))
    u = (u_0 + np.arange(BATCH) / BATCH) % 1
    if steps is None:
        weight = (gamma(levels, u + 1e-5) - gamma(levels, u - 1e-5)) / 2e-5
    else:
        u = np.ceil(u * steps) / steps
        weight = steps * np.expm1(gamma_t - gamma(levels, u - 1 / steps))
    np.testing.assert_allclose(gamma_t, gamma(levels, u), atol=2e-5)
    eps_0 = np.asarray(normal(example_keys(base_key(3), "decoder", jnp.arange(BATCH)), (2, 2, 1)))
    diffusion, decoder, prior = paper(
        params, gamma_t, weight, x_0, eps, eps_0, gamma(levels, np.array([0.0, 1.0]))
    )
    np.testing.assert_allclose(aux.diffusion, diffusion, rtol=1e-5)
    np.testing.assert_allclose(aux.decoder, decoder, rtol=1e-8)
    np.testing.assert_allclose(aux.prior, prior, rtol=1e-6)
    np.testing.assert_allclose(loss, diffusion + decoder + prior, rtol=1e-5)


def test_an_example_has_its_loss_whatever_batch_it_is_in():
    objective, params = make(), parameters()
    whole, _ = evaluate(objective, params)
    part, _ = evaluate(objective, params, np.array([6, 1]))
    np.testing.assert_allclose(part, np.asarray(whole)[[6, 1]], rtol=1e-12)


def test_networks_of_other_targets_have_the_bound_of_the_eps_that_they_imply():
    """One network that predicts x_0 = 0, or the same in units of v."""
    zero = make(lambda params, x, *rest: jnp.zeros_like(x), target="x_0")

    def v_of_zero(params, x, time, *rest):
        gamma_t = FIRST + time / 1000 * (LAST - FIRST)
        # v = (a x_t - x_0) / s
        return (jnp.exp(-gamma_t / 2).reshape(-1, 1, 1, 1)) * x

    other = make(v_of_zero, target="v")
    expected, found = (evaluate(objective, parameters())[0] for objective in (zero, other))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_importance_sampling_is_refused():
    with pytest.raises(UsageError, match="Importance sampling is over the T steps"):
        make(timestep_sampling="importance")
