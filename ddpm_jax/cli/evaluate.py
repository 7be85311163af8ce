"""`python evaluate.py --ckpt DIR`: how good a trained model is, as a table and as JSON beside the checkpoint.

    python evaluate.py --ckpt runs/digits                       300 samples against the training images

Metric frechet_pixels: the Frechet distance between Gaussians fitted to the pixels, scaled to [0, 1], of the samples and
of the training images; beside it that of as many held-out images as samples (or all there are), because the distance of
a small set is larger.
"""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ddpm_jax.cli.command import MAX_SEED, Parser, choose_platform
from ddpm_jax.cli.data import load_split
from ddpm_jax.cli.load import Loaded, load, versions
from ddpm_jax.data import pipeline, sources
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.evaluation import generation
from ddpm_jax.evaluation.frechet import pixel_frechet_distance
from ddpm_jax.plotting.files import write_atomically
from ddpm_jax.samplers.ancestral import ancestral

READ_BATCH = 256


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code; see `command.run` for the errors."""
    parser = Parser(__doc__)
    parser.string("ckpt", None, "Directory of a training run: the --workdir of train.py.", metavar="DIR")
    parser.integer("ckpt_step", None, "Which of its checkpoints; the newest by default.", lower=0)
    parser.string("metric", "frechet_pixels", f"What to compute: {', '.join(METRICS)}.", metavar="NAME")
    parser.integer("num_samples", 300, "How many images to make.", lower=2)
    parser.integer("batch_size", 100, "Images made at a time, over all devices.", lower=1)
    parser.integer("seed", 0, "Of the samples.", lower=0, upper=MAX_SEED)
    parser.integer("steps", None, "Steps of the reverse chain; all T of training by default.", lower=1)
    parser.string("data_dir", None, "Where the data is, if not where the training run found it.", metavar="DIR")
    parser.boolean("raw_weights", "Use the weights as trained instead of their moving average.")
    flags = parser.parse(argv)
    if not flags.ckpt:
        raise UsageError("--ckpt is missing: name the directory of a training run, as in --ckpt runs/digits.")
    metric = choose("metric", flags.metric, METRICS)
    choose_platform(flags.platform)
    loaded = load(flags.ckpt, step=flags.ckpt_step, raw_weights=flags.raw_weights)

    result = {
        "metric": flags.metric,
        "checkpoint": str(flags.ckpt),
        "checkpoint_step": loaded.step,
        "weights": loaded.weights,
        "seed": flags.seed,
        **metric(loaded, flags),
        "versions": versions(),
    }
    path = pathlib.Path(flags.ckpt) / "evaluation" / f"{flags.metric}_step{loaded.step}_{loaded.weights}.json"
    write_atomically(path, (json.dumps(result, indent=2) + "\n").encode())
    for name, value in result.items():
        if isinstance(value, int | float):
            print(f"{name:24} {value:.4g}" if isinstance(value, float) else f"{name:24} {value}")
    print(path)
    return 0


def _frechet_pixels(loaded: Loaded, flags: Any) -> dict[str, Any]:
    steps = flags.steps or loaded.experiment.schedule.num_timesteps
    schedule = loaded.experiment.respaced(steps)
    data = loaded.experiment.config.data
    train = _images(load_split(data, data.train_split, data_dir=flags.data_dir))
    held_out = _images(load_split(data, data.test_split, data_dir=flags.data_dir))[: flags.num_samples]
    generate = generation.make_generate(
        lambda params: loaded.experiment.denoiser(params, schedule), ancestral(schedule), loaded.experiment.image_shape
    )
    batches = generation.generate_batches(
        generate, loaded.params, seed=flags.seed, indices=np.arange(flags.num_samples), batch_size=flags.batch_size
    )
    samples = np.concatenate([images for _, images in batches])
    of_samples, of_held_out = (pixel_frechet_distance(images, train) for images in (samples, held_out))
    return {
        "num_samples": len(samples),
        "num_held_out": len(held_out),
        "num_train": len(train),
        "steps": steps,
        "frechet_samples": of_samples,
        "frechet_held_out": of_held_out,
        "ratio": of_samples / of_held_out,
    }


def _images(source: sources.Source) -> np.ndarray:
    batches = pipeline.eval_batches(source, batch_size=READ_BATCH)
    return np.concatenate([batch["image"][mask] for batch, mask in batches])


METRICS: dict[str, Callable[[Loaded, Any], dict[str, Any]]] = {"frechet_pixels": _frechet_pixels}
