"""The likelihood of images by the probability-flow ODE of a model."""

import functools
import math
import pathlib
from typing import Any, NamedTuple

from ddpm_jax.data.sources import Source
from ddpm_jax.errors import plural
from ddpm_jax.evaluation.bound import check_has_bound
from ddpm_jax.evaluation.flow_density import Solver
from ddpm_jax.evaluation.likelihood_ode import make_flow_bits
from ddpm_jax.evaluation.ode_bits import Bits, Evaluate, merge, no_bits, stream_bits
from ddpm_jax.experiments.identity import versions
from ddpm_jax.experiments.models import DiffusionModel
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.measuring.evaluated_split import open_split
from ddpm_jax.measuring.evaluation_settings import EvaluatedImages, FlowLikelihood
from ddpm_jax.measuring.likelihood_conditions import (
    batch_reader,
    check_has_likelihood,
    condition_of,
)
from ddpm_jax.measuring.measurement import result_path
from ddpm_jax.measuring.resuming import Computation, image_by_image, resume
from ddpm_jax.monitoring import results

START = 0.0  # the first t that a network is trained on


class MeasuredFlow(NamedTuple):
    """The likelihood of images by the flow of a model."""

    bits: Bits
    record: dict[str, Any]  # the settings that the numbers depend on
    suffix: str  # of files about it
    description: str  # in words


def measure_flow(
    trained: TrainedModel,
    images: EvaluatedImages,
    settings: FlowLikelihood,
    directory: pathlib.Path | None = None,
) -> MeasuredFlow:
    """Compute the bits/dim of each image, continuing results in `directory`.

    Raises:
      UsageError: a split or number of images that does not exist; images of another shape than the
        model's; a model whose flow has no density; results made otherwise in the same place.
      FailureError: an image whose ODE cannot be solved; a file that is damaged or cannot be
        written.
    """
    # refuses what it cannot do; it compiles when it is called
    evaluate = flow_evaluation(trained.model, settings)
    split = open_split(trained, images, settings)
    record = split.record | _record(trained.model, settings)
    exact = settings.trace == "exact"
    suffix = (
        f"{split.suffix}_{settings.trace}{'' if exact else settings.probes}"
        f"_rtol{settings.rtol:g}_atol{settings.atol:g}_draws{settings.draws}_seed{settings.seed}"
    )
    computation = flow_computation(trained, split.source, settings, evaluate)
    path = directory and result_path(directory, "bits_ode", trained, f"{suffix}.npz")
    made_with = record | results.machine()
    bits = resume(path, computation, split.num_images, made_with)
    probes = "exact trace" if exact else plural(settings.probes, f"{settings.trace} probe")
    description = f"{split.description}, {probes}, {plural(settings.draws, 'draw')}"
    return MeasuredFlow(bits, record, suffix, description)


def _record(model: DiffusionModel, settings: FlowLikelihood) -> dict[str, Any]:
    exact = settings.trace == "exact"
    return {
        "trace": settings.trace,
        "probes": math.prod(model.image_shape) if exact else settings.probes,
        "rtol": settings.rtol,
        "atol": settings.atol,
        "start": START,
        "clip_denoised": False,
        "versions": versions("diffrax"),
    }


def flow_evaluation(
    model: DiffusionModel, settings: FlowLikelihood, *, strict: bool = True
) -> Evaluate:
    """Return the function that computes the `Bits` of a batch.

    See `likelihood_ode.make_bits_per_dim`.

    Raises:
      UsageError: a model whose flow has no density.
    """
    check_has_likelihood(model)
    check_has_bound(model.schedule)
    return make_flow_bits(
        model.make_flow(start=START),
        trace=settings.trace,
        num_probes=settings.probes,
        num_draws=settings.draws,
        solver=Solver(rtol=settings.rtol, atol=settings.atol),
        make_condition=condition_of(model),
        strict=strict,
    )


def flow_computation(
    trained: TrainedModel, source: Source, settings: FlowLikelihood, evaluate: Evaluate
) -> Computation:
    """Return the computation of the `Bits` of images.

    Raises:
      UsageError: a model that reads texts, but images without captions.
    """
    read = batch_reader(trained, source)
    stream = functools.partial(stream_bits, evaluate, trained.weights, read=read)
    return image_by_image(stream, source, settings, empty=no_bits(settings.draws), merge=merge)
