"""A linear model as an `Objective`, and the objective of a network that sees only x_t and t."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.distributed.pmap import map_step, replicate, shard
from ddpm_jax.randomness import base_key, example_keys
from ddpm_jax.training.objective import Objective
from ddpm_jax.training.state import create
from ddpm_jax.training.step import StepOptions, make_train_step

REMEMBERED = 64  # losses, as many as the largest batch here has


def linear_objective(dropout=0.0):
    """Squared error of x w + b; with `dropout`, inputs are masked per example. It remembers the
    last batch's losses.

    The state of an objective keeps its shape, hence the zeros after the last of them.
    """

    def loss(params, frozen, state, batch, key, index):
        x = batch["x"]
        if dropout:
            mask = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - dropout, x.shape[1:]))
            x = jnp.where(mask(example_keys(key, "dropout", index)), x, 0.0)
        losses = jnp.square(x @ params["w"] + params["b"] - batch["y"])
        return losses, losses

    return Objective(
        init=lambda params: jnp.zeros(REMEMBERED),
        loss=loss,
        update=lambda state, losses: jnp.zeros_like(state).at[: losses.size].set(losses),
        metrics=lambda losses: {"loss_q": (jnp.sum(losses), jnp.float32(losses.size))},
    )


def linear_params():
    return {"w": jnp.asarray([0.5, -1.0, 2.0], jnp.float32), "b": jnp.float32(0.25)}


def linear_batch(size, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(size, 3)).astype(np.float32),
        "y": rng.normal(size=size).astype(np.float32),
    }


class Linear:
    """What the tests of the step, the checkpoints and the loop train."""

    objective = staticmethod(linear_objective)
    params = staticmethod(linear_params)
    batch = staticmethod(linear_batch)

    @staticmethod
    def start(optimizer, objective=None, learning_rate=0.1, **options):
        """Returns (state, mapped train step)."""
        objective = objective or linear_objective()
        step = make_train_step(
            objective, optimizer, optax.constant_schedule(learning_rate), StepOptions(**options)
        )
        return replicate(
            create(linear_params(), optimizer, objective, options.get("averages", ()))
        ), map_step(step)

    @staticmethod
    def step(train_step, state, batch, seed=0):
        return train_step(state, shard(batch), base_key(seed))


@pytest.fixture
def linear():
    return Linear


@pytest.fixture(scope="session")
def network_objective(ddpm_objective):
    """network_objective(model, num_timesteps): the same, of a Flax network of x_t and t alone."""

    def make(model, num_timesteps):
        def apply(params, x_t, time, condition, keys):
            return model.apply({"params": params}, x_t, time, dropout_keys=keys)

        return ddpm_objective(apply, Chain(make_betas("linear", num_timesteps)))

    return make
