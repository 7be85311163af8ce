"""The objective of consistency tuning against its formula in σ, written out in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.chain import Chain, continuous_chain
from ddpm_jax.diffusion.interpolants import EDM
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.errors import UsageError
from ddpm_jax.randomness import example_keys, stream
from ddpm_jax.training.consistency_objective import Tuning, consistency_objective
from ddpm_jax.training.objective import Drawing

B, SHAPE = 64, (2, 3, 1)
BETAS = np.linspace(0.001, 0.3, 40)
INDEX = 7 + jnp.arange(B)
KEY = jax.random.key(3)
TUNING = Tuning(steps_per_stage=10, num_stages=4, log_mean=0.0, log_std=1.0)


def _network(params, x, time, condition, dropout_keys):
    return jnp.tanh(0.5 * x + 0.1 * time[:, None, None, None])


def _edm(x, sigma):
    """D of EDM's preconditioning round that network."""
    total = sigma**2 + 0.25
    output = np.tanh(0.5 * x / np.sqrt(total) + 0.1 * np.log(sigma) / 4)
    return 0.25 / total * x + sigma * 0.5 / np.sqrt(total) * output


def _eps(x, sigma):
    """D of that network predicting ε on the chain of BETAS, between whose steps log σ is linear."""
    alphas_bar = np.cumprod(1 - BETAS)
    log_sigmas = 0.5 * np.log((1 - alphas_bar) / alphas_bar)
    time = np.interp(np.log(sigma), log_sigmas, np.arange(len(BETAS)))
    x_t = x / np.sqrt(1 + sigma**2)
    return x - sigma * np.tanh(0.5 * x_t + 0.1 * time)


def _draws():
    """x_0, ε and the normal numbers of ln σ, as the objective draws them."""
    x_0 = np.random.default_rng(0).uniform(-1, 1, (B, *SHAPE))
    eps = jax.vmap(lambda key: jax.random.normal(key, SHAPE))(example_keys(KEY, "eps", INDEX))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(stream(KEY, "t"), INDEX)
    u = jax.vmap(jax.random.uniform)(keys) + 2.0**-24
    return x_0, np.asarray(eps, np.float64), np.asarray(jax.scipy.special.ndtri(u), np.float64)


def _expected(denoise, ends, stage, weight):
    x_0, eps, normal = _draws()
    sigma = np.clip(np.exp(normal), *ends)
    earlier = np.maximum(sigma * (1 - (1 + 8 / (1 + np.exp(sigma))) / 2 ** (stage + 1)), 0)
    earlier[earlier <= ends[0]] = 0

    def at(level):
        level = level[:, None, None, None]
        return denoise(x_0 + level * eps, np.where(level > 0, level, 1.0))

    wanted = np.where((earlier > 0)[:, None, None, None], at(earlier), x_0)
    distance = np.sqrt(np.sum((at(sigma) - wanted) ** 2, axis=(1, 2, 3)))
    return x_0, weight(sigma) * distance / (sigma - earlier)


@functools.cache
def _loss(kind):
    """The objective's loss on a chain, the same program for any number of updates."""
    chain = continuous_chain(EDM, 100) if kind == "edm" else Chain(BETAS)
    process = make_process(chain, kind)
    return jax.jit(consistency_objective(_network, process, TUNING, Drawing(flip=False)).loss)


@pytest.mark.parametrize("updates", [0, 9, 10, 39, 1000])
@pytest.mark.parametrize("kind", ["edm", "eps"])
def test_the_loss_is_the_formula(kind, updates):
    if kind == "edm":
        denoise, ends, weight = _edm, (0.002, 80.0), lambda sigma: 1.0
    else:
        alphas_bar = np.cumprod(1 - BETAS)[[0, -1]]
        ends = tuple(np.sqrt((1 - alphas_bar) / alphas_bar))
        denoise, weight = _eps, lambda sigma: 0.5 / np.sqrt(sigma**2 + 0.25)
    x_0, expected = _expected(denoise, ends, min(updates // 10, 3), weight)
    found, aux = _loss(kind)(
        (), (), jnp.int32(updates), {"x_0": jnp.asarray(x_0, jnp.float32)}, KEY, INDEX
    )
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)
    assert aux.stage.tolist() == [min(updates // 10, 3)] * B


def test_it_counts_updates():
    process = make_process(continuous_chain(EDM, 100), "edm")
    objective = consistency_objective(_network, process, TUNING, Drawing(flip=False))
    count = objective.init({})
    assert count == 0
    assert objective.update(objective.update(count, None), None) == 2


def test_the_nearer_level_gets_no_gradient():
    """D = p everywhere: if both levels moved with p, their distance would have no gradient."""

    def apply(params, x, time, condition, dropout_keys):
        return jnp.broadcast_to(params, x.shape)

    process = make_process(continuous_chain(EDM, 100), "x_0")
    objective = consistency_objective(apply, process, TUNING, Drawing(flip=False))
    x_0 = jnp.zeros((B, *SHAPE))

    def cost(p, updates):
        return jnp.mean(objective.loss(p, (), jnp.int32(updates), {"x_0": x_0}, KEY, INDEX)[0])

    gradient = jax.jit(jax.grad(cost))
    # the distance from data, of those whose nearer level is data, has one
    assert gradient(jnp.float32(0.3), 0) > 0
    assert jnp.isfinite(gradient(jnp.float32(0.0), 30))


def test_what_has_no_sigma_or_no_level_between_its_steps_is_refused():
    ends_in_noise = Chain([*make_betas("cosine", 10)[:-1], 1.0])
    process = make_process(ends_in_noise, "v", "fixed_small")
    with pytest.raises(UsageError, match="sigma is infinite"):
        consistency_objective(_network, process, TUNING, Drawing(flip=False))
    with pytest.raises(UsageError, match="mu"):
        consistency_objective(
            _network, make_process(Chain(BETAS), "mu"), TUNING, Drawing(flip=False)
        )
