"""What classifier-free guidance costs: sampling calls with it against calls without, same weights, chain and labels.

    python benchmarks/guidance_cost.py [--config configs/digits_cond.py] [--steps 50] [--batch_size 16] [--repeats 9]

Both walk DDIM over the same steps; the guided network sees every image twice, told its class and not, in one batch.
Calls of the two alternate in one process. Prints the medians and the median of the paired ratios. Goal: at most 2.05.
The weights are random: their values cost nothing.
"""

import argparse
import json
import pathlib
import statistics
import time

import jax
import numpy as np

from ddpm_jax.cli import config as configs
from ddpm_jax.cli.experiment import build
from ddpm_jax.evaluation.generation import make_generate
from ddpm_jax.models.condition import Condition, without_label
from ddpm_jax.samplers.guidance import classifier_free
from ddpm_jax.samplers.registry import make_sampler
from ddpm_jax.training.randomness import base_key

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "digits_cond.py"
GOAL = 2.05
SCALE = 3.0


def make_calls(config_path, steps, batch_size):
    """Returns {name: call}, each drawing noise, walking the chain and fetching uint8 images."""
    experiment = build(configs.load_config(config_path))
    num_classes = experiment.conditioning.num_classes
    if not num_classes:
        raise SystemExit(f"{config_path} has no classes to guide to: give a config with condition.num_classes.")
    params = jax.jit(experiment.init_params)(base_key(0))
    sampler = make_sampler("ddim", experiment.chain, steps=steps, spacing="trailing")
    told = Condition(label=np.arange(batch_size, dtype=np.int32) % num_classes)

    def unguided(params, schedule, condition):
        conditional = experiment.conditional_denoiser(params, schedule)
        return lambda x_t, t: conditional(x_t, t, condition)

    def guided(params, schedule, condition):
        conditional = experiment.conditional_denoiser(params, schedule)
        null = without_label(condition, num_classes)
        return classifier_free(conditional, condition, null, scale=SCALE, schedule=schedule)

    def call(make_denoiser):
        generate = make_generate(make_denoiser, sampler, experiment.image_shape)
        return lambda: generate(params, base_key(0), np.arange(batch_size), inputs=told).images

    return {"unguided": call(unguided), "guided": call(guided)}


def seconds(call):
    """Returns how long a call takes; its result is on the host when it returns."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(argv=None):
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(CONFIG))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", metavar="PATH", help="also write every call's seconds here")
    flags = parser.parse_args(argv)

    calls = make_calls(flags.config, flags.steps, flags.batch_size)
    for call in calls.values():
        call()  # compiles
    turns = [{name: seconds(call) for name, call in calls.items()} for _ in range(flags.repeats)]
    ratios = sorted(turn["guided"] / turn["unguided"] for turn in turns)
    for name in calls:
        print(f"{name:9} {statistics.median(turn[name] for turn in turns):.3f} s a call")
    print(f"ratio     {statistics.median(ratios):.3f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), goal at most {GOAL}")
    if flags.json:
        with open(flags.json, "w") as file:
            json.dump({"turns": turns, "ratios": ratios, "devices": str(jax.devices())}, file, indent=2)
    return statistics.median(ratios)


if __name__ == "__main__":
    main()
