"""The samples that metrics measure, as shards in the directory of results.

They are made once for all metrics of a command, and a command that was stopped goes on with them.
"""

import contextlib
import pathlib
from collections.abc import Iterator

import numpy as np

from ddpm_jax.distributed import interrupt
from ddpm_jax.experiments.identity import checkpoint_record
from ddpm_jax.generation.shards import MANIFEST, read_shards
from ddpm_jax.measuring.evaluation_settings import SampleQuality
from ddpm_jax.measuring.measured_samples import draw_samples
from ddpm_jax.tasks.image_generator import ImageGenerator
from ddpm_jax.tasks.sample_files import Samples, folder_name, write_samples

SAMPLES = "samples"  # the folder of all sets of samples, in the directory of results


def write_kept_samples(
    generator: ImageGenerator, settings: SampleQuality, directory: pathlib.Path
) -> pathlib.Path:
    """Make the samples that are not there yet, and return the folder of their shards.

    Raises:
      UsageError, FailureError, Stopped: as `storing.write_shards`.
    """
    folder = _folder(generator, settings, directory)
    write_samples(generator, folder, checkpoint_record(generator.trained), _samples(settings))
    return folder


def kept_samples(
    generator: ImageGenerator, settings: SampleQuality, directory: pathlib.Path | None
) -> np.ndarray:
    """Return samples, uint8 [N, H, W, C], made or read; None as `directory` keeps nothing.

    Raises:
      UsageError, FailureError, Stopped: as `write_kept_samples`.
    """
    if directory is None:
        return draw_samples(generator, settings)
    return read_shards(write_kept_samples(generator, settings, directory))


@contextlib.contextmanager
def saying_what_is_kept(
    generator: ImageGenerator, settings: SampleQuality, directory: pathlib.Path | None
) -> Iterator[None]:
    """Say of what is stopped here that its samples are kept, if they are."""
    try:
        yield
    except interrupt.Stopped as stopped:
        folder = None if directory is None else _folder(generator, settings, directory)
        if stopped.kept or folder is None or not (folder / MANIFEST).exists():
            raise
        raise interrupt.Stopped(
            stopped.wish, f"the samples in {folder} are kept; the same command goes on with them."
        ) from None


def _folder(
    generator: ImageGenerator, settings: SampleQuality, directory: pathlib.Path
) -> pathlib.Path:
    return directory / SAMPLES / folder_name(generator, _samples(settings))


def _samples(settings: SampleQuality) -> Samples:
    return Samples(
        num_samples=settings.num_samples, batch_size=settings.batch_size, seed=settings.seed
    )
