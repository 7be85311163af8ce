"""Sampled images in the formats of other programs, made of the shards that are there already.

The shards stay: they are what a stopped command resumes from, and what `evaluate` reads.
"""

import os
import pathlib
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ddpm_jax.distributed import interrupt
from ddpm_jax.errors import UsageError
from ddpm_jax.files import as_path, is_remote, reporting
from ddpm_jax.generation.shards import iterate_shards, read_manifest
from ddpm_jax.plotting.grids import save_png

PNG = "png"  # the folder of single pictures


def write_pngs(directory: str | os.PathLike, labels: np.ndarray | None) -> list[pathlib.Path]:
    """Write each image of a directory of shards as `png/000000.png`; those there are kept.

    Args:
      directory: of the shards.
      labels: not written, as the names of files have none.

    Returns:
      The folder.

    Raises:
      FailureError: a file cannot be written.
      Stopped: by a signal or a time limit; pictures that are written stay.
    """
    del labels
    folder, i = as_path(directory) / PNG, 0
    with reporting(folder):
        for images in iterate_shards(directory):
            interrupt.check()
            for image in images:
                path = folder / f"{i:06d}.png"
                if not path.exists():
                    save_png(path, image)
                i += 1
    return [folder]


def write_openai(directory: str | os.PathLike, labels: np.ndarray | None) -> list[pathlib.Path]:
    """Write all images of a directory of shards as one NPZ, as OpenAI's code does.

    It is called `samples_50000x32x32x3.npz` and holds arr_0, uint8 [N, H, W, C], and with classes
    arr_1, int64 [N] (github.com/openai/guided-diffusion, scripts/image_sample.py). One that is
    there is kept. Images are written shard by shard, so the memory is that of one.

    Args:
      directory: of the shards, on this machine.
      labels: [N], None without classes.

    Returns:
      The file.

    Raises:
      UsageError: a directory in a bucket.
      FailureError: it cannot be written.
    """
    directory = as_path(directory)
    if is_remote(directory):
        raise UsageError(
            f"format openai writes one large file, and {directory} is in a bucket: name a "
            "directory of this machine, or take format npz."
        )
    shards = iterate_shards(directory)
    first = next(shards)
    shape = (read_manifest(directory)["num_images"], *first.shape[1:])
    path = directory / f"samples_{'x'.join(map(str, shape))}.npz"
    if path.exists():
        return [path]
    half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with reporting(path):
        try:
            with zipfile.ZipFile(half, "w", zipfile.ZIP_STORED) as archive:
                _write_array(archive, "arr_0", shape, np.dtype(np.uint8), [first], shards)
                if labels is not None:
                    labels = np.asarray(labels, np.int64)
                    _write_array(archive, "arr_1", labels.shape, labels.dtype, [labels])
            os.replace(half, path)
        finally:
            half.unlink(missing_ok=True)
    return [path]


def _write_array(
    archive: zipfile.ZipFile, name: str, shape: Sequence[int], dtype: np.dtype, *parts: Any
) -> None:
    """Write an array that comes in parts along its first axis."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for several in parts:
            for part in several:
                interrupt.check()
                member.write(np.ascontiguousarray(part).tobytes())


def _nothing_more(directory: str | os.PathLike, labels: np.ndarray | None) -> list[pathlib.Path]:
    """Leave the shards alone."""
    return []


# name -> what is written besides the shards: (directory, labels) -> paths to show
FORMATS: dict[str, Callable[[str | os.PathLike, np.ndarray | None], list[pathlib.Path]]] = {
    "npz": _nothing_more,
    "png": write_pngs,
    "openai": write_openai,
}
