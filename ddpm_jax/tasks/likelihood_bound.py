"""Flags -> the bound over a split."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from ddpm_jax.evaluation import tally
from ddpm_jax.evaluation.bound import check_has_bound, make_bound, stream_terms
from ddpm_jax.evaluation.strata import Strata, make_strata
from ddpm_jax.experiments.identity import versions
from ddpm_jax.experiments.loading import TrainedModel
from ddpm_jax.monitoring import results
from ddpm_jax.monitoring.progress import Counter
from ddpm_jax.tasks.evaluated_split import Span, Split, go_on, open_split, result_path
from ddpm_jax.training.conditioning import condition_of


class BoundOf(NamedTuple):
    """The bound of a checkpoint over images."""

    summary: tally.Summary
    settings: dict[str, Any]  # what the numbers follow from, beside the checkpoint
    suffix: str  # of files about it
    what: str  # in words


def bound_of(trained: TrainedModel, flags: Any) -> BoundOf:
    """Computes the bound, or reads what an earlier command with the same settings has computed of
    it.

    Raises:
      UsageError: a split, number of images or stride that is not there; images of another shape
        than the model's; a model without a likelihood; results made otherwise in the same place.
      FailureError: a term that is not finite; a file that is damaged or cannot be written.
    """
    model = trained.model
    check_has_bound(model.schedule)
    strata = make_strata(model.schedule.num_timesteps, flags.timestep_stride)
    split = open_split(trained, flags)
    settings = split.settings | {"timestep_stride": flags.timestep_stride, "clip_denoised": True}
    suffix = f"{split.suffix}_stride{flags.timestep_stride}_draws{flags.draws}_seed{flags.seed}"
    summed = go_on(
        result_path("bound", trained, flags, f"{suffix}.npz"),
        tally.empty(model.schedule.num_timesteps, flags.draws),
        split.num_images,
        lambda summed, span: _further(trained, flags, strata, split, summed, span),
        merge=tally.merge,
        made_with=settings | results.machine() | {"versions": versions()},
    )
    every = (
        "every t"
        if flags.timestep_stride == 1
        else f"one t of every {flags.timestep_stride} at most"
    )
    what = f"{split.what}, {every}, {flags.draws} draw{'s' if flags.draws > 1 else ''}"
    return BoundOf(tally.summarize(summed, strata), settings, suffix, what)


def _further(
    trained: TrainedModel, flags: Any, strata: Strata, split: Split, summed: tally.Tally, span: Span
) -> Iterator[tally.Tally]:
    """Yields the tally after every further batch of the images of a span."""
    model = trained.model
    bound = make_bound(
        lambda params, condition: model.denoiser(params, model.schedule, condition),
        model.schedule,
        strata,
        make_condition=functools.partial(condition_of, model.conditioning),
    )
    per_image = flags.draws * len(strata.first)
    with Counter(
        "evaluating",
        (span.last - span.first) * per_image,
        initial=summed.num_images * per_image,
        unit="network output",
    ) as counter:
        batches = stream_terms(
            bound,
            trained.weights,
            split.source,
            seed=flags.seed,
            num_images=span.last,
            draws=flags.draws,
            batch_size=-(-flags.batch_size // jax.process_count()),
            done=span.first + summed.num_images,
            first=span.first,
            on_evaluations=counter.add,
        )
        for terms in batches:
            summed = tally.add(summed, strata, terms)
            yield summed
