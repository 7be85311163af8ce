"""Networks of a few numbers for test_perceptual_adversarial.py, and a program that trains them.

`adversarial_on_devices.py OUT`: trains on the devices it finds, and writes what came out under each way of parallelism to OUT, an NPZ file.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax.distributed.fsdp import PARALLEL
from ddpm_jax.training.first_stage_objective import FirstStageOptions, first_stage_objective
from ddpm_jax.training.optimizer import for_players
from ddpm_jax.training.perceptual_adversarial import PerceptualAdversarial
from ddpm_jax.training.state import create
from ddpm_jax.training.step import StepOptions, make_train_step
from ddpm_jax.variational.first_stage import FirstStage
from ddpm_jax.variational.observation import FAMILIES

SIDE, LATENTS, HIDDEN, BATCH, START, STEPS = 4, 3, 6, 16, 2, 5
RNG = np.random.default_rng(0)
BATCHES = [{"image": RNG.integers(0, 256, (BATCH, SIDE, SIDE, 1), np.uint8)} for _ in range(STEPS)]
FROZEN = RNG.normal(0, 0.3, (SIDE * SIDE, 5)).astype(np.float32)
PARAMS = {
    "encoder": {"kernel": RNG.normal(0, 0.3, (SIDE * SIDE, LATENTS)).astype(np.float32)},
    "decoder": {
        "hidden": {"kernel": RNG.normal(0, 0.5, (LATENTS, HIDDEN)).astype(np.float32)},
        "conv_out": {"kernel": RNG.normal(0, 0.3, (HIDDEN, SIDE * SIDE)).astype(np.float32)},
    },
    "log_scale": np.float32(-0.5),
    "discriminator": {
        "hidden": RNG.normal(0, 0.5, (4, 7)).astype(np.float32),
        "out": RNG.normal(0, 0.5, (7, 1)).astype(np.float32),
    },
}
# of plain descent: Adam would hide a gradient of the wrong scale
LEARNING_RATES = {"discriminator": 0.3, "/": 0.1}


def encode(params, x, keys):
    return (x.reshape(len(x), -1) @ params["encoder"]["kernel"])[:, None, None, :]


def decode(params, z, keys):
    hidden = jnp.tanh(z[:, 0, 0, :] @ params["decoder"]["hidden"]["kernel"])
    return (hidden @ params["decoder"]["conv_out"]["kernel"]).reshape(-1, SIDE, SIDE, 1)


def discriminate(params, x):
    """[B, 4, 4, 1] -> [B, 2, 2, 1]: each logit of a patch of 2x2."""
    patches = x.reshape(-1, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 2, 2, 4)
    return jnp.tanh(patches @ params["hidden"]) @ params["out"]


def distance(frozen, x, y):
    return jnp.mean(jnp.square((x - y).reshape(len(x), -1) @ frozen), axis=-1)


FIRST_STAGE = FirstStage("ae", encode, decode, FAMILIES["gaussian"], scale="shared")
TERMS = PerceptualAdversarial(
    perceptual_weight=0.7,
    distance=distance,
    adversarial_weight=0.8,
    discriminate=discriminate,
    start_step=START,
)


def build_objective(terms=TERMS):
    return first_stage_objective(FIRST_STAGE, FirstStageOptions(), flip=False, terms=terms)


def build_optimizer(clip_norm=0.0):
    players = {name: optax.sgd(rate) for name, rate in LEARNING_RATES.items()}
    return for_players(
        {"discriminator": players["discriminator"]}, players["/"], clip_norm=clip_norm
    )


def new_state(parallelism, optimizer, objective, averages=()):
    params, frozen = jax.tree.map(jnp.array, (PARAMS, FROZEN))
    return parallelism.place(create(params, optimizer, objective, averages, frozen))


def stepper(parallelism, optimizer, objective, **options):
    rate = optax.constant_schedule(LEARNING_RATES["/"])
    return parallelism.map_step(
        make_train_step(objective, optimizer, rate, StepOptions(**options), parallelism.collectives)
    )


def run(name, **options):
    """Name -> numbers of a run of STEPS: what is recorded of each, and the last state as one
    vector."""
    parallelism, objective, optimizer = PARALLEL[name], build_objective(), build_optimizer()
    state, step = (
        new_state(parallelism, optimizer, objective),
        stepper(parallelism, optimizer, objective, **options),
    )
    record = []
    for batch in BATCHES:
        state, metrics = step(state, parallelism.to_devices([batch]), jax.random.key(0))
        record.append(
            {
                key: value[0] / value[1] if isinstance(value, tuple) else value
                for key, value in metrics.items()
            }
        )
    results = {key: np.float32([float(values[key]) for values in record]) for key in record[0]}
    results["next_weight"] = np.asarray(state.objective_state.adaptive_weight)
    return results | {
        "params": np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)])
    }


if __name__ == "__main__":
    runs = {name: run(name, accumulate_steps=parts) for name, parts in (("pmap", 2), ("fsdp", 1))}
    np.savez(
        sys.argv[1],
        **{f"{name}/{key}": value for name, one in runs.items() for key, value in one.items()},
    )
