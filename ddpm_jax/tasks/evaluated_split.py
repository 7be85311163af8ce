"""Flags -> the images that a likelihood is of, names of files about it, and going on where an
earlier run stopped."""

import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from ddpm_jax.data.sources import Source
from ddpm_jax.distributed import hosts, interrupt
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.evaluation.batches import check_images
from ddpm_jax.experiments.datasets import load_evaluated
from ddpm_jax.experiments.identity import identity
from ddpm_jax.experiments.loading import TrainedModel
from ddpm_jax.experiments.models import DiffusionModel
from ddpm_jax.experiments.run_settings import frozen_first_stage
from ddpm_jax.files import as_path
from ddpm_jax.monitoring import results
from ddpm_jax.monitoring.progress import Counter


class Split(NamedTuple):
    """The images of a likelihood."""

    source: Source
    num_images: int  # the first so many of the source
    settings: dict[str, Any]  # what a number of them follows from, beside the method
    suffix: str  # of files about them
    what: str  # in words


def open_split(trained: TrainedModel, flags: Any) -> Split:
    """Opens --split, by default the config's test split, or the first --num_images of it.

    Of a conditional model the likelihood is that of the images given what it is told of them: the
    settings and the words say so.

    Raises:
      UsageError: a model over latents; a split or number of images that is not there; images of
        another shape than the model's, or not of its classes.
    """
    model = trained.model
    if frozen_first_stage(model) is not None:
        raise UsageError(
            "This model is one of latents, so its bound and its flow are of those and not of "
            "images: take frechet_pixels, or elbo of the first stage."
        )
    name = flags.split or model.config.data.test_split
    source, other = load_evaluated(trained, name, data_dir=flags.data_dir)
    num_images = check_images(source, model.image_shape, split=name, num_images=flags.num_images)
    settings = {
        **identity(trained),
        "split": name,
        "data": source.fingerprint,
        "num_images": num_images,
        "seed": flags.seed,
        "draws": flags.draws,
        "dtype": str(model.config.model.dtype),
    }
    if model.config.objective == "diffusion":
        settings["num_timesteps"] = model.schedule.num_timesteps
    told = model.conditioning.names if isinstance(model, DiffusionModel) else ()
    if told:  # absent otherwise: results of before there were conditions go on
        settings["given"] = list(told)
    settings |= other
    given = f" given {' and '.join(told)}" if told else ""
    suffix, what = f"_{stem_of(name)}_n{num_images}", f"{num_images} images of {name}{given}"
    return Split(source, num_images, settings, suffix, what)


