"""The teacher of a distilled model, and how far the model leads from the end of its flow."""

from typing import Any

import jax
import numpy as np

from ddpm_jax.checkpoints.reader import read_config
from ddpm_jax.data.sources import Source
from ddpm_jax.data.transforms import to_model_range
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation.batches import image_batches
from ddpm_jax.evaluation.flow_ends import FlowDistances, FlowMap, flow_distances
from ddpm_jax.experiments.few_steps import own_method
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.experiments.run_settings import INIT_FROM
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.measuring.likelihood_conditions import batch_reader, condition_of
from ddpm_jax.randomness import base_key
from ddpm_jax.samplers.loop import Sampler
from ddpm_jax.samplers.registry import make_sampler

NUM_IMAGES = 64  # whose noisy versions are led to the end of the flow
NUM_LEVELS = 8
LOWEST = 0.02  # σ, or the least that the processes have


def find_teacher(trained: TrainedModel) -> TrainedModel:
    """Return the model that a distilled one was begun from.

    Raises:
      UsageError: a model that was not distilled, or whose teacher is gone or has changed.
    """
    config = getattr(trained.model, "config", None)
    if config is None or not config.distill.evaluations:
        raise UsageError(
            "distillation compares a model of few steps with its teacher, and this one was not "
            "distilled: make one with the command distill."
        )
    try:
        teacher = load_trained(
            config.init_from, step=config.init_from_step, raw_weights=config.init_from_raw
        )
    except UsageError as error:
        raise UsageError(f"The teacher of this model: {error}") from error
    begun_from = read_config(trained.directory, trained.step)[INIT_FROM]
    if teacher.sha256 != begun_from["sha256"]:
        raise UsageError(
            f"The teacher of this model, {config.init_from}, has changed since (SHA-256 "
            f"{begun_from['sha256'][:12]} then, {teacher.sha256[:12]} now)."
        )
    return teacher


def distances_by_level(
    trained: TrainedModel, teacher: TrainedModel, source: Source
) -> FlowDistances:
    """Return how far a distilled model leads from the end of its teacher's flow, by level.

    A model of consistency tuning leads there by one evaluation, from any level; one of progressive
    distillation by its own steps, from the levels that it visits.

    Args:
      trained: the model.
      teacher: of `find_teacher`.
      source: of the images to which noise is added.
    """
    x_0, eps, condition = _noisy_images(trained, source)

    def flow_map(of: TrainedModel, **sampler: Any) -> FlowMap:
        def denoiser(schedule):
            return of.model.denoiser(of.weights, schedule, condition)

        return FlowMap(of.model.chain, denoiser, **sampler)

    chain, config = trained.model.chain, trained.model.config
    if config.distill.method == "progressive":
        times = np.array(own_method(config, chain).spacing)
        sigmas = np.asarray(chain.at(times).sigma)

        def own_steps(chain: Chain, sigma: float) -> Sampler:
            return make_sampler("ddim", chain, spacing=times[sigmas <= sigma])

        student = flow_map(trained, sampler=own_steps)
    else:
        ends = [of.model.chain.log_sigmas[[0, -1]] for of in (trained, teacher)]
        lowest = max(LOWEST, *(np.exp(end[0]) for end in ends))
        highest = min(config.distill.sigma_max, *(np.exp(end[1]) for end in ends))
        sigmas = np.geomspace(lowest, highest, NUM_LEVELS)
        student = flow_map(trained)
    return flow_distances(student, flow_map(teacher), x_0, eps, sigmas)


def _noisy_images(trained: TrainedModel, source: Source) -> tuple[jax.Array, jax.Array, Any]:
    """Return the first images as the model sees them, noise, and their conditions."""
    model = trained.model
    num_images = min(NUM_IMAGES, len(source))
    batch = next(iter(image_batches(source, num_images=num_images, batch_size=NUM_IMAGES)))
    given = batch_reader(trained, source)(batch)
    key = base_key(0)
    x_0 = model.codec.encode(trained.weights.frozen, to_model_range(batch.images))
    return x_0, jax.random.normal(key, x_0.shape), condition_of(model)(x_0, given)
