"""Reading a set of images on disk: its manifest and shards `samples-00000-of-00050.npz`.

`storing` writes them.
"""

import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.archives import BadArchive, Header, read_npz
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.files import as_path, read_file, reporting
from ddpm_jax.schema import LARGEST, Malformed, Table, Whole, parse

MANIFEST = "manifest.json"
_SIZES = Table({"num_images": Whole(1), "shard_size": Whole(1)})


class Shard(NamedTuple):
    path: pathlib.Path
    index: np.ndarray  # int64 [n]

    @property
    def begun(self) -> pathlib.Path:
        """The file that keeps its first batches until it is complete."""
        return self.path.with_name(f".{self.path.stem}.begun")


def read_shards(directory: str | os.PathLike, count: int | None = None) -> np.ndarray:
    """Return the images that `write_shards` wrote, in the order of their index.

    uint8 [N, H, W, C].

    Args:
      directory: where the images are.
      count: the number of first images to read; None: all.

    Raises:
      UsageError, FailureError: as `iterate_shards`.
    """
    return np.concatenate(list(iterate_shards(directory, count)))[:count]


def iterate_shards(directory: str | os.PathLike, count: int | None = None) -> Iterator[np.ndarray]:
    """Yield the images of each shard, uint8 [n, H, W, C], in the order of their index.

    Args:
      directory: where the images are.
      count: the number of first images to read, all of their shards; None: all.

    Raises:
      UsageError: no images here, or not yet all of those requested.
      FailureError: a file is damaged, or holds other images than its name states.
    """
    shards = whole_shards(directory, count)
    shape = None
    for shard in shards:
        images = read_shard(shard)
        shape = shape or images.shape[1:]
        if images.shape[1:] != shape:
            raise FailureError(
                f"{shard.path} holds images of another size than {shards[0].path.name}: delete it."
            )
        yield images


def whole_shards(directory: str | os.PathLike, count: int | None = None) -> list[Shard]:
    """Return the shards of a directory, which are all there; raise as `iterate_shards`."""
    directory = as_path(directory)
    manifest = read_manifest(directory)
    if manifest is None:
        raise UsageError(
            f"{directory} holds no {MANIFEST}: name a directory that sampled images were written "
            "to."
        )
    shards = list_shards(directory, manifest["num_images"], manifest["shard_size"])
    shards = [shard for shard in shards if count is None or shard.index[0] < count]
    missing = [shard.path.name for shard in shards if not shard.path.exists()]
    if missing:
        raise UsageError(
            f"{directory} lacks {len(missing)} of {len(shards)} shards, {missing[0]} first: "
            "start the command that writes them again, and it will go on where it stopped."
        )
    return shards


def list_shards(directory: pathlib.Path, num_images: int, shard_size: int) -> list[Shard]:
    count = -(-num_images // shard_size)
    indices = np.split(np.arange(num_images), range(shard_size, num_images, shard_size))
    return [
        Shard(directory / f"samples-{i:05d}-of-{count:05d}.npz", index)
        for i, index in enumerate(indices)
    ]


def read_manifest(directory: pathlib.Path) -> dict[str, Any] | None:
    path = directory / MANIFEST
    with reporting(path, "read"):
        data = read_file(path, largest=LARGEST + 1) if path.exists() else None
    try:
        return None if data is None else parse(data, _SIZES)
    except Malformed as error:
        raise FailureError(
            f"{path} is damaged ({error}): name another directory, or restore this file."
        ) from None


def check_index(shard: Shard) -> None:
    """Check the indices of a shard's images, without reading the images."""
    _check_numbers(shard, _arrays(shard, {"index": _numbers(shard)})["index"])


def read_shard(shard: Shard) -> np.ndarray:
    """Return the images of a shard, uint8 [n, H, W, C].

    Raises:
      FailureError: the file is damaged, or holds other images than its name states.
    """
    images = Header(np.dtype(np.uint8), (len(shard.index), None, None, None))
    images, index = _arrays(shard, {"images": images, "index": _numbers(shard)}).values()
    _check_numbers(shard, index)
    return images


def _numbers(shard: Shard) -> Header:
    return Header(np.dtype(np.int64), shard.index.shape)


def _arrays(shard: Shard, headers: Mapping[str, Header]) -> dict[str, np.ndarray]:
    with reporting(shard.path, "read"):
        data = read_file(shard.path)
    try:
        return read_npz(data, headers)
    except BadArchive as error:
        raise FailureError(
            f"{shard.path} is damaged ({error}): delete it and sample again."
        ) from error


def _check_numbers(shard: Shard, index: np.ndarray) -> None:
    if not np.array_equal(index, shard.index):
        raise FailureError(
            f"{shard.path} holds other images than its name says: delete it and sample again."
        )
