"""A program for test_nonfinite.py: one of several processes of a run in which an image is at times
not finite.

`nonfinite.py PARALLEL WORKDIR STEPS_PER_CALL` trains two runs in WORKDIR, one that passes over such
steps and one that does not, and ends as a command does.
"""

import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.cli import command
from ddpm_jax.cli.arguments import Parser
from ddpm_jax.cli.shared_flags import Processes, prepare
from ddpm_jax.distributed import hosts
from ddpm_jax.distributed.fsdp import PARALLEL
from ddpm_jax.distributed.pmap import several
from ddpm_jax.monitoring.metric_writer import MetricWriter
from ddpm_jax.monitoring.progress import Progress
from ddpm_jax.randomness import base_key
from ddpm_jax.training.diagnosis import make_explain
from ddpm_jax.training.objective import Objective
from ddpm_jax.training.options import LoopOptions
from ddpm_jax.training.state import create
from ddpm_jax.training.step import StepOptions, make_train_step
from ddpm_jax.training.training_loop import Observers, Saving, Start, Steps, train

BATCH, WIDTH, STEPS = 8, 64, 8
BAD_STEPS, BAD_EXAMPLE = (3, 6, 7), 5  # of the second of two processes


def constant(value):
    return nn.initializers.constant(value)


class Network(nn.Module):
    """3e37 in becomes 1.5e37 in `a`, which `parallel=fsdp` splits, and 1e40, which is no float32,
    in `b`."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(WIDTH, kernel_init=constant(0.5 / WIDTH), name="a")(x)
        x = nn.Dense(4, kernel_init=constant(10.0), name="b")(x)
        return nn.Dense(1, kernel_init=constant(0.01), name="c")(x)


def loss(params, frozen, state, batch, key, index):
    losses = jnp.square(Network().apply({"params": params}, batch["x"])[:, 0] - 1.0)
    return losses, losses


class Batches:
    """This process's part of the global batches."""

    def __init__(self):
        self._count = 0

    def __next__(self):
        self._count += 1
        x = np.random.default_rng(self._count).normal(size=(BATCH, WIDTH)).astype(np.float32)
        if self._count in BAD_STEPS:
            x[BAD_EXAMPLE] = 3e37
        return {"x": np.split(x, jax.process_count())[jax.process_index()]}

    def get_state(self):
        return {"batches": self._count}


def run(parallelism, workdir, *, steps_per_call, skip):
    objective = Objective(
        init=lambda params: (), loss=loss, update=lambda state, aux: state, metrics=lambda aux: {}
    )
    optimizer, rate = optax.sgd(1e-5), optax.constant_schedule(1e-5)
    options = StepOptions(skip_nonfinite=skip)
    step = make_train_step(objective, optimizer, rate, options, parallelism.collectives)
    params = Network().init(jax.random.key(0), jnp.ones((1, WIDTH)))["params"]
    first, progress = hosts.is_primary(), Progress(STEPS)
    checkpointer = Checkpointer(workdir, keep_last=1)
    with MetricWriter(workdir) if first else hosts.Silent() as writer:
        outcome = train(
            Start(create(params, optimizer, objective)),
            Steps(
                parallelism.map_step(step),
                parallelism.map_step(several(step)),
                parallelism,
                make_explain(objective, parts=jax.local_device_count(), whole=parallelism.whole),
            ),
            Batches(),
            base_key(0),
            options=LoopOptions(
                STEPS,
                BATCH,
                1,
                sample_every=0,
                save_every=4,
                steps_per_call=steps_per_call,
                skip_nonfinite=skip,
            ),
            saving=Saving(checkpointer, {}),
            observers=Observers(writer, progress if first else hosts.Silent()),
        )
    checkpointer.close()
    return [
        np.asarray(leaf)
        for leaf in jax.tree.leaves(hosts.local(parallelism.whole(outcome.state.params)))
    ]


def main(argv):
    flags = Parser(__doc__, Processes, words=True).parse(argv)
    prepare(flags)
    hosts.check_equal({})
    name, workdir, steps_per_call = flags.words
    options = {"steps_per_call": int(steps_per_call)}
    weights = run(PARALLEL[name], pathlib.Path(workdir) / "passes", skip=2, **options)
    np.savez(pathlib.Path(workdir) / f"weights_{jax.process_index()}.npz", *weights)
    run(PARALLEL[name], pathlib.Path(workdir) / "fails", skip=1, **options)
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main))
