"""The samples of a run's evaluations, made while it trains by all devices and processes."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from ddpm_jax import memory
from ddpm_jax.distributed import hosts
from ddpm_jax.experiments.denoising import Weights
from ddpm_jax.experiments.models import DiffusionModel
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.monitoring.progress import Progress
from ddpm_jax.randomness import base_key
from ddpm_jax.tasks.image_generator import ImageGenerator
from ddpm_jax.tasks.sampling import make_generator
from ddpm_jax.tasks.sampling_settings import Sampling


def make_draw(model: DiffusionModel) -> Callable[[Any, Progress], np.ndarray]:
    """Return the function that makes the samples of weights, those of `evaluate` and the seed.

    Raises:
      UsageError: a sampler, or a number of steps, that the model does not have.
    """
    config, key = model.config.eval, base_key(model.config.seed)
    sampling = Sampling(sampler=config.sampler, steps=config.sample_steps)

    def generator_of(model: DiffusionModel) -> tuple[ImageGenerator, Callable[..., Any]]:
        generator = make_generator(TrainedModel(model, Weights(()), 0, "ema"), sampling)
        return generator, generator.compiled(together=True)

    by_given_levels = generator_of(model)  # compiled once; of learned levels once an evaluation

    def batches(weights: Any, progress: Progress) -> Iterator[np.ndarray]:
        trained = model.at_levels_of(weights)
        generator, generate = by_given_levels if trained is model else generator_of(trained)
        mine = hosts.share(config.num_samples)
        size = min(-(-config.batch_size // jax.process_count()), len(mine))
        for start in range(0, len(mine), size):
            indices = mine[start : start + size]
            what = f"samples {start + 1} to {start + len(indices)} of {len(mine)}"
            yield generate(
                {"model": weights, "guide": generator.guide.params},
                key,
                indices,
                inputs=generator.inputs(indices),
                batch_size=size,
                watch=functools.partial(progress.drawing, what),
            ).images

    def draw(weights: Any, progress: Progress) -> np.ndarray:
        with memory.explained(f"making {config.batch_size} samples", "lower eval.batch_size"):
            return hosts.gather(batches(weights, progress), config.num_samples)

    return draw
