"""Inputs of the training loop from a config: compiled steps, cadences, the starting point.

Remedies for a step that runs out of memory are named here, too.
"""

import contextlib
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from ddpm_jax import memory
from ddpm_jax.distributed import hosts
from ddpm_jax.distributed.pmap import several
from ddpm_jax.experiments.trainer import Training
from ddpm_jax.files import reporting
from ddpm_jax.training.diagnosis import make_explain
from ddpm_jax.training.exhaustion import remedies_of_a_step
from ddpm_jax.training.options import LoopOptions
from ddpm_jax.training.reporting import SINCE_RECORD
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.training_loop import Start, Steps
from ddpm_jax.training_runs.sample_grids import PICTURED, grid_path


def make_steps(config: ConfigDict, training: Training) -> Steps:
    """Return the steps, mapped over the devices; the first call compiles them."""
    parallelism = training.parallelism
    explain = make_explain(
        training.objective,
        parts=jax.local_device_count() * config.optimizer.accumulate_steps,
        whole=parallelism.whole,
    )
    return Steps(
        parallelism.map_step(training.train_step),
        parallelism.map_step(several(training.train_step)),
        parallelism,
        explain,
    )


def make_options(config: ConfigDict) -> LoopOptions:
    """Return when the loop logs, samples and saves."""
    return LoopOptions(
        num_steps=config.train.num_steps,
        batch_size=config.train.batch_size,
        log_every=config.train.log_every,
        sample_every=config.train.sample_every,
        save_every=config.checkpoint.save_every,
        steps_per_call=config.train.steps_per_call,
        skip_nonfinite=config.train.skip_nonfinite,
        snapshot_every=config.ema.snapshot_every,
        eval_every=config.eval.every_steps if config.eval.metric else 0,
    )


def remedies(config: ConfigDict) -> str:
    """Say which fields to change if a step takes too much memory."""
    return remedies_of_a_step(
        batch_size=config.train.batch_size,
        accumulate_steps=config.optimizer.accumulate_steps,
        remat=config.model.remat,
        parallel=config.parallel,
        devices=jax.device_count(),
    )


def explained(config: ConfigDict) -> contextlib.AbstractContextManager[None]:
    """Return a context that explains how to change a step that runs out of memory."""
    return memory.explained(
        f"a training step of {config.train.batch_size} images", remedies(config)
    )


def make_start(
    config: ConfigDict, workdir: pathlib.Path, state: TrainState, position: dict[str, Any] | None
) -> Start:
    """Return where the loop starts, given the state and data item of a checkpoint."""
    owes_grid = _owes_grid(config, workdir, int(state.step))
    return Start(state, owes_grid, (position or {}).get(SINCE_RECORD, {}))


def _owes_grid(config: ConfigDict, workdir: pathlib.Path, step: int) -> bool:
    """Return whether the run was stopped between a checkpoint and the grid of its step."""
    if config.objective not in PICTURED or not make_options(config).is_grid_due(step):
        return False
    with reporting(grid_path(workdir, step), "read"):
        return hosts.gather_json(not grid_path(workdir, step).exists())[0]
