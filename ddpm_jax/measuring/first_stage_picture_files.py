"""The pictures of a first stage as files: during training, and of any checkpoint."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from ddpm_jax.distributed import hosts
from ddpm_jax.experiments.first_stages import FirstStageModel
from ddpm_jax.experiments.identity import versions
from ddpm_jax.experiments.loading import TrainedModel
from ddpm_jax.files import reporting
from ddpm_jax.limits import MAX_SEED
from ddpm_jax.measuring.first_stage_pictures import Drawn, make_drawing
from ddpm_jax.measuring.measurement import checkpoint_record
from ddpm_jax.monitoring.metric_writer import MetricWriter
from ddpm_jax.monitoring.results import check_record, write_record
from ddpm_jax.plotting.grids import save_png
from ddpm_jax.settings import Settings, setting
from ddpm_jax.training.state import TrainState
from ddpm_jax.training_runs.sample_grids import grid_path

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
    """Write the pictures of a checkpoint into `out`; return their places, and a warning if any.

    Raises:
      UsageError: pictures that were made otherwise are there; what `draw_pictures` raises.
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


def picture_writer(
    model: FirstStageModel,
    workdir: pathlib.Path,
    writer: MetricWriter,
    say: Callable[[str], None],
    *,
    whole: Callable[[Any], Any] = lambda params: params,
) -> Callable[[int, TrainState], None]:
    """Return on_sample(step, state), which writes pictures of `train.num_samples` images.

    Args:
      model: the run's.
      workdir: where the pictures go: the first where a diffusion model's grid would be, the others
        next to it.
      writer: gets the pictures and the numbers.
      say: prints a line for the person who watches: a collapse.
      whole: as in `grids.grid_writer`.

    Raises:
      UsageError: there is no such split.
    """
    config = model.config
    draw = make_drawing(model, num_samples=config.train.num_samples, seed=config.seed)

    def on_sample(step: int, state: TrainState) -> None:
        params = hosts.local(whole(state.ema_params))
        if not hosts.is_primary():
            return
        drawn = draw(params)
        # The record first: where the picture is, a resumed run does not draw it again.
        if drawn.numbers:
            writer.write(step, drawn.numbers)
            writer.flush()
        for name, picture in drawn.pictures.items():
            path = grid_path(workdir, step)
            path = path if name == "first stage" else path.with_name(f"{path.stem}_{name}.png")
            with reporting(path):
                save_png(path, picture)
            writer.image(step, name, picture)
        if drawn.warning:
            say(f"step {step}: {drawn.warning}")

    return on_sample
