"""What the evaluation of the bound costs around the network: noise, terms, tally, files and
batches.

    python benchmarks/evaluation_overhead.py [--config configs/digits.py] [--batch 100]
    [--evaluations 200] [--rounds 7]

In one process and on the same batch shape, rounds of the whole loop of `evaluate.py --metric bpd`
on a batch (from the data in memory to the tally on disk) alternate with rounds of the bare forward
pass: jitted, dispatched over and over on one batch, waited for at the end of the round. Prints the
medians of the time of a network evaluation of one image and how much longer it takes in the loop.
Goal: within 5 %. The weights are random: their values cost nothing.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data.in_memory import ArraySource
from ddpm_jax.evaluation import tally
from ddpm_jax.evaluation.bound import Strata, make_bound, stream_terms
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.denoising import Weights
from ddpm_jax.monitoring import results
from ddpm_jax.randomness import base_key

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "digits.py"
GOAL = 5.0  # percent


def time_bare(forward, params, x_t, network_time, evaluations):
    """Returns seconds per evaluation of a batch."""
    start = time.perf_counter()
    for _ in range(evaluations):
        y = forward(params, x_t, network_time)
    jax.block_until_ready(y)
    return (time.perf_counter() - start) / evaluations


def time_loop(bound, params, source, strata, num_timesteps, path):
    """Returns seconds per evaluation of a batch, one for each stratum."""
    start = time.perf_counter()
    summed = tally.empty(num_timesteps, 1)
    batches = stream_terms(
        bound, params, source, seed=0, num_images=len(source), draws=1, batch_size=len(source)
    )
    for terms in batches:
        summed = tally.add(summed, strata, terms)
        results.save_tally(path, summed, {})
    return (time.perf_counter() - start) / len(strata.first)


def measure(config_path, batch, evaluations, rounds):
    """Returns the result as a dict."""
    config = configs.load_config(config_path)
    model = build(config)
    schedule = model.schedule
    params = jax.jit(model.init_params)(base_key(0))
    pixels = np.random.default_rng(0).integers(0, 256, (batch, *model.image_shape), np.uint8)
    source = ArraySource(pixels, np.zeros(batch, np.int32), 0, "random pixels")
    # The t of as many strata as evaluations are wanted; their sizes are of no consequence here.
    first = np.linspace(0, schedule.num_timesteps - 1, evaluations).astype(np.int32)
    strata = Strata(first, np.ones(evaluations, np.int32))
    bound = make_bound(lambda params: model.denoiser(Weights(params), schedule), schedule, strata)
    forward = jax.jit(
        lambda params, x_t, network_time: model.network.apply({"params": params}, x_t, network_time)
    )
    arguments = params, jnp.asarray(pixels / 127.5 - 1, jnp.float32), jnp.full(batch, 500.0)
    bare, loop = [], []
    with tempfile.TemporaryDirectory() as directory:
        rest = source, strata, schedule.num_timesteps, pathlib.Path(directory) / "bound.npz"
        time_bare(forward, *arguments, 3)  # compiles
        time_loop(bound, params, *rest)
        for _ in range(rounds):
            bare.append(time_bare(forward, *arguments, evaluations))
            loop.append(time_loop(bound, params, *rest))
    # Each round of the loop next to the bare one just before it: a slow drift of the machine cancels.
    overhead = statistics.median(whole / alone - 1 for whole, alone in zip(loop, bare, strict=True))
    return {
        **results.machine(),
        "config": pathlib.Path(config_path).name,
        "batch_size": batch,
        "evaluations": evaluations,
        "rounds": rounds,
        "bare_us_per_image": 1e6 * statistics.median(bare) / batch,
        "loop_us_per_image": 1e6 * statistics.median(loop) / batch,
        "overhead_percent": 100 * overhead,
        "rounds_bare_s": bare,
        "rounds_loop_s": loop,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=CONFIG, help="whose network")
    parser.add_argument("--batch", type=int, default=100, help="images")
    parser.add_argument("--evaluations", type=int, default=200, help="of the batch in a round")
    parser.add_argument("--rounds", type=int, default=7, help="of each kind")
    parser.add_argument("--json", metavar="PATH", help="also write the result there")
    arguments = parser.parse_args()
    if jax.local_device_count() > 1:
        parser.error("the bare pass runs on one device: hide the others")
    result = measure(arguments.config, arguments.batch, arguments.evaluations, arguments.rounds)
    print(
        f"{result['config']} on {result['device']}, batch {result['batch_size']}, medians of "
        f"{result['rounds']} rounds"
    )
    print(f"bare forward pass {result['bare_us_per_image']:9.2f} us per image")
    print(f"evaluation loop   {result['loop_us_per_image']:9.2f} us per image and t")
    print(f"overhead          {result['overhead_percent']:9.2f} %  (goal: within {GOAL:.0f} %)")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
