"""Resumable computations over images: tallies on disk, shared between processes.

A tally is a NamedTuple of arrays with a number of images, such as `tally.Tally` or `ode_bits.Bits`.
"""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from ddpm_jax.data.sources import Source
from ddpm_jax.distributed import hosts, interrupt
from ddpm_jax.errors import FailureError
from ddpm_jax.measuring.evaluation_settings import Evaluation
from ddpm_jax.monitoring import results
from ddpm_jax.monitoring.progress import Counter
from ddpm_jax.monitoring.results import AnyTally


class Span(NamedTuple):
    """Images first..last-1 of a split."""

    first: int
    last: int


class Computation(NamedTuple):
    """A tally that grows by one batch at a time."""

    empty: Any  # the tally of no image
    # (tally of the first images of a span, the span) -> the tallies after every further batch of it
    extend: Callable[[Any, Span], Iterator[Any]]
    merge: Callable[[Any, Any], Any]  # two tallies -> that of the images of both


def complete(computation: Computation, num_images: int) -> Any:
    """Return the tally of images 0..num_images-1, computed by this process without files."""
    tally = computation.empty
    for tally in computation.extend(tally, Span(0, num_images)):  # noqa: B020  the last one counts
        if tally.num_images < num_images:
            interrupt.check()
    return tally


def resume(
    path: pathlib.Path | None,
    computation: Computation,
    num_images: int,
    made_with: dict[str, Any],
) -> Any:
    """Return the tally of images 0..num_images-1, some of which may be done already.

    The tally at `path` is read, the rest is computed, and the tally is written after every batch.
    Several processes share the missing images, each with a tally of its own next to `path`; the
    primary merges them. They must see the same directory.

    Args:
      path: of the tally; None: this process computes all of it and keeps nothing.
      computation: how it grows.
      num_images: at which it is complete.
      made_with: settings; a tally with others is refused.

    Raises:
      UsageError: results made otherwise in the same place.
      FailureError: a file that is damaged or cannot be written, or that another command writes;
        what `extend` raises.
      Stopped: by a signal or a time limit; the tally at `path` stays.
    """
    if path is None:
        return complete(computation, num_images)
    with hosts.hold(path.parent, "evaluating into it", name=f".{path.name}.lock"):
        tally = results.load_tally(path, made_with, computation.empty)
        if tally.num_images == num_images:
            return tally
        if jax.process_count() == 1:
            return _complete(path, tally, Span(0, num_images), computation, made_with)
        return _share(path, tally, computation, num_images, made_with)


def _share(
    path: pathlib.Path,
    tally: AnyTally,
    computation: Computation,
    num_images: int,
    made_with: dict[str, Any],
) -> AnyTally:
    """Complete a tally, each process on a span of the missing images."""
    spans = [Span(*bounds) for bounds in hosts.span(tally.num_images, num_images)]
    paths = [
        path.with_name(f"{path.stem}_images{first}-{last}{path.suffix}") for first, last in spans
    ]
    own = jax.process_index()
    part = results.load_tally(paths[own], made_with, computation.empty)
    _complete(paths[own], part, spans[own], computation, made_with)
    hosts.wait_for_all("all parts are there")
    for part_path, span in zip(paths, spans, strict=True):
        part = results.load_tally(part_path, made_with, computation.empty)
        if part.num_images != span.last - span.first:
            raise FailureError(
                f"{part_path} of another process is not to be seen: --out must be the same "
                "directory."
            )
        tally = computation.merge(tally, part)
    hosts.wait_for_all("all parts are read")
    if hosts.is_primary():
        results.save_tally(path, tally, made_with)
        for part_path in paths:
            part_path.unlink(missing_ok=True)
    hosts.wait_for_all("the parts are merged")
    return tally


def _complete(
    path: pathlib.Path,
    tally: AnyTally,
    span: Span,
    computation: Computation,
    made_with: dict[str, Any],
) -> AnyTally:
    """Add the missing images of a span to a tally, written after every batch."""
    total = span.last - span.first
    if tally.num_images == total:
        return tally
    try:
        for tally in computation.extend(tally, span):  # noqa: B020  the last one is the result
            results.save_tally(path, tally, made_with)
            if tally.num_images < total:
                interrupt.check()
    except interrupt.Stopped as stopped:
        kept = (
            f"{tally.num_images} of {total} images are kept in {path}; the same command goes on "
            "with the rest."
        )
        nothing = "no batch was done yet: a smaller --batch_size is done sooner."
        raise interrupt.Stopped(stopped.wish, kept if tally.num_images else nothing) from None
    return tally


def image_by_image(
    stream: Callable[..., Iterator[AnyTally]],
    source: Source,
    settings: Evaluation,
    *,
    empty: AnyTally,
    merge: Callable[[AnyTally, AnyTally], AnyTally],
) -> Computation:
    """Return the computation whose batches come from a stream.

    Args:
      stream: (source, with the keywords of `batches.image_batches` and seed) -> tallies, one a
        batch.
      source: the images.
      settings: seed, and the batch size of all processes together.
      empty: the tally of no image.
      merge: two tallies -> that of the images of both.
    """

    def extend(tally: AnyTally, span: Span) -> Iterator[AnyTally]:
        with Counter(
            "evaluating", span.last - span.first, initial=tally.num_images, unit="image"
        ) as counter:
            batches = stream(
                source,
                seed=settings.seed,
                num_images=span.last,
                batch_size=batch_size_here(settings),
                done=span.first + tally.num_images,
                first=span.first,
            )
            for batch in batches:
                tally = merge(tally, batch)
                counter.add(batch.num_images)
                yield tally

    return Computation(empty, extend, merge)


def batch_size_here(settings: Evaluation) -> int:
    """Return this process's share of a batch."""
    return -(-settings.batch_size // jax.process_count())
