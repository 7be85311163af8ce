"""Observers of a training run: records and viewers, the bar, the grids, callbacks."""

import pathlib
from collections.abc import Callable
from typing import Any

from ddpm_jax import memory
from ddpm_jax.data.sources import Source
from ddpm_jax.distributed import hosts
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.models import Model
from ddpm_jax.monitoring.metric_writer import MetricWriter
from ddpm_jax.monitoring.profiling import Trace
from ddpm_jax.monitoring.progress import Progress
from ddpm_jax.monitoring.weights_and_biases import WeightsAndBiases
from ddpm_jax.text.tokenizer import Tokenizer
from ddpm_jax.training.callbacks import Callbacks
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.training_loop import Observers
from ddpm_jax.training_runs.evaluations import Evaluations
from ddpm_jax.training_runs.first_stage_grids import picture_writer
from ddpm_jax.training_runs.sample_grids import grid_writer


def make_observers(
    model: Model,
    source: Source,
    workdir: pathlib.Path,
    *,
    start: int,
    wandb: str | None,
    trace: Trace | None,
    callbacks: Callbacks,
    whole: Callable[[Any], Any],
    tokenizer: Tokenizer | None = None,
    evaluations: Evaluations | None = None,
) -> Observers:
    """Open the observers; only the primary process shows anything.

    Args:
      model: the run's.
      source: its training images.
      workdir: its directory.
      start: the step it starts from.
      wandb: a project of Weights & Biases.
      trace: profiles some steps.
      callbacks: the user's.
      whole: `Parallelism.whole`.
      tokenizer: of a model that reads texts.
      evaluations: metrics of samples, if any.

    Raises:
      FailureError: the records cannot be read or repaired.
      UsageError: a picture cannot be made of the data.
    """
    config = model.config
    writer, progress = hosts.Silent(), hosts.Silent()
    if hosts.is_primary():
        shown = [] if wandb is None else [WeightsAndBiases(workdir, wandb, configs.to_dict(config))]
        progress = Progress(config.train.num_steps, start_step=start)
        writer = MetricWriter(workdir, resume_step=start, viewers=[*shown, callbacks])
    draw = _make_draw(model, source, workdir, writer, progress, whole, tokenizer)

    def on_sample(step: int, state: TrainState) -> None:
        if draw is not None:
            draw(step, state)
            callbacks.on_sample(step, state)

    def on_evaluation(step: int, state: TrainState) -> None:
        if evaluations is not None:
            evaluations.evaluate(step, state, writer, progress)

    return Observers(
        writer, progress, on_sample, callbacks.on_checkpoint, trace, on_evaluation=on_evaluation
    )


def _make_draw(
    model: Model,
    source: Source,
    workdir: pathlib.Path,
    writer: MetricWriter,
    progress: Progress,
    whole: Callable[[Any], Any],
    tokenizer: Tokenizer | None,
) -> Callable[[int, TrainState], None] | None:
    """Return the function that draws the pictures of a step; None for a model without any."""
    match model.config.objective:
        case "diffusion":
            draw = grid_writer(
                model, source, workdir, writer, progress, whole=whole, tokenizer=tokenizer
            )
        case "first_stage":
            draw = picture_writer(model, workdir, writer, progress.say, whole=whole)
        case _:
            return None
    samples = model.config.train.num_samples
    return memory.explained(f"drawing {samples} samples", "lower train.num_samples")(draw)
