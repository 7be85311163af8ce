"""Files with the pictures of a first stage, from any checkpoint."""

import dataclasses
import pathlib

from ddpm_jax.experiments.identity import checkpoint_record, versions
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.files import reporting
from ddpm_jax.limits import MAX_SEED
from ddpm_jax.measuring.first_stage_pictures import Drawn, make_drawing
from ddpm_jax.monitoring.results import check_record, write_record
from ddpm_jax.plotting.grids import save_png
from ddpm_jax.settings import Settings, setting

MAX_SHOWN = 10_000  # images of one picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing(Settings):
    """What the pictures show."""

    num_samples: int = setting(16, "Held-out images that are shown.", lower=1, upper=MAX_SHOWN)
    seed: int = setting(0, "Of the images from the prior.", lower=0, upper=MAX_SEED)
    data_dir: str | None = setting(
        None,
        "Where the data is, if not where the training run found it.",
        path=True,
        metavar="DIR",
    )


def draw_pictures(trained: TrainedModel, settings: Drawing) -> Drawn:
    """Draw the pictures of a checkpoint.

    Raises:
      UsageError: there is no held-out split.
    """
    draw = make_drawing(
        trained.model,
        num_samples=settings.num_samples,
        seed=settings.seed,
        data_dir=settings.data_dir,
    )
    return draw(trained.params)


def write_pictures(
    trained: TrainedModel, settings: Drawing, out: pathlib.Path
) -> tuple[list[pathlib.Path], str | None]:
    """Write the pictures of a checkpoint into `out`; return their paths, and a warning if any.

    Raises:
      UsageError: pictures with other settings exist; what `draw_pictures` raises.
      FailureError: a file cannot be written.
    """
    ending = f"step{trained.step}_{trained.average}_n{settings.num_samples}_seed{settings.seed}"
    made_with = {
        **checkpoint_record(trained),
        "num_samples": settings.num_samples,
        "seed": settings.seed,
        "versions": versions(),
    }
    record = out / f"pictures_{ending}.json"
    check_record(record, made_with)
    drawn = draw_pictures(trained, settings)
    # The record first: a picture without one could be replaced unnoticed.
    write_record(record, made_with | drawn.numbers)
    paths = [out / f"{name.replace(' ', '_')}_{ending}.png" for name in drawn.pictures]
    for path, picture in zip(paths, drawn.pictures.values(), strict=True):
        with reporting(path):
            save_png(path, picture)
    return paths, drawn.warning
