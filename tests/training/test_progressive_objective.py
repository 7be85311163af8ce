"""The objective of progressive distillation against DDIM's steps written out in σ, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.errors import UsageError
from ddpm_jax.randomness import example_keys, stream
from ddpm_jax.samplers.spacing import trailing
from ddpm_jax.training.objective import Drawing
from ddpm_jax.training.optimizer import make_learning_rate
from ddpm_jax.training.progressive_objective import Halving, Round, progressive_objective
from ddpm_jax.training.state import create

B, SHAPE = 64, (2, 3, 1)
CHAIN = Chain(np.linspace(0.001, 0.3, 40))
ALPHAS_BAR = np.cumprod(1 - CHAIN.betas)
SIGMAS = np.sqrt((1 - ALPHAS_BAR) / ALPHAS_BAR)
INDEX = 7 + jnp.arange(B)
KEY = jax.random.key(3)
HALVING = Halving(trailing(CHAIN, 8), num_rounds=2, steps_per_round=10)  # 8 to 4 to 2 steps
TEACHER, STUDENT = 0.5, 0.8


def _network(params, x, time, condition, dropout_keys):
    return jnp.tanh(params * x + 0.1 * time[:, None, None, None])


@pytest.fixture(scope="module")
def objective():
    process = make_process(CHAIN, "eps")
    return progressive_objective(_network, process, HALVING, Drawing(False), clip="none")


def _eps(parameter, x, level):
    """ε of that network at x = x_0 + σ ε, σ of one of the chain's steps."""
    sigma = SIGMAS[level][:, None, None, None]
    time = level[:, None, None, None]
    return np.tanh(parameter * x / np.sqrt(1 + sigma**2) + 0.1 * time), sigma


@pytest.mark.parametrize("number", [0, 1])
def test_the_loss_is_that_of_two_steps_made_one(objective, number):
    x_0 = np.random.default_rng(0).uniform(-1, 1, (B, *SHAPE))
    eps = jax.vmap(lambda key: jax.random.normal(key, SHAPE))(example_keys(KEY, "eps", INDEX))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(stream(KEY, "t"), INDEX)
    u = np.asarray(jax.vmap(jax.random.uniform)(keys))

    stride = 2 << number
    levels = np.asarray(HALVING.times)[stride - 1 :: stride]  # of the student
    which = np.floor(u * len(levels)).astype(int)
    assert set(which) == set(range(len(levels)))
    level, below = levels[which], np.append(0, levels)[which]
    between = np.asarray(HALVING.times)[(which + 1) * stride - 1 - stride // 2]

    sigma = SIGMAS[level][:, None, None, None]
    x = x_0 + sigma * np.float64(eps)
    eps_1, _ = _eps(TEACHER, x, level)
    sigma_1 = SIGMAS[between][:, None, None, None]
    x_1 = x + (sigma_1 - sigma) * eps_1
    eps_2, _ = _eps(TEACHER, x_1, between)
    sigma_2 = np.where(which > 0, SIGMAS[below], 0.0)[:, None, None, None]
    x_2 = x_1 + (sigma_2 - sigma_1) * eps_2
    wanted = x - sigma * (x_2 - x) / (sigma_2 - sigma)  # where one step would end at σ = 0
    found = x - sigma * _eps(STUDENT, x, level)[0]
    expected = np.mean((found - wanted) ** 2, axis=(1, 2, 3)) * np.maximum(1, SIGMAS[level] ** -2)

    loss, aux = jax.jit(objective.loss)(
        jnp.float32(STUDENT),
        (),
        Round(jnp.int32(number), jnp.float32(TEACHER)),
        {"x_0": jnp.asarray(x_0, jnp.float32)},
        KEY,
        INDEX,
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(aux.t, level)


def test_a_round_begins_with_the_average_of_the_one_before(objective):
    optimizer = optax.sgd(0.1)
    first = create(jnp.float32(1.0), optimizer, objective, averages=["wide"])
    assert first.objective_state == (0, 1.0)
    first = first._replace(params=jnp.float32(2.0), ema_params=jnp.float32(3.0))
    begin = jax.jit(objective.begin_step)

    def at(state, step):
        return begin(state._replace(step=jnp.int32(step)))

    for step in (0, 9):
        assert at(first, step) == first._replace(step=step)
    second = at(first, 10)
    assert second.objective_state == (1, 3.0)
    assert (second.params, second.ema_params, second.averages) == (3.0, 3.0, {"wide": 3.0})
    # once; the last round has the rest of the run
    moved = second._replace(params=jnp.float32(4.0), ema_params=jnp.float32(5.0))
    for step in (11, 20, 25):
        assert at(moved, step) == moved._replace(step=step)


def test_the_learning_rate_takes_its_course_in_every_round():
    how = {"warmup_steps": 2, "decay": "cosine"}
    once = make_learning_rate(0.5, num_steps=10, **how)
    thrice = make_learning_rate(0.5, num_steps=32, rounds=3, **how)
    expected = [once(step) for step in (*range(10), *range(10), *range(12))]
    np.testing.assert_allclose([thrice(step) for step in range(32)], expected, rtol=1e-6)


def test_a_mean_of_a_step_is_refused():
    with pytest.raises(UsageError, match="predicts mu"):
        progressive_objective(
            _network, make_process(CHAIN, "mu"), HALVING, Drawing(False), clip="none"
        )
