"""What share of the time a run spends on its checkpoints, saving every 500 steps. Goal: under 2 %.

    python benchmarks/checkpoint_stall.py [--config configs/ddpm_cifar10.py] [--every 500] [--steps
    4]

Rounds of `--steps` steps alternate with rounds that begin with a save, as the loop saves: state
copied to the host, files written in the background. A save costs what the loop waits for it, and
what the steps beside the writing take longer, with what is left to write after them. The share is
that of one save in `--every` steps, at the step's own time here and, for what the loop waits, at
the times of faster devices.
"""

import functools
import statistics
import tempfile

import jax
from measuring import parse, parser, report, seconds, setting, spread
from train_step import random_batch

from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.trainer import build_training, init_state
from ddpm_jax.randomness import base_key

GOAL = 2.0  # percent
FASTER = (0.5, 0.1, 0.05)  # seconds a step; the last is that of a TPU v3-8 in the paper


def measure(config, *, every: int, steps: int, rounds: int) -> dict:
    """Returns the result as a dict."""
    model = build(config)
    training = build_training(model)
    parallelism, key = training.parallelism, base_key(config.seed)
    state = parallelism.place(init_state(model, training))
    batch = parallelism.to_devices([random_batch(config.train.batch_size, model.image_shape)])
    step = parallelism.map_step(training.train_step)

    def train():
        nonlocal state
        for _ in range(steps):
            state, _ = step(state, batch, key)
        jax.block_until_ready(state)

    train()
    plain, waits, beside = [], [], []
    with tempfile.TemporaryDirectory() as workdir:
        checkpointer = Checkpointer(workdir, keep_last=1)
        for number in range(1, rounds + 1):
            plain.append(seconds(train))
            waits.append(seconds(functools.partial(checkpointer.save, number, state, {}, {})))
            beside.append(seconds(lambda: (train(), checkpointer.wait())))
        checkpointer.close()
    wait, slower = (
        statistics.median(waits),
        max(0.0, statistics.median(beside) - statistics.median(plain)),
    )
    step_seconds = statistics.median(plain) / steps
    return {
        **setting(),
        "batch_size": config.train.batch_size,
        "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
        "seconds_per_step": step_seconds,
        "seconds_the_loop_waits": spread(waits),
        "seconds_the_steps_lose": slower,
        f"share_saving_every_{every}": (wait + slower) / (every * step_seconds + wait + slower),
        **{f"share_of_the_wait_at_{s}_s_a_step": wait / (every * s + wait) for s in FASTER},
    }


def main(argv: list[str] | None = None) -> dict:
    made = parser(__doc__, config="ddpm_cifar10.py")
    made.add_argument("--every", type=int, default=500, help="steps from save to save")
    made.add_argument("--steps", type=int, default=4, help="in a round")
    made.add_argument("--rounds", type=int, default=3)
    arguments, config = parse(made, argv)
    result = measure(config, every=arguments.every, steps=arguments.steps, rounds=arguments.rounds)
    report(result, arguments.json)
    return result


if __name__ == "__main__":
    main()
