"""What the training loop costs around the jitted step: data, metrics, records and logging, on the
digits network.

    python benchmarks/loop_overhead.py [--steps 100] [--rounds 7] [--json PATH]

In one process and on the same batch shape, rounds of the whole loop (`training.loop.train`, no
grids, no checkpoints) alternate with rounds of the bare step: dispatched over and over on one batch
already split, nothing read until the end of the round. Prints the medians, of the time on the clock
and of the processor's, and how much more of either a step of the loop takes. Goal: under 5 % on the
clock. A busy machine disturbs the processor's time less.
"""

import argparse
import io
import json
import pathlib
import statistics
import tempfile
import time

import jax

from ddpm_jax.data import pipeline
from ddpm_jax.distributed.pmap import map_step, replicate, shard
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.datasets import load_split
from ddpm_jax.experiments.trainer import build_training, init_state
from ddpm_jax.monitoring.metric_writer import MetricWriter
from ddpm_jax.monitoring.progress import Progress
from ddpm_jax.randomness import base_key
from ddpm_jax.training.options import LoopOptions
from ddpm_jax.training.training_loop import Observers, Saving, Start, Steps, train

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "digits.py"
GOAL = 5.0  # percent
KINDS = ("wall_ms", "cpu_ms")


class NoCheckpoints:
    """In the place of a Checkpointer: saving is not what is measured."""

    def save(self, *_):
        pass

    def wait(self):
        pass


class Stopwatch:
    """Milliseconds per step since it was made: on the clock, and of all the process's threads
    together."""

    def __init__(self):
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self, steps):
        return {
            "wall_ms": 1e3 * (time.perf_counter() - self._wall) / steps,
            "cpu_ms": 1e3 * (time.process_time() - self._cpu) / steps,
        }


def time_bare(step, state, batch, key, steps):
    """Returns (state, times per step)."""
    stopwatch = Stopwatch()
    for _ in range(steps):
        state, _ = step(state, batch, key)
    jax.block_until_ready(state)
    return state, stopwatch.read(steps)


def time_loop(step, state, batches, key, steps, writer, config):
    """Returns (state, times per step)."""
    first = int(state.step)
    options = LoopOptions(
        num_steps=first + steps,
        batch_size=config.train.batch_size,
        log_every=config.train.log_every,
        sample_every=0,
        save_every=first + steps + 1,
    )
    stopwatch = Stopwatch()
    outcome = train(
        Start(state),
        Steps(step),
        batches,
        key,
        options=options,
        saving=Saving(NoCheckpoints(), {}),
        observers=Observers(writer, Progress(first + steps, file=io.StringIO())),
    )
    jax.block_until_ready(outcome.state)
    return outcome.state, stopwatch.read(steps)


def measure(steps, rounds):
    """Returns the result as a dict."""
    config = configs.load_config(CONFIG)
    model = build(config)
    training = build_training(model)
    step, key = map_step(training.train_step), base_key(config.seed)
    bare, loop = [], []
    with tempfile.TemporaryDirectory() as workdir, MetricWriter(workdir) as writer:
        batches = pipeline.train_iterator(
            load_split(config.data, config.data.train_split),
            batch_size=config.train.batch_size,
            seed=config.seed,
        )
        batch = shard(next(batches))
        # compiles
        state, _ = time_bare(step, replicate(init_state(model, training)), batch, key, 3)
        state, _ = time_loop(step, state, batches, key, 3, writer, config)
        for _ in range(rounds):
            state, times = time_bare(step, state, batch, key, steps)
            bare.append(times)
            state, times = time_loop(step, state, batches, key, steps, writer, config)
            loop.append(times)
        batches.close()
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "batch_size": config.train.batch_size,
        "steps": steps,
        "rounds": rounds,
        "bare": {kind: statistics.median(times[kind] for times in bare) for kind in KINDS},
        "loop": {kind: statistics.median(times[kind] for times in loop) for kind in KINDS},
        "overhead_percent": {kind: overhead(bare, loop, kind) for kind in KINDS},
        "rounds_bare": bare,
        "rounds_loop": loop,
    }


def overhead(bare, loop, kind):
    """In percent; each round of the loop next to the bare one just before it, so that a machine's
    slow drift cancels."""
    return 100 * statistics.median(
        whole[kind] / alone[kind] - 1 for whole, alone in zip(loop, bare, strict=True)
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100, help="in a round")
    parser.add_argument("--rounds", type=int, default=7, help="of each kind")
    parser.add_argument("--json", metavar="PATH", help="also write the result there")
    arguments = parser.parse_args()
    result = measure(arguments.steps, arguments.rounds)
    print(
        "{devices} x {device}, batch {batch_size}, medians of {rounds} rounds of {steps} steps".format(
            **result
        )
    )
    print(f"per step         {'clock':>10} {'processor':>10}")
    for name in ("bare", "loop"):
        print(f"{name:10} ms    {result[name]['wall_ms']:10.3f} {result[name]['cpu_ms']:10.3f}")
    percent = result["overhead_percent"]
    print(
        f"overhead   %     {percent['wall_ms']:10.2f} {percent['cpu_ms']:10.2f}   (goal: under "
        f"{GOAL:.0f} on the clock)"
    )
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
