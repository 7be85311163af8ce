"""The variational bound of a model over images."""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from ddpm_jax.data.sources import Source
from ddpm_jax.errors import plural
from ddpm_jax.evaluation import tally
from ddpm_jax.evaluation.batches import ReadBatch
from ddpm_jax.evaluation.bound import Bound, check_has_bound, make_bound, stream_terms
from ddpm_jax.evaluation.strata import Strata, make_strata
from ddpm_jax.experiments.identity import versions
from ddpm_jax.experiments.models import DiffusionModel
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.measuring.evaluated_split import open_split
from ddpm_jax.measuring.evaluation_settings import EvaluatedImages, VariationalBound
from ddpm_jax.measuring.likelihood_conditions import (
    batch_reader,
    check_has_likelihood,
    condition_of,
)
from ddpm_jax.measuring.measurement import result_path
from ddpm_jax.measuring.resuming import Computation, Span, batch_size_here, resume
from ddpm_jax.monitoring import results
from ddpm_jax.monitoring.progress import Counter


class MeasuredBound(NamedTuple):
    """The bound of a model over images."""

    summary: tally.Summary
    record: dict[str, Any]  # the settings that the numbers depend on
    suffix: str  # of files about it
    description: str  # in words


def measure_bound(
    trained: TrainedModel,
    images: EvaluatedImages,
    settings: VariationalBound,
    directory: pathlib.Path | None = None,
) -> MeasuredBound:
    """Compute the bound, continuing results of the same settings in `directory`.

    Raises:
      UsageError: a split, number of images or stride that does not exist; images of another shape
        than the model's; a model without a likelihood; results made otherwise in the same place.
      FailureError: a term that is not finite; a file that is damaged or cannot be written.
    """
    strata = bound_strata(trained.model, settings)
    split = open_split(trained, images, settings)
    stride = settings.timestep_stride
    record = split.record | {"timestep_stride": stride, "clip_denoised": True}
    suffix = f"{split.suffix}_stride{stride}_draws{settings.draws}_seed{settings.seed}"
    bound = model_bound(trained.model, strata)
    computation = bound_computation(trained, split.source, settings, strata, bound)
    path = directory and result_path(directory, "bound", trained, f"{suffix}.npz")
    made_with = record | results.machine() | {"versions": versions()}
    summed = resume(path, computation, split.num_images, made_with)
    every = "every t" if stride == 1 else f"one t of every {stride} at most"
    description = f"{split.description}, {every}, {plural(settings.draws, 'draw')}"
    return MeasuredBound(tally.summarize(summed, strata), record, suffix, description)


def bound_strata(model: DiffusionModel, settings: VariationalBound) -> Strata:
    """Return the timesteps visited, in strata.

    Raises:
      UsageError: a model without a likelihood; a stride that its chain does not have.
    """
    check_has_likelihood(model)
    check_has_bound(model.schedule)
    return make_strata(model.schedule.num_timesteps, settings.timestep_stride)


def model_bound(model: DiffusionModel, strata: Strata) -> Bound:
    """Return the bound of a batch; it is compiled when first used."""
    return make_bound(
        lambda weights, condition: model.denoiser(weights, model.schedule, condition),
        model.schedule,
        strata,
        make_condition=condition_of(model),
    )


def bound_computation(
    trained: TrainedModel, source: Source, settings: VariationalBound, strata: Strata, bound: Bound
) -> Computation:
    """Return the computation of a `tally.Tally`.

    Raises:
      UsageError: a model that reads texts, but images without captions.
    """
    empty = tally.empty(trained.model.schedule.num_timesteps, settings.draws)
    read = batch_reader(trained, source)
    extend = functools.partial(_extend, trained, source, settings, strata, bound, read)
    return Computation(empty, extend, tally.merge)


def _extend(
    trained: TrainedModel,
    source: Source,
    settings: VariationalBound,
    strata: Strata,
    bound: Bound,
    read: ReadBatch,
    summed: tally.Tally,
    span: Span,
) -> Iterator[tally.Tally]:
    """Yield the tally after each further batch of a span's images."""
    per_image = settings.draws * len(strata.first)
    with Counter(
        "evaluating",
        (span.last - span.first) * per_image,
        initial=summed.num_images * per_image,
        unit="network output",
    ) as counter:
        batches = stream_terms(
            bound,
            trained.weights,
            source,
            seed=settings.seed,
            num_images=span.last,
            draws=settings.draws,
            batch_size=batch_size_here(settings),
            done=span.first + summed.num_images,
            first=span.first,
            read=read,
            on_evaluations=counter.add,
        )
        for terms in batches:
            summed = tally.add(summed, strata, terms)
            yield summed
