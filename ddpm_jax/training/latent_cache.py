"""The scale of latents, and latents encoded once and kept on disk.

The encoder's output is stored, for a VAE the moments: z is drawn from them again in every step
(`latent_objective`). A file holds about a thousand images and is written atomically.
"""

import collections
import concurrent.futures
import contextlib
import functools
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.archives import BadArchive, Header, map_npy
from ddpm_jax.data.captions import without_captions
from ddpm_jax.data.in_memory import captions_of, gather_rows
from ddpm_jax.data.sources import Source
from ddpm_jax.data.transforms import to_model_range
from ddpm_jax.distributed import hosts, pmap
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.files import read_file, reporting, write_atomically
from ddpm_jax.schema import LARGEST, Malformed, Table, differing, parse
from ddpm_jax.training.latent_objective import ENCODED
from ddpm_jax.variational.latent_space import Frozen, LatentSpace, latent_scale

BATCH = 32  # images encoded at a time, on each device
OPEN = 256  # files that are mapped at a time
SHARD = 1024  # images in a file: 64 MiB for ImageNet's latents with those of mirrored images
MANIFEST = "latents.json"


def measure_scale(
    space: LatentSpace, params: Any, source: Source, *, key: chex.PRNGKey, num_images: int
) -> float:
    """Return the scale that gives latents a standard deviation of 1.

    It is measured on up to `num_images` images, evenly spaced in the source.

    Raises:
      UsageError: the latents do not vary.
    """
    count = min(num_images, len(source))
    rows = np.unique(np.linspace(0, len(source) - 1, count).round().astype(np.int64))

    def sums(params, examples):
        x, index = examples
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
        z = space.encode(Frozen(params, jnp.float32(1)), to_model_range(x), keys)
        return jnp.stack(
            [jnp.sum(z, axis=(1, 2, 3)), jnp.sum(jnp.square(z), axis=(1, 2, 3))], axis=1
        )

    mine = rows[hosts.share(len(rows))]
    found = hosts.gather((totals for totals, _ in _stream(sums, params, source, mine)), len(rows))
    return latent_scale(found[:, 0], found[:, 1], int(np.prod(space.shape)))