def stem_of(split: str) -> str:
    """The name of a split as a part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", split).strip("-")


def result_path(name: str, trained: TrainedModel, flags: Any, suffix: str) -> pathlib.Path:
    """A file about a checkpoint, in --out or in the folder `evaluation` of the run."""
    directory = as_path(flags.out or as_path(flags.ckpt) / "evaluation")
    return directory / f"{name}_step{trained.step}_{trained.average}{suffix}"


class Span(NamedTuple):
    """Images first..last-1 of a split."""

    first: int
    last: int


def go_on(
    path: pathlib.Path,
    empty: results.AnyTally,
    num_images: int,
    compute: Callable[[results.AnyTally, Span], Iterator[results.AnyTally]],
    *,
    merge: Callable[[results.AnyTally, results.AnyTally], results.AnyTally],
    made_with: dict[str, Any],
) -> results.AnyTally:
    """Returns the tally of `num_images` images: reads what is at `path`, computes the rest, writes
    after every batch.

    Several processes share out the images that are missing, each with a tally of its own beside
    `path`; the first merges them. They must see the same directory.

    Args:
      path: of the tally.
      empty: the tally of no image.
      num_images: at which it is complete.
      compute: (tally of the first images of a span, the span) -> the tallies after every further
        batch of it.
      merge: two tallies -> that of the images of both.
      made_with: settings; a tally of others is refused.

    Raises:
      UsageError: results made otherwise in the same place.
      FailureError: a file that is damaged or cannot be written, or that another command writes;
        what `compute` raises.
      Stopped: by a signal or a time limit; what is at `path` stays.
    """
    with hosts.hold(path.parent, "evaluating into it", name=f".{path.name}.lock"):
        return _go_on(path, empty, num_images, compute, merge, made_with)


def _go_on(
    path: pathlib.Path,
    empty: results.AnyTally,
    num_images: int,
    compute: Callable[[results.AnyTally, Span], Iterator[results.AnyTally]],
    merge: Callable[[results.AnyTally, results.AnyTally], results.AnyTally],
    made_with: dict[str, Any],
) -> results.AnyTally:
    tally = results.load_tally(path, made_with, empty)
    if tally.num_images == num_images:
        return tally
    if jax.process_count() == 1:
        return _complete(path, tally, Span(0, num_images), compute, made_with)
    spans = [Span(*bounds) for bounds in hosts.span(tally.num_images, num_images)]
    paths = [
        path.with_name(f"{path.stem}_images{first}-{last}{path.suffix}") for first, last in spans
    ]
    own = jax.process_index()
    part = results.load_tally(paths[own], made_with, empty)
    _complete(paths[own], part, spans[own], compute, made_with)
    hosts.wait_for_all("all parts are there")
    for part_path, span in zip(paths, spans, strict=True):
        part = results.load_tally(part_path, made_with, empty)
        if part.num_images != span.last - span.first:
            raise FailureError(
                f"{part_path} of another process is not to be seen: --out must be the same "
                "directory."
            )
        tally = merge(tally, part)
    hosts.wait_for_all("all parts are read")
    if hosts.is_primary():
        results.save_tally(path, tally, made_with)
        for part_path in paths:
            part_path.unlink(missing_ok=True)
    hosts.wait_for_all("the parts are merged")
    return tally


def _complete(
    path: pathlib.Path,
    tally: results.AnyTally,
    span: Span,
    compute: Callable[[results.AnyTally, Span], Iterator[results.AnyTally]],
    made_with: dict[str, Any],
) -> results.AnyTally:
    """Adds to the tally of the first images of a span those that are missing; writes it after every
    batch."""
    total = span.last - span.first
    if tally.num_images == total:
        return tally
    try:
        for tally in compute(tally, span):  # noqa: B020  the last one is the result
            results.save_tally(path, tally, made_with)
            if tally.num_images < total:
                interrupt.check()
    except interrupt.Stopped as stopped:
        kept = f"{tally.num_images} of {total} images are kept in {path}; the same command goes on with the rest."
        nothing = "no batch was done yet: a smaller --batch_size is done sooner."
        raise interrupt.Stopped(stopped.wish, kept if tally.num_images else nothing) from None
    return tally


def image_by_image(
    stream: Callable[..., Iterator[results.AnyTally]],
    tally: results.AnyTally,
    span: Span,
    split: Split,
    flags: Any,
    *,
    merge: Callable[[results.AnyTally, results.AnyTally], results.AnyTally],
) -> Iterator[results.AnyTally]:
    """Yields the tally of all images of a span so far after every further batch; for `go_on`.

    Args:
      stream: (source, with the keywords of `evaluation.batches.image_batches` and seed) -> tallies,
        one a batch.
      tally: of the first images of the span.
      span: the images.
      split: which they are of.
      flags: --seed and --batch_size, of all processes together.
      merge: two tallies -> that of the images of both.
    """
    with Counter(
        "evaluating", span.last - span.first, initial=tally.num_images, unit="image"
    ) as counter:
        batches = stream(
            split.source,
            seed=flags.seed,
            num_images=span.last,
            batch_size=-(-flags.batch_size // jax.process_count()),
            done=span.first + tally.num_images,
            first=span.first,
        )
        for batch in batches:
            tally = merge(tally, batch)
            counter.add(batch.num_images)
            yield tally
