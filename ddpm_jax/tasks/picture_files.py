"""A drawing of the latent space as a PNG, with a JSON record of the same name."""

import os
from collections.abc import Mapping
from typing import Any

from ddpm_jax.errors import say
from ddpm_jax.experiments.identity import versions
from ddpm_jax.files import reporting
from ddpm_jax.monitoring.results import check_record, write_record
from ddpm_jax.plotting import grids as pictures
from ddpm_jax.tasks.image_generator import ImageGenerator
from ddpm_jax.tasks.interpolation import Drawing

WIDE_ENOUGH = 88  # pixels of an image, for a label of two words above it


def write_drawing(
    drawing: Drawing,
    generator: ImageGenerator,
    directory: os.PathLike,
    made_by: Mapping[str, Any],
    *,
    seed: int | None,
) -> None:
    """Draw a picture into a directory, and print its path.

    Args:
      drawing: what is drawn.
      generator: of the images in it.
      directory: of the run's results.
      made_by: the record's entries about the model.
      seed: of the noise; None if nothing is drawn at random.

    Raises:
      UsageError: a picture with other settings exists there.
      FailureError: an image that is not finite, or files that cannot be written.
    """
    trained, seeds = generator.trained, {} if seed is None else {"seed": seed}
    model = [f"step{trained.step}", trained.average, *(f"seed{value}" for value in seeds.values())]
    path = directory / f"{'_'.join([drawing.name, *model, generator.name()])}.png"
    settings = {**made_by, **seeds, **generator.record, **drawing.settings, "versions": versions()}
    record = path.with_suffix(".json")
    check_record(record, settings)
    drawn = drawing.draw()
    # The record first: a picture without one could be replaced unnoticed.
    write_record(record, settings | drawn.results)
    with reporting(path):
        grid = pictures.grid(drawn.images, columns=drawn.columns, min_pixels=WIDE_ENOUGH)
        pictures.save_png(path, pictures.with_labels(grid, columns=drawn.over, rows=drawn.before))
    say(f"{drawn.said}\n  {path}")
