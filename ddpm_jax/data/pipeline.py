"""Sources -> batches: shuffling, sharding over processes, prefetching, and resuming.

The stream is defined globally: the global batch n is a function of (source, seed, n, batch_size).
Process p of P takes the p-th of its P equal parts, so that training does not depend on the number
of processes. Only the *numbers* of batches go through grain, for its threads; the rows are gathered
once per batch.
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from ddpm_jax.data.captions import CaptionDraws
from ddpm_jax.data.in_memory import ArraySource, captions_of, gather_rows
from ddpm_jax.data.sources import Source
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.schema import Malformed, Table, Text, Whole, check

if TYPE_CHECKING:
    import grain

Batch = dict[str, np.ndarray]
_MAX_THREADS = 16
_ENDLESS = 2**62  # batches: more than any run takes


def position_schema(step: int | None = None) -> Table:
    """Return the schema of `TrainIterator.get_state()`, after `step` batches if given."""
    batches = Whole() if step is None else Whole(step, step)
    return Table(
        {"batches": batches}, {"seed": Whole(), "batch_size": Whole(1), "fingerprint": Text()}
    )


class TrainIterator:
    """Endless local batches, see `train_iterator`; the position can be read and set."""

    def __init__(self, batches: "grain.MapDataset", options: "grain.ReadOptions", identity: dict):
        self._iterator = iter(batches.to_iter_dataset(options))
        self._identity = identity
        self._batches = 0

    def __iter__(self) -> "TrainIterator":
        return self

    def __next__(self) -> Batch:
        batch = _next(self._iterator)
        self._batches += 1
        return batch

    def get_state(self) -> dict:
        """Return the position, JSON-able: the number of batches returned so far, and the identity.

        Prefetched batches do not count. The identity is the seed, the batch size and the
        fingerprint.
        """
        return {"batches": self._batches, **self._identity}

    def set_state(self, state: dict) -> None:
        """Continue after `state["batches"]` batches, in constant time.

        Raises:
          UsageError: the state is invalid, or of another seed, batch size or source.
        """
        try:
            check(state, position_schema())
        except Malformed as error:
            raise UsageError(f"This is no position in the data: {error}.") from error
        for field, ours in self._identity.items():
            if state.get(field) != ours:
                raise UsageError(
                    f"The checkpoint was written with data {field} {state.get(field)!r}, but this "
                    f"run has {ours!r}: resume with the data settings it was started with, or "
                    "start in another workdir."
                )
        self._iterator.set_state({"next_index": state["batches"]})
        self._batches = state["batches"]

    def close(self) -> None:
        """Stop the threads; no batch can be read afterwards."""
        self._iterator.close()


def train_iterator(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    caption_dropout: float = 0.0,
    finish: Callable[[Batch], Batch] = lambda batch: batch,
    num_threads: int | None = None,
    prefetch: int | None = None,
) -> TrainIterator:
    """Return shuffled batches without end: each epoch is one permutation of all examples.

    The last batch of an epoch is filled from the next one, so a batch may be larger than the
    source.

    Args:
      source: random access, see `sources.load`.
      batch_size: of the global batch; a multiple of `process_count`.
      seed: at least 0.
      process_index: the part of the global batch to return, in 0..process_count-1.
      process_count: number of processes that train together.
      caption_dropout: share of captions that are hidden, in [0, 1].
      finish: the last step of making a batch, which may replace what it holds.
      num_threads: threads that prepare batches, one batch each at a time. By default one for a
        source in memory, otherwise one per core up to 16.
      prefetch: batches prepared ahead; by default two more than there are threads.

    Returns:
      An iterator of {"image": uint8 [B, H, W, C], "label": int32 [B]} where B = batch_size //
      process_count; of a source with captions also {"caption": int32 [B]}, the number of one of
      each image's in `source.captions.table`, 0 where it is hidden.

    Raises:
      UsageError: an argument is out of range. While iterating, FailureError: an image cannot be
        read.
    """
    local = _local_size(batch_size, process_index, process_count)
    if seed < 0:
        raise UsageError(f"seed={seed} should be at least 0.")
    order = _Order(len(source), seed)
    captions = captions_of(source)
    draws = captions and CaptionDraws(captions, seed=seed, dropout=caption_dropout)

    def read(n: int) -> Batch:
        start = n * batch_size + process_index * local
        images = order.rows(start, local)
        batch, rows = gather_rows(source, images)
        if draws is not None:
            epochs = np.arange(start, start + local) // len(source)
            batch["caption"] = draws.numbers(images, epochs, rows)
        return finish(batch)

    import grain

    batches = grain.MapDataset.range(_ENDLESS).map(read)
    identity = {"seed": seed, "batch_size": batch_size, "fingerprint": source.fingerprint}
    return TrainIterator(batches, _read_options(source, num_threads, prefetch), identity)


class _Order:
    """The endless sequence of rows of a run: one permutation per epoch, from (seed, epoch).

    Permutations are drawn by `np.random.RandomState`, whose stream NumPy has frozen (NEP 19): a run
    resumes on the same order under another version. The last two are cached, 8 bytes per row each.
    """

    def __init__(self, count: int, seed: int):
        self._count, self._seed = count, seed
        self._permutation = functools.lru_cache(maxsize=2)(self._draw)

    def rows(self, start: int, size: int) -> np.ndarray:
        """Return rows start..start+size-1 of the sequence, int64 [size]."""
        epochs = range(start // self._count, (start + size - 1) // self._count + 1)
        parts = [self._permutation(epoch) for epoch in epochs]
        first = start - epochs[0] * self._count
        return (parts[0] if len(parts) == 1 else np.concatenate(parts))[first : first + size]

    def _draw(self, epoch: int) -> np.ndarray:
        words = np.random.SeedSequence([self._seed, epoch]).generate_state(4)
        return np.random.RandomState(words).permutation(self._count)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_images: int | None = None,
    first: int = 0,
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Return an iterator over the examples in order, once.

    Args:
      source: as for `train_iterator`, as are `process_index` and `process_count`.
      batch_size: of the global batch; a multiple of `process_count`.
      num_images: limit to the first `num_images`; None, or more than there are, for all.
      first: the image that batches are counted from; those before it are left out.

    Returns:
      An iterator of (batch, mask): a batch as in `train_iterator`, with the first caption of each
      image, and bool [B], False for the rows of zeros that pad the last batch. Every process gets
      the same number of batches, the last of which may be all padding.

    Raises:
      UsageError: an argument is out of range. While iterating, FailureError: an image cannot be
        read.
    """
    local = _local_size(batch_size, process_index, process_count)
    total = len(source) if num_images is None else min(num_images, len(source))
    read = functools.partial(_padded, source, local, total)
    last = first + -(-(total - first) // batch_size) * batch_size
    import grain

    starts = grain.MapDataset.range(first + process_index * local, last, batch_size)
    return _iterate(starts.map(read).to_iter_dataset(_read_options(source, None, None)))


def _iterate(dataset: "grain.IterDataset") -> Iterator[tuple[Batch, np.ndarray]]:
    iterator = iter(dataset)
    try:
        while True:
            try:
                yield _next(iterator)
            except StopIteration:
                return
    finally:
        iterator.close()


def _padded(source: Source, size: int, total: int, start: int) -> tuple[Batch, np.ndarray]:
    """Return rows start..start+size-1, zeros from `total` on, and the mask of real rows."""
    rows = np.arange(start, start + size)
    mask = rows < total
    batch = {
        "image": np.zeros((size, *source.image_shape), np.uint8),
        "label": np.zeros(size, np.int32),
    }
    captions = captions_of(source)
    if captions is not None:
        batch["caption"] = np.zeros(size, np.int32)
    if mask.any():
        found, read = gather_rows(source, rows[mask])
        if captions is not None:
            found["caption"] = captions.first(read)
        for key, value in found.items():
            batch[key][mask] = value
    return batch, mask


def _next(iterator: "grain.DatasetIterator"):
    try:
        return next(iterator)
    except UsageError as error:  # an unreadable image, found during the run
        raise FailureError(str(error)) from error


def _local_size(batch_size: int, process_index: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise UsageError(
            f"batch_size={batch_size} should be a positive multiple of the number of processes, "
            f"{process_count}."
        )
    if not 0 <= process_index < process_count:
        raise UsageError(f"process_index={process_index} should be in 0..{process_count - 1}.")
    return batch_size // process_count


def _read_options(
    source: Source, num_threads: int | None, prefetch: int | None
) -> "grain.ReadOptions":
    import grain

    if num_threads is None:
        num_threads = (
            1 if isinstance(source, ArraySource) else min(_MAX_THREADS, os.cpu_count() or 1)
        )
    return grain.ReadOptions(
        num_threads=num_threads,
        prefetch_buffer_size=num_threads + 2 if prefetch is None else prefetch,
    )
