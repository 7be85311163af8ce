"""Time and memory of `ddpm-jax import`: DDPM at 256x256, 113,673,219 parameters. Goals: 30 s, and a
peak below 1.3 x the weights beyond the model itself.

    python benchmarks/importing.py [--source DIRECTORY]

A directory of `DDPMPipeline` with drawn weights, 0.45 GB, is written to a temporary place, unless
one is named. A process of its own imports it, with a cold cache of compiled programs. The time of
each part of the work is reported, and what the process spent on the processor; the peak is the
largest resident memory, that of mapped files included, less what it was before and the model, in
units of the model (Linux).
"""

import argparse
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from load_stable_diffusion import peak

SECONDS, MEMORY = 30, 1.3
SCALE = 0.02  # of the weights that are drawn


def write(directory: pathlib.Path) -> None:
    """Write the directory of the pipeline."""
    from ddpm_jax.experiments.building import build
    from ddpm_jax.experiments.config import default_config
    from ddpm_jax.experiments.denoising import Weights
    from ddpm_jax.experiments.trained_model import TrainedModel
    from ddpm_jax.tasks.unconditional_exporting import write_unconditional

    config = default_config()
    config.data.image_size, config.model.ch_mult = 256, (1, 1, 2, 2, 4, 4)
    config.diffusion.variance = "fixed_small"
    model, rng = build(config), np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = SCALE * rng.standard_normal(leaf.shape, np.float32)
        return noise + np.float32(path[-1].key == "scale")

    params = jax.tree_util.tree_map_with_path(draw, model.params_shapes())
    trained = TrainedModel(model, Weights(params), 0, "raw", "0" * 64, directory=directory)
    write_unconditional(trained, directory)


def measure(source: pathlib.Path) -> dict:
    """Import a model in this process; return its times and memory."""
    from ddpm_jax.tasks.model_importing import import_model

    parts: list[tuple[str, float, float]] = []
    peaks: list[int] = []

    def report(part: str) -> None:
        parts.append((part, time.perf_counter(), time.process_time()))
        peaks.append(peak())
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here (Linux)

    jax.numpy.zeros(1).block_until_ready()  # the start of JAX is not that of the import
    report("opening the files")
    before = peak()
    with tempfile.TemporaryDirectory() as folder:
        found = import_model(source, pathlib.Path(folder) / "run", report=report)
        report("")
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(found.trained.params))
    seconds = {
        name: [round(after - start, 1), round(spent_after - spent, 1)]
        for (name, start, spent), (_, after, spent_after) in itertools.pairwise(parts)
    }
    beyond = [round((most - before) / size - 1, 2) for most in peaks[1:]]
    return {
        "parameters": size // 4,
        "seconds_and_processor_seconds": seconds,
        "peaks_beyond_the_model": dict(zip(seconds, beyond, strict=True)),
        "seconds": round(parts[-1][1] - parts[0][1], 1),
        "processor_seconds": round(parts[-1][2] - parts[0][2], 1),
        "peak_beyond_the_model": max(beyond),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=pathlib.Path, help="a checkpoint of another project")
    parser.add_argument("--measure", type=pathlib.Path, help="used by itself")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        source = options.source or pathlib.Path(folder) / "church"
        if not options.source:
            write(source)
        command = [sys.executable, __file__, "--measure", str(source)]
        result = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    print(json.dumps(result, indent=2))
    print(f"goal {SECONDS} s {'met' if result['seconds'] < SECONDS else 'missed'}", end=", ")
    is_met = result["peak_beyond_the_model"] < MEMORY
    print(f"goal {MEMORY} x the model {'met' if is_met else 'missed'}")


if __name__ == "__main__":
    main()
