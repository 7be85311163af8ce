"""The pictures of a first stage that a run draws while it trains."""

import pathlib
from collections.abc import Callable
from typing import Any

from ddpm_jax.distributed import hosts
from ddpm_jax.experiments.first_stages import FirstStageModel
from ddpm_jax.files import reporting
from ddpm_jax.measuring.first_stage_pictures import make_drawing
from ddpm_jax.monitoring.metric_writer import MetricWriter
from ddpm_jax.plotting.grids import save_png
from ddpm_jax.training.state import TrainState
from ddpm_jax.training_runs.sample_grids import grid_path


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
      whole: as in `sample_grids.grid_writer`.

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