def _stream(
    function: Callable[[Any, tuple[chex.Array, chex.Array]], chex.Array],
    params: Any,
    source: Source,
    rows: np.ndarray,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (function(params, (images, rows)), labels) for batches of all rows, in order.

    Images are uint8 [n, H, W, C], rows and labels int32 [n].
    """
    mapped, size = pmap.map_examples(function), BATCH * jax.local_device_count()
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]

    def read(batch: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        padded = np.pad(batch, (0, size - len(batch)), mode="edge").astype(np.int32)
        examples, rows = gather_rows(source, padded)
        if captions_of(source) is not None:
            _check_captions(rows, padded)
        return padded, examples

    threads = os.cpu_count() or 1
    # decoding pictures may take longer than encoding them
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        coming = collections.deque()
        for batch in batches:
            coming.append((len(batch), pool.submit(read, batch)))
            if len(coming) > threads:
                yield _finish(mapped, params, *coming.popleft())
        while coming:
            yield _finish(mapped, params, *coming.popleft())


def _check_captions(read: np.ndarray, wanted: np.ndarray) -> None:
    """Refuse images that stand for others: the cache would pair them with those' captions.

    Raises:
      UsageError: see above.
    """
    if (read != wanted).any():
        count = np.count_nonzero(read != wanted)
        raise UsageError(
            f"Of the captioned images {count} cannot be read, the first being number "
            f"{wanted[read != wanted][0]}: remove them before their latents are kept, or set "
            "data.cache=always."
        )


def _finish(
    mapped: Callable[..., Any], params: Any, count: int, reading: concurrent.futures.Future
) -> tuple[np.ndarray, np.ndarray]:
    padded, examples = reading.result()
    results = pmap.unshard(mapped(params, pmap.shard((examples["image"], padded))))
    return results[:count], examples["label"][:count]


class CachedLatents:
    """Random access to latents and labels in memory-mapped files.

    A row is {"encoded": float32 [V, h, w, m], "label": int32 []}.

    For `pipeline.train_iterator`: batches hold the same examples as those of the images, in the
    same order.
    """

    def __init__(self, paths: Sequence[pathlib.Path], of: Source, encoded: tuple[int, ...]):
        """Open the files; `encoded` is [V, h, w, m] of an image."""
        self._count, self.fingerprint, self.captions = len(of), of.fingerprint, captions_of(of)

        def read(i: int) -> np.ndarray:
            return _read(paths[i], Header(_row(encoded), (min(SHARD, len(of) - i * SHARD),)))

        # A mapped file is an open one, and of these a process may have a thousand.
        self._shard = functools.lru_cache(maxsize=OPEN)(read)
        for i in range(len(paths)):
            self._shard(i)

    def __len__(self) -> int:
        return self._count

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return the rows of a batch: encoded [B, V, h, w, m] and label [B]."""
        rows = np.stack([self._shard(i // SHARD)[i % SHARD] for i in indices.tolist()])
        return {ENCODED: rows[ENCODED], "label": rows["label"]}


def cached(
    directory: pathlib.Path,
    space: LatentSpace,
    params: Any,
    source: Source,
    *,
    flip: bool,
    sha256: str,
) -> CachedLatents:
    """Return the latents of `source`, encoding those that are not in `directory` yet.

    Several processes share the work; they must see one directory. A command that was stopped
    continues where it stopped.

    Args:
      directory: of this machine; created if need be.
      space: the encoder.
      params: of the first stage.
      source: the images.
      flip: whether to keep the latents of each image's mirror image, too.
      sha256: of the parameters.

    Raises:
      UsageError: the directory holds latents of other images or of another first stage.
      FailureError: it cannot be written, a file there is damaged, or another command encodes
        latents there.
    """
    origin = {
        "first_stage_sha256": sha256,
        "data": without_captions(source.fingerprint),
        "flip": flip,
        "images_in_a_file": SHARD,
    }
    count = -(-len(source) // SHARD)
    paths = [directory / f"latents-{i:05d}-of-{count:05d}.npy" for i in range(count)]

    def encode(params, examples):
        x = to_model_range(examples[0])
        versions = (x, x[:, :, ::-1]) if flip else (x,)
        return jnp.stack([space.encoded(params, version) for version in versions], axis=1)

    # Where all is there, several runs may begin at once.
    complete = hosts.gather_json(all(path.exists() for path in (directory / MANIFEST, *paths)))
    with (
        contextlib.nullcontext()
        if all(complete)
        else hosts.hold(directory, "encoding latents into it")
    ):
        with reporting(directory):
            _claim(directory, origin)
            if hosts.is_primary() and not all(complete):
                for leftover in directory.glob(".latents-*.tmp"):
                    leftover.unlink()
        hosts.check_shared(directory / MANIFEST)
        _encode(paths, encode, params, source)
        hosts.wait_for_all("all latents are there")
    image = jax.ShapeDtypeStruct((1, *source.image_shape), jnp.uint8)
    return CachedLatents(paths, source, jax.eval_shape(encode, params, (image,)).shape[1:])


def _encode(
    paths: Sequence[pathlib.Path],
    encode: Callable[[Any, tuple[chex.Array, ...]], chex.Array],
    params: Any,
    source: Source,
) -> None:
    """Write this process's share of the files that are missing."""
    from tqdm import tqdm  # which takes long to import

    mine = range(jax.process_index(), len(paths), jax.process_count())
    missing = [i for i in mine if not paths[i].exists()]
    total = sum(min(SHARD, len(source) - i * SHARD) for i in missing)
    with tqdm(total=total, desc="encoding", unit=" images", leave=False, disable=None) as bar:
        for i in missing:
            rows = np.arange(i * SHARD, min((i + 1) * SHARD, len(source)))
            parts = []
            for encoded, labels in _stream(encode, params, source, rows):
                parts.append(_table(encoded, labels))
                bar.update(len(labels))
            buffer = io.BytesIO()
            np.save(buffer, np.concatenate(parts))
            with reporting(paths[i]):
                write_atomically(paths[i], buffer.getvalue())


def _row(encoded: tuple[int, ...]) -> np.dtype:
    return np.dtype([(ENCODED, np.float32, encoded), ("label", np.int32)])


def _table(encoded: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return a row for each image, as `CachedLatents` reads it."""
    table = np.empty(len(labels), _row(encoded.shape[1:]))
    table[ENCODED], table["label"] = encoded, labels
    return table


def _claim(directory: pathlib.Path, origin: dict[str, Any]) -> None:
    """Write the origin of the latents into a new directory; refuse one that holds others."""
    path = directory / MANIFEST
    if not path.exists():
        if next(directory.glob("latents-*.npy"), None) is not None:
            raise UsageError(
                f"first_stage.cache: {directory} holds latents without a {MANIFEST}: name another "
                "directory."
            )
        if hosts.is_primary():
            write_atomically(path, (json.dumps(origin, indent=2) + "\n").encode())
        return
    try:
        found = parse(read_file(path, largest=LARGEST + 1), Table())
    except Malformed as error:
        raise FailureError(
            f"{path} is damaged ({error}): delete {directory} to encode again."
        ) from None
    pairs = differing({name: value for name, value in found.items() if name in origin}, origin)
    if pairs:
        named = ", ".join(
            f"{name} is {there} there, {here} here" for name, (there, here) in pairs.items()
        )
        raise UsageError(
            f"first_stage.cache: {directory} holds other latents ({named}): name another directory."
        )


def _read(path: pathlib.Path, expected: Header) -> np.ndarray:
    with reporting(path, "read"):
        try:
            return map_npy(path, expected)
        except BadArchive as error:
            raise FailureError(
                f"{path} is damaged ({error}): delete it, and it is encoded again."
            ) from error
