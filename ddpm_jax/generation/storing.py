"""Images written as shards, each whole or not at all, so that a stopped command can resume.

The images are made by `generating`. The format of a set on disk, and reading it, are in `shards`.
"""

import io
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ddpm_jax.archives import BadArchive, Header, read_npz
from ddpm_jax.distributed import hosts, interrupt
from ddpm_jax.errors import UsageError
from ddpm_jax.files import as_path, read_file, reporting, write_atomically
from ddpm_jax.generation.shards import MANIFEST, Shard, check_index, list_shards, read_manifest
from ddpm_jax.monitoring.results import check_same


def write_shards(
    directory: str | os.PathLike,
    make_batches: Callable[[np.ndarray], Iterable[tuple[np.ndarray, np.ndarray]]],
    *,
    num_images: int,
    shard_size: int,
    manifest: Mapping[str, Any],
    on_images: Callable[[int], None] | None = None,
) -> None:
    """Stream images 0..num_images-1 to `samples-00000-of-00050.npz`, ...; resume if stopped.

    Several processes call it together, with a directory that they share: process p of P makes the
    shards p, P + p, ... and it returns when all are there.

    A shard holds `images`, uint8 [n, H, W, C], and `index`, int64 [n]. It exists whole or not at
    all, and is always made of the same batches, so that a set of images completed after any number
    of kills equals one made without them, byte for byte. `manifest.json` is written first. Nothing
    existing is ever overwritten.

    Args:
      directory: created if necessary; another set of images in it is refused.
      make_batches: indices int64 [n] -> (indices, images) of all of them in order, in
        batches. A shard whose size is not a multiple of the batch size pads its last batch, so
        choose a multiple.
      num_images: of the whole set.
      shard_size: images in each shard but the last.
      manifest: everything needed to make the same images again, as JSON can store it: the digest of
        the weights, step, seed, steps, digests of pictures that are used, versions. `num_images`
        and `shard_size` are added. The field `checkpoint` is for a reader: the digests determine
        whether the images are the same.
      on_images: called with the number of finished images in the shards of this process: at the
        start, with those found on disk, and after every batch.

    Raises:
      UsageError: a size below 1, the directory holds a set made from another manifest (the fields
        that differ are named), or it is not the same for all processes.
      FailureError: the disk is full or cannot be written, an existing shard is damaged or of other
        images, or another command makes images there. Whole shards stay.
      Stopped: by a signal or a time limit. Whole shards stay, and the finished batches of the
        unfinished one, in a file `.samples-00000-of-00050.begun`.
    """
    for name, size in (("num_images", num_images), ("shard_size", shard_size)):
        if size < 1:
            raise UsageError(f"{name} is {size}: choose at least 1.")
    with hosts.hold(directory, "making images in it"):
        _write_shards(
            as_path(directory),
            make_batches,
            {**manifest, "num_images": num_images, "shard_size": shard_size},
            on_images or (lambda done: None),
        )


def _write_shards(
    directory: pathlib.Path,
    make_batches: Callable[[np.ndarray], Iterable[tuple[np.ndarray, np.ndarray]]],
    manifest: dict[str, Any],
    on_images: Callable[[int], None],
) -> None:
    with reporting(directory):
        _claim(directory, manifest)
        if hosts.is_primary():
            for leftover in directory.glob(".samples-*.tmp"):
                leftover.unlink()
    hosts.check_shared(directory / MANIFEST)
    shards = list_shards(directory, manifest["num_images"], manifest["shard_size"])
    mine = shards[jax.process_index() :: jax.process_count()]
    missing = [shard for shard in mine if not shard.path.exists()]
    for shard in mine:
        if shard not in missing:
            check_index(shard)
    total = sum(len(shard.index) for shard in mine)
    done = total - sum(len(shard.index) for shard in missing)
    on_images(done)
    for shard in missing:
        parts = _begun(shard)
        done += sum(map(len, parts))
        try:
            for indices, images in make_batches(shard.index[sum(map(len, parts)) :]):
                parts.append(images)
                done += len(indices)
                on_images(done)
                if done < total:
                    interrupt.check()
        except interrupt.Stopped as stopped:
            if parts:
                _save(shard, parts, shard.begun)
            raise interrupt.Stopped(stopped.wish, _kept(done, total, directory)) from None
        _save(shard, parts, shard.path)
        shard.begun.unlink(missing_ok=True)
    hosts.wait_for_all("all images are there")


def share(num_images: int, shard_size: int) -> int:
    """Return how many of the images `write_shards` makes in this process."""
    first, step = jax.process_index() * shard_size, jax.process_count() * shard_size
    return sum(min(shard_size, num_images - start) for start in range(first, num_images, step))


def _save(shard: Shard, parts: Sequence[np.ndarray], path: pathlib.Path) -> None:
    images, buffer = np.concatenate(parts), io.BytesIO()
    np.savez(buffer, images=images, index=shard.index[: len(images)])
    with reporting(path):
        write_atomically(path, buffer.getvalue())


def _begun(shard: Shard) -> list[np.ndarray]:
    """Return the images of the shard that a stopped command had made, uint8 [n, H, W, C].

    They are the only element of a list, which is empty where there are none.
    """
    if not shard.begun.exists():
        return []
    with reporting(shard.begun, "read"):
        data = read_file(shard.begun)
    headers = {
        "images": Header(np.dtype(np.uint8), (None, None, None, None)),
        "index": Header(np.dtype(np.int64), (None,)),
    }
    try:
        images, index = read_npz(data, headers).values()
    except BadArchive:
        return []  # they are made again
    fits = len(images) == len(index) < len(shard.index) and np.array_equal(
        index, shard.index[: len(index)]
    )
    return [images] if fits else []


def _kept(done: int, total: int, directory: os.PathLike) -> str:
    if not done:
        return f"no batch of {directory} was done yet: a smaller --batch_size is done sooner."
    return (
        f"{done} of {total} images are kept in {directory}; the same command goes on with the rest."
    )


def _claim(directory: pathlib.Path, manifest: dict[str, Any]) -> None:
    """Write the manifest into a directory without one; refuse a directory with other images."""
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file: name a directory for the images.")
    manifest = json.loads(json.dumps(manifest))  # what a reader will find: tuples are lists there
    found = read_manifest(directory)
    if found is None:
        if next(directory.glob("samples-*.npz"), None) is not None:
            raise UsageError(
                f"{directory} holds images without a {MANIFEST}: name another directory."
            )
        if hosts.is_primary():
            write_atomically(directory / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        return
    check_same(f"{directory} holds images", found, manifest)
