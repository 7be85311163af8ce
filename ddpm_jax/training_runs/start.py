"""The start of a training run: its model, the weights that are not drawn, its first state."""

import pathlib
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ddpm_jax import memory
from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.data.sources import Source
from ddpm_jax.distributed import hosts
from ddpm_jax.distributed.pmap import bytes_per_device
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.denoising import Weights
from ddpm_jax.experiments.fine_tuning import Beginning, find_beginning
from ddpm_jax.experiments.latents import find_first_stage, freeze
from ddpm_jax.experiments.models import Model
from ddpm_jax.experiments.run_settings import INIT_FROM, frozen_first_stage, run_settings
from ddpm_jax.experiments.text_encoders import find_text_encoder, needs_encoder
from ddpm_jax.experiments.texts import find_tokenizer
from ddpm_jax.experiments.trainer import (
    Training,
    build_training,
    check_batch,
    init_state,
    state_shapes,
)
from ddpm_jax.text.tokenizer import Tokenizer
from ddpm_jax.training.state import TrainState
from ddpm_jax.training_runs.compiled_steps import remedies
from ddpm_jax.training_runs.reports import warn
from ddpm_jax.variational.latent_space import Frozen


class Prepared(NamedTuple):
    """The model of a run and all it needs besides data."""

    model: Model
    training: Training
    first_stage_params: Any  # None where there is none, or the run's checkpoints hold it
    beginning: Beginning | None  # the other run's weights that a new run begins with
    begun_from: dict[str, Any] | None  # their record in the run's settings
    tokenizer: Tokenizer | None  # of a model that reads texts
    text_params: Any = None  # of an encoder that was trained before; None as for first_stage_params

    def settings(self, source: Source) -> dict[str, Any]:
        """Return the settings that the run saves."""
        begun_from = {INIT_FROM: self.begun_from} if self.begun_from else {}
        return run_settings(self.model, source) | begun_from


def prepare(config: ConfigDict, workdir: pathlib.Path, begun: dict[str, Any] | None) -> Prepared:
    """Build the model and its training, and read the weights that are not drawn.

    Args:
      config: of the run.
      workdir: its directory.
      begun: the settings of the run that has begun there, if any.

    Raises:
      UsageError: a config that cannot work; a first stage or an `init_from` that is missing, or not
        the one the run was begun with; processes with different ones.
    """
    first_stage, first_stage_params = find_first_stage(config, workdir, begun)
    # the processes may read it, and keep its latents, in places of their own
    if first_stage is not None:
        hosts.check_equal(
            {
                "the digest of first_stage.ckpt": first_stage.sha256,
                "whether first_stage.cache is set": bool(config.first_stage.cache),
            }
        )
    model = build(config, first_stage)
    check_batch(config)
    training = build_training(model)
    beginning, begun_from = find_beginning(model, workdir, begun)
    digest = begun_from and begun_from["sha256"]
    hosts.check_equal({"the digest of the weights of init_from": digest})
    tokenizer, text_params = find_tokenizer(config, workdir), None
    if beginning is not None:
        tokenizer = beginning.tokenizer
    elif needs_encoder(model, workdir):
        tokenizer, text_params = find_text_encoder(model)
    return Prepared(
        model, training, first_stage_params, beginning, begun_from, tokenizer, text_params
    )


def first_state(
    prepared: Prepared, workdir: pathlib.Path, checkpointer: Checkpointer, source: Source
) -> tuple[TrainState, dict[str, Any] | None]:
    """Return (state, position in the data) of the newest whole checkpoint, or (a new state, None).

    Raises:
      UsageError: the first stage is missing; the checkpoint is beyond the last step.
      FailureError: no checkpoint is whole; there is no memory for the state.
    """
    model, training, beginning = prepared.model, prepared.training, prepared.beginning
    shapes = state_shapes(model, training)
    memory.check(bytes_per_device(shapes), "the state of the model", remedies(model.config))
    if checkpointer.latest_step() is not None:
        state, position = checkpointer.resume(shapes, warn)
        _check_not_beyond(model.config, workdir, int(state.step))
        return state, position
    if beginning is not None:
        for note in beginning.notes:
            warn(f"init_from: {note}")
        given = beginning.given, beginning.average
        return init_state(model, training, beginning.frozen, *given), None
    weights = Weights((), text=prepared.text_params)
    if frozen_first_stage(model) is not None:
        weights = weights._replace(frozen=_frozen_first_stage(prepared, source))
    elif prepared.text_params is None:
        return init_state(model, training), None
    return init_state(model, training, model.frozen_part(weights)), None


def _frozen_first_stage(prepared: Prepared, source: Source) -> Frozen:
    """Return the first stage, with the scale of its latents, as the state of a new run holds it."""
    model = prepared.model
    if prepared.first_stage_params is None:
        raise UsageError(
            f"first_stage.ckpt is {model.config.first_stage.ckpt}, and there is no such "
            "directory; this run has saved no checkpoint yet that the first stage would be in."
        )
    return freeze(model, prepared.first_stage_params, source)


def _check_not_beyond(config: ConfigDict, workdir: pathlib.Path, step: int) -> None:
    """Refuse a run that has been trained for longer than the config says."""
    if step > config.train.num_steps:
        raise UsageError(
            f"train.num_steps is {config.train.num_steps}, but the run in {workdir} is at step "
            f"{step} already: give more to train on, or another workdir; --ckpt_step of "
            "sample.py and evaluate.py takes an earlier checkpoint that is kept."
        )
