"""The certificate of a distilled model: how near it is to its teacher, by level and by samples."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np

from ddpm_jax.checkpoints.reader import read_config
from ddpm_jax.data.in_memory import in_memory
from ddpm_jax.data.sources import Source
from ddpm_jax.data.transforms import to_model_range
from ddpm_jax.distributed import hosts
from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation.batches import image_batches
from ddpm_jax.evaluation.flow_ends import FlowDistances, FlowMap, flow_distances
from ddpm_jax.evaluation.pixel_frechet import check_pixel_sets, pixel_frechet_distance
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.experiments.run_settings import INIT_FROM
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.measuring.evaluation_settings import EvaluatedImages, SampleQuality
from ddpm_jax.measuring.likelihood_conditions import batch_reader, condition_of
from ddpm_jax.measuring.measured_samples import draw_samples, open_samples
from ddpm_jax.measuring.measurement import Measurement, write_measurement
from ddpm_jax.monitoring.results import format_table
from ddpm_jax.plotting.distilled import distilled_model
from ddpm_jax.randomness import base_key
from ddpm_jax.samplers.consistency import few_levels
from ddpm_jax.tasks.sampling import make_generator

NUM_IMAGES = 64  # whose noisy versions are led to the end of the flow
NUM_LEVELS = 8
LOWEST = 0.02  # σ, or the least that the processes have
TEACHER_STEPS = (2, 4, 8, 16, 50)  # of DDIM


def distillation(
    trained: TrainedModel,
    images: EvaluatedImages,
    settings: SampleQuality,
    directory: pathlib.Path | None = None,
) -> Measurement:
    """Measure a distilled model against its teacher, the model that it was begun from.

    By level of noise: the distance of its x_0 from the end of the teacher's probability flow, and
    that of the teacher's own x_0. By evaluations: the Frechet distance of samples' pixels to the
    training images, of the student by its few levels and fewer, of the teacher by DDIM.

    Raises:
      UsageError: a model that was not distilled, or whose teacher is gone or has changed; what
        `open_samples` raises.
    """
    teacher = find_teacher(trained)
    found = open_samples("distillation", trained, images, settings, directory)
    rows, _ = check_pixel_sets(found.train, None, num_samples=settings.num_samples)
    levels = _by_level(trained, teacher, found.held_out)
    train = in_memory(found.train, rows).images
    draw = functools.partial(_frechet, train=train, settings=settings)
    few = trained.model.config.distill.evaluations
    student = {steps: draw(trained, *_few(trained, steps)) for steps in range(1, few + 1)}
    last = teacher.model.chain.num_timesteps
    by_ddim = {
        steps: draw(teacher, "ddim", steps) for steps in TEACHER_STEPS if few <= steps <= last
    }
    values = {
        **found.record,
        "teacher_sha256": teacher.sha256,
        "levels": levels,
        "frechet_student": student,
        "frechet_teacher": by_ddim,
        "ratio": student[few] / min(by_ddim.values()),
    }
    return Measurement(
        values,
        _text(levels, student, by_ddim),
        found.suffix,
        functools.partial(_draw, levels=levels, student=student, teacher=by_ddim),
    )


def certify(
    trained: TrainedModel, directory: pathlib.Path, settings: SampleQuality | None = None
) -> tuple[str, list[pathlib.Path]]:
    """Measure as `distillation` does, and write record and picture; return text and paths.

    Raises:
      UsageError: as `distillation`.
      FailureError: a file cannot be written.
    """
    settings = settings or SampleQuality()
    found = distillation(trained, EvaluatedImages(), settings, directory)
    if not hosts.is_primary():
        return found.text, []
    return found.text, write_measurement(
        "distillation", found, trained, seed=settings.seed, directory=directory
    )


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


def _by_level(trained: TrainedModel, teacher: TrainedModel, source: Source) -> FlowDistances:
    x_0, eps, condition = _noisy(trained, source)
    lowest, highest = (
        pick(model.chain.log_sigmas[end] for model in (trained.model, teacher.model))
        for pick, end in ((max, 0), (min, -1))
    )
    lowest = max(np.exp(lowest), LOWEST)
    highest = min(np.exp(highest), trained.model.config.distill.sigma_max)
    maps = (
        FlowMap(
            model.model.chain,
            lambda schedule, model=model: model.model.denoiser(model.weights, schedule, condition),
        )
        for model in (trained, teacher)
    )
    return flow_distances(*maps, x_0, eps, np.geomspace(lowest, highest, NUM_LEVELS))


def _noisy(trained: TrainedModel, source: Source) -> tuple[jax.Array, jax.Array, Any]:
    """Return the first images as the model sees them, noise, and their conditions."""
    model = trained.model
    num_images = min(NUM_IMAGES, len(source))
    batch = next(iter(image_batches(source, num_images=num_images, batch_size=NUM_IMAGES)))
    given = batch_reader(trained, source)(batch)
    key = base_key(0)
    x_0 = model.codec.encode(trained.weights.frozen, to_model_range(batch.images))
    return x_0, jax.random.normal(key, x_0.shape), condition_of(model)(x_0, given)


def _few(trained: TrainedModel, steps: int) -> tuple[str, tuple[float, ...]]:
    c = trained.model.config.distill
    times = few_levels(trained.model.chain, steps, first=c.sigma_max, last=c.sigma_last)
    return "consistency", tuple(times.tolist())


def _frechet(
    model: TrainedModel,
    sampler: str,
    steps: int | tuple[float, ...],
    *,
    train: np.ndarray,
    settings: SampleQuality,
) -> float:
    how = {"steps": steps} if isinstance(steps, int) else {"spacing": steps}
    sampling = dataclasses.replace(
        settings.sampling, sampler=sampler, **{"steps": None, "spacing": None, **how}
    )
    made = draw_samples(make_generator(model, sampling), settings)
    return pixel_frechet_distance(made, train)


def _text(levels: FlowDistances, student: dict[int, float], teacher: dict[int, float]) -> str:
    by_level = format_table(
        ("sigma", "student to the flow's end", "teacher's own x_0"),
        list(zip(*levels, strict=True)),
    )
    rows = [("distilled", n, distance) for n, distance in student.items()]
    rows += [("teacher, ddim", n, distance) for n, distance in teacher.items()]
    return f"{by_level}\n\n{format_table(('samples of', 'evaluations', 'frechet'), rows)}"


def _draw(
    path: pathlib.Path,
    *,
    levels: FlowDistances,
    student: dict[int, float],
    teacher: dict[int, float],
) -> None:
    by_steps = {
        name: (np.array(list(found)), np.array(list(found.values())))
        for name, found in (("distilled", student), ("teacher", teacher))
    }
    by_level = {
        "distilled": (levels.sigma, levels.student),
        "teacher": (levels.sigma, levels.teacher),
    }
    distilled_model(path, by_level, by_steps)
