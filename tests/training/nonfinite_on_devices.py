"""A program for test_nonfinite.py: one of two devices is given an image that is not finite. Prints
JSON."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax.distributed.pmap import map_step, replicate, to_devices
from ddpm_jax.randomness import base_key
from ddpm_jax.training.diagnosis import make_explain
from ddpm_jax.training.objective import Objective
from ddpm_jax.training.state import create
from ddpm_jax.training.step import StepOptions, make_train_step


def constant(value):
    return nn.initializers.constant(value)


class Network(nn.Module):
    """3e37 in becomes 4.5e37 in `a` and 1.8e39, which is no float32, in `b`."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, kernel_init=constant(0.5), name="a")(x)
        x = nn.Dense(4, kernel_init=constant(10.0), name="b")(x)
        return nn.Dense(1, kernel_init=constant(0.01), name="c")(x)


def loss(params, frozen, state, batch, key, index):
    losses = jnp.square(Network().apply({"params": params}, batch["x"])[:, 0] - 1.0)
    return losses, losses


def main():
    objective = Objective(
        init=lambda params: (), loss=loss, update=lambda state, aux: state, metrics=lambda aux: {}
    )
    optimizer = optax.sgd(1e-3)
    params = Network().init(jax.random.key(0), jnp.ones((1, 3)))["params"]
    step = make_train_step(
        objective, optimizer, optax.constant_schedule(1e-3), StepOptions(skip_nonfinite=1)
    )
    step = map_step(step)
    good = {"x": np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)}
    bad = {"x": good["x"].copy()}
    bad["x"][5] = 3e37
    state = replicate(create(params, optimizer, objective))
    results = {"equal on both devices": True, "params moved": [], "step": []}
    for batch in (good, bad, good):
        before = jax.device_get(state.params)
        state, _ = step(state, to_devices([batch]), base_key(0))
        copies = [
            [np.asarray(shard.data) for shard in leaf.addressable_shards]
            for leaf in jax.tree.leaves(state)
        ]
        results["equal on both devices"] &= all(len(c) == 2 and np.array_equal(*c) for c in copies)
        moved = jax.tree.map(
            lambda a, b: not np.array_equal(a, b), before, jax.device_get(state.params)
        )
        results["params moved"].append(any(jax.tree.leaves(moved)))
        results["step"].append(int(state.step))
    results["why"] = make_explain(objective, parts=2)(state, bad, base_key(0))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
