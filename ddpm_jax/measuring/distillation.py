"""The certificate of a distilled model: how near it is to its teacher, by level and by samples."""

import dataclasses
import functools
import pathlib

import numpy as np

from ddpm_jax.data.in_memory import in_memory
from ddpm_jax.distributed import hosts
from ddpm_jax.evaluation.flow_ends import FlowDistances
from ddpm_jax.evaluation.pixel_frechet import check_pixel_sets, pixel_frechet_distance
from ddpm_jax.experiments.few_steps import student_methods
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.measuring.evaluation_settings import EvaluatedImages, SampleQuality
from ddpm_jax.measuring.measured_samples import draw_samples, open_samples
from ddpm_jax.measuring.measurement import Measurement, write_measurement
from ddpm_jax.measuring.teacher import distances_by_level, find_teacher
from ddpm_jax.monitoring.results import format_table
from ddpm_jax.plotting.distilled import distilled_model
from ddpm_jax.tasks.sampling import make_generator

TEACHER_STEPS = (2, 4, 8, 16, 50)  # of DDIM, those that are not fewer than the student's


def distillation(
    trained: TrainedModel,
    images: EvaluatedImages,
    settings: SampleQuality,
    directory: pathlib.Path | None = None,
) -> Measurement:
    """Measure a distilled model against its teacher, the model that it was begun from.

    By level of noise: the distance of where it leads from the end of the teacher's probability
    flow, and that of the teacher's own x_0. By evaluations: the Frechet distance of samples' pixels
    to the training images, of the student by its few levels (a model of consistency tuning by fewer
    too, the powers of two), of the teacher by DDIM with at least as many.

    Raises:
      UsageError: a model that was not distilled, or whose teacher is gone or has changed; what
        `open_samples` raises.
    """
    teacher = find_teacher(trained)
    found = open_samples("distillation", trained, images, settings, directory)
    rows, _ = check_pixel_sets(found.train, None, num_samples=settings.num_samples)
    levels = distances_by_level(trained, teacher, found.held_out)
    train = in_memory(found.train, rows).images
    draw = functools.partial(_frechet, train=train, settings=settings)
    few = trained.model.config.distill.evaluations
    methods = student_methods(trained.model.config, trained.model.chain)
    student = {how.steps: draw(trained, how.sampler, how.spacing) for how in methods}
    by_ddim = {
        steps: draw(teacher, "ddim", steps)
        for steps in teacher_steps(few, teacher.model.chain.num_timesteps)
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


def teacher_steps(few: int, most: int) -> list[int]:
    """Return the numbers of DDIM steps of the teacher of a model of `few`, in 1..`most`.

    They are those of `TEACHER_STEPS` that are not fewer; if there is none, `few` itself or `most`.
    """
    return [steps for steps in TEACHER_STEPS if few <= steps <= most] or [min(few, most)]


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
