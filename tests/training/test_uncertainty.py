"""The learned weighting of levels, L / e^u + u: against NumPy, and its minimum, log E[L | σ]."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.diffusion.chain import continuous_chain
from ddpm_jax.diffusion.interpolants import EDM
from ddpm_jax.diffusion.level_draws import level_distribution, quantiles
from ddpm_jax.diffusion.losses import make_loss
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.config import default_config
from ddpm_jax.experiments.config_checks import check_config
from ddpm_jax.models.uncertainty import (
    FREQUENCIES,
    PHASES,
    UNCERTAINTY,
    log_uncertainty,
    with_uncertainty,
    without_uncertainty,
)
from ddpm_jax.randomness import base_key, stream
from ddpm_jax.training.objective import Drawing, diffusion_objective

PROCESS = make_process(continuous_chain(EDM, 1000), "eps")
DRAW = level_distribution("lognormal", PROCESS.chain)


def objective(weighting):
    """Of a network of a scale alone, which predicts ε by `scale` x_t."""
    return diffusion_objective(
        lambda params, x, *others: params["scale"] * x,
        PROCESS,
        make_loss("simple", weighting, variance=PROCESS.variance),
        Drawing(flip=False),
        timestep_sampling="uniform",
        log_sigma=DRAW,
    )


def batch(count):
    return {"x_0": 0.5 * jax.random.normal(base_key(1), (count, 2, 2, 1))}, jnp.arange(count)


def test_the_loss_is_the_formula_and_equal_weights_at_first():
    (x_0, index), key = batch(16), base_key(0)
    params = with_uncertainty({"scale": jnp.float32(0.7)})
    plain, aux = objective("uniform").loss(params, (), (), x_0, key, index)
    made = objective("learned")
    np.testing.assert_array_equal(made.loss(params, (), (), x_0, key, index)[0], plain)
    kernel = np.random.default_rng(0).normal(size=128).astype(np.float32)
    params[UNCERTAINTY]["kernel"] = jnp.asarray(kernel)
    found, of_learned = made.loss(params, (), (), x_0, key, index)
    c_noise = np.float64(DRAW(quantiles(stream(key, "t"), index, antithetic=False))) / 4
    features = np.sqrt(2) * np.cos(2 * np.pi * (np.outer(c_noise, FREQUENCIES) + PHASES))
    u = features @ kernel / np.sqrt(128)
    np.testing.assert_allclose(found, np.float64(plain) / np.exp(u) + u, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(of_learned.simple, aux.simple)
    assert set(made.metrics(of_learned)) == {"simple", "loss_q", "loss_by_t"}


@pytest.mark.full
def test_u_learns_the_logarithm_of_the_loss_of_every_level_and_is_in_no_average():
    """For a scale of 1/2 it is E (x_t / 2 - ε)² = a² / 16 + (s / 2 - 1)²."""
    params, made = with_uncertainty({"scale": jnp.float32(0.5)}), objective("learned")
    optimizer, (x_0, index) = optax.adam(3e-2), batch(256)

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            grads = jax.grad(lambda p: made.loss(p, (), (), x_0, key, index)[0].mean())(params)
            grads = {**grads, "scale": 0.0 * grads["scale"]}
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(base_key(2), 400)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    found, log_sigma = train(params), jnp.linspace(-3.5, 1.1, 24)
    a, s = 1 / np.hypot(1, np.exp(log_sigma)), np.exp(log_sigma) / np.hypot(1, np.exp(log_sigma))
    expected = np.log(a**2 / 16 + (s / 2 - 1) ** 2)
    np.testing.assert_allclose(log_uncertainty(found, log_sigma), expected, atol=0.15)
    assert made.averaged(found).keys() == {"scale"} == without_uncertainty(found).keys()
    assert np.isfinite(log_uncertainty(found, jnp.array([-np.inf, np.inf]))).all()


def test_mistakes_are_named():
    variance = make_process(PROCESS.chain, "eps").variance
    assert make_loss("simple", "learned", variance=variance).learned
    with pytest.raises(UsageError, match="bound has its own weights over t: learned"):
        make_loss("vlb", "learned", variance=variance)
    config = default_config()
    config.diffusion.weighting = "learned"
    check_config(config)
    config.init_from, config.distill.evaluations = "runs/digits", 2
    with pytest.raises(UsageError, match=r"weighting is 'learned'.*distill.evaluations is 2"):
        check_config(config)
