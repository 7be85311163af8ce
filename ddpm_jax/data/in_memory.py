"""A source in memory, into which any source can be read, and the gather that makes batches.

Decoding a small PNG takes a core some 100 µs, indexing an array about one: whatever fits into
memory is decoded once.
"""

import concurrent.futures
import dataclasses
import os

import numpy as np

from ddpm_jax import host_memory
from ddpm_jax.data.captions import Captions
from ddpm_jax.data.dataset_info import DatasetInfo, dataset_info
from ddpm_jax.errors import UsageError

AUTO_BUDGET = 4 * 2**30  # bytes that `cache="auto"` may take, ...
AUTO_SHARE = 0.25  # ... and the share of the machine's memory, whichever is less
_CHUNK = 64  # examples a thread decodes between two updates of the progress bar


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """A source over arrays.

    Attributes:
      images: uint8 [N, H, W, C].
      labels: int32 [N], in 0..num_classes-1; zeros when there are none.
      num_classes: 0 when there are no labels.
      fingerprint: identifies the arrays, see `sources.Source`.
      skipped: files left out as unreadable.
      info: about the dataset, see `dataset_info.DatasetInfo`.
      captions: of the images; None where they have none.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    fingerprint: str
    skipped: list[str] = dataclasses.field(default_factory=list)
    info: DatasetInfo = dataclasses.field(default_factory=DatasetInfo)
    captions: Captions | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return {"image": self.images[i], "label": self.labels[i]}

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": self.images[indices], "label": self.labels[indices]}


def gather(source, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Return rows `indices` of `source` as {"image": uint8 [B, H, W, C], "label": int32 [B]}.

    Sources that can read many rows together more cheaply have their own `gather`.
    """
    if hasattr(source, "gather"):
        return source.gather(indices)
    examples = [source[int(i)] for i in indices]
    return {
        "image": np.stack([example["image"] for example in examples]),
        "label": np.array([example["label"] for example in examples], np.int32),
    }


def gather_rows(source, indices: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return what `gather` does, and the rows that were read, int [B].

    These differ from `indices` where a source takes another image for one it cannot read.
    """
    if hasattr(source, "gather_rows"):
        return source.gather_rows(indices)
    return gather(source, indices), indices


def captions_of(source) -> Captions | None:
    """Return the captions of a source; None where it has none."""
    return getattr(source, "captions", None)


def should_cache(source, mode: str) -> bool:
    """Return whether to decode `source` into memory.

    `mode` is "always", "never", or "auto": if it fits the budget.

    Raises:
      UsageError: "always", and the pictures do not fit into the machine's memory.
    """
    size, memory = len(source) * int(np.prod(source.image_shape)), host_memory.machine()
    if mode == "always" and size > memory:
        raise UsageError(
            f"cache='always' needs {size / 2**30:.1f} GiB for {len(source)} images, but the "
            f"machine has {memory / 2**30:.1f} GiB: use cache='auto' or a smaller image_size."
        )
    return mode == "always" or (mode == "auto" and size <= min(AUTO_BUDGET, AUTO_SHARE * memory))


def decode_source(source, rows: np.ndarray | None = None) -> ArraySource:
    """Return `source`, or its `rows` [n], decoded by one thread per core with a progress bar.

    The order of the rows is kept, so the sequence of examples does not depend on the cache.
    """
    rows = np.arange(len(source)) if rows is None else rows
    images = np.empty((len(rows), *source.image_shape), np.uint8)
    labels = np.empty(len(rows), np.int32)
    read = np.empty(len(rows), np.int64)

    def decode_chunk(start: int) -> int:
        chunk = slice(start, start + _CHUNK)
        batch, read[chunk] = gather_rows(source, rows[chunk])
        images[chunk], labels[chunk] = batch["image"], batch["label"]
        return len(batch["label"])

    for_each(decode_chunk, range(0, len(rows), _CHUNK), total=len(rows), what="decoding")
    captions = captions_of(source)
    return ArraySource(
        images,
        labels,
        source.num_classes,
        source.fingerprint,
        skipped=sorted(getattr(source, "skipped", ())),
        info=dataset_info(source),
        captions=None if captions is None else captions.take(read),
    )


def in_memory(source, rows: np.ndarray | None = None) -> ArraySource:
    """Return `source`, or only its `rows`, as arrays; the source itself if it already is."""
    if isinstance(source, ArraySource) and (rows is None or len(rows) == len(source)):
        return source
    return decode_source(source, rows)


def for_each(function, items, *, total: int, what: str, num_threads: int | None = None) -> None:
    """Call `function` on every item in a pool of threads, with a progress bar on a terminal.

    The error of the first failing item is raised.

    Args:
      function: called with one item; returns how many of `total` it has done.
      items: its arguments.
      total: length of the bar, in images.
      what: the bar's title.
      num_threads: one per core if None.
    """
    from tqdm import tqdm  # which takes long to import

    pool = concurrent.futures.ThreadPoolExecutor(num_threads or os.cpu_count())
    try:
        with tqdm(total=total, desc=what, unit=" images", leave=False, disable=None) as bar:
            for done in pool.map(function, items):
                bar.update(done)
    finally:
        pool.shutdown(cancel_futures=True)
