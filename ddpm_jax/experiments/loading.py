"""Trained models read from the directory of their run, whose checkpoint holds the config.

What reads the files of other projects is imported where it is needed: a run needs none of it.
"""

import functools
import os
import pathlib
from typing import Any

import jax

from ddpm_jax.checkpoints.reader import MissingFields, find_step, read_config, read_weights
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.denoising import Weights
from ddpm_jax.experiments.file_options import FileOptions, LowRank
from ddpm_jax.experiments.first_stages import FirstStageModel
from ddpm_jax.experiments.lora_models import LoraModel
from ddpm_jax.experiments.model_files import check_is_whole, is_foreign, open_model
from ddpm_jax.experiments.models import DiffusionModel, Model
from ddpm_jax.experiments.owners import OBJECTIVES
from ddpm_jax.experiments.run_settings import (
    FIRST_STAGE,
    class_names_in,
    contents_in,
    frozen_first_stage,
    model_from_settings,
)
from ddpm_jax.experiments.texts import find_tokenizer
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.experiments.training_params import with_training_params, without_training_params
from ddpm_jax.families.recognition import Recognised
from ddpm_jax.files import as_path
from ddpm_jax.monitoring.results import weights_digest
from ddpm_jax.randomness import base_key


def load_trained(
    workdir: str | pathlib.Path,
    objective: str | None = "diffusion",
    *,
    step: int | None = None,
    raw_weights: bool = False,
    dtype: str | None = None,
    files: FileOptions | None = None,
    lora: str | os.PathLike | None = None,
    lora_scale: float = 1.0,
) -> TrainedModel:
    """Read a checkpoint's config and its weights.

    Args:
      workdir: the directory of a training run; or a model of another project, as
        `model_files.open_model` finds it.
      objective: that of the run: a key of `OBJECTIVES`; None for any.
      step: which checkpoint; the newest by default.
      raw_weights: the weights as trained, instead of their moving average.
      dtype: of the computation, and of the weights of Stable Diffusion: a key of `DTYPES`; None for
        that of the run's config, and otherwise float32.
      files: how the files of another project are read.
      lora: a file of low-rank updates (`interop.lora_files`), which are merged.
      lora_scale: further factor of these, 0 to 100.

    Raises:
      UsageError: no such checkpoint, or not one of this package, or one with another objective; a
        factor out of its range.
      FailureError: its files are damaged.
    """
    LowRank(lora=lora, lora_scale=lora_scale)  # which checks them
    if lora is not None:
        from ddpm_jax.experiments.lora_merging import with_lora
        from ddpm_jax.interop.lora_files import read_lora

        updates = read_lora(lora)  # what cannot be read is refused before a model is
        given = {"step": step, "raw_weights": raw_weights, "dtype": dtype, "files": files}
        trained = load_trained(workdir, objective, **given)
        return with_lora(trained, lora, updates, scale=lora_scale)
    if is_foreign(workdir):
        trained = _load_foreign(workdir, step, files, dtype=dtype, raw_weights=raw_weights)
        _check_objective(workdir, trained.model, objective)
        return trained
    _check_own(workdir, files)
    step = find_step(workdir, step)
    settings = read_config(workdir, step)
    if dtype is not None:
        settings["model"]["dtype"] = dtype
    model = model_from_settings(settings, source=f"the config of {workdir}, step {step}")
    _check_objective(workdir, model, objective)
    weights, kind = _read_kind(workdir, step, model, raw_weights=raw_weights)
    if isinstance(model, DiffusionModel):
        model = model.at_levels_of(weights)
    return TrainedModel(
        model,
        weights,
        step,
        kind,
        weights_digest(weights),
        class_names_in(settings),
        contents_in(settings),
        as_path(workdir),
        find_tokenizer(model.config, workdir),
        raw_is_chosen=raw_weights,
    )


def _load_foreign(
    path: str | pathlib.Path, step: int | None, files: FileOptions | None, **options: Any
) -> TrainedModel:
    _check_no_step(path, step)
    found = open_model(path, files)
    if isinstance(found, Recognised):
        return load_network(found, **options)
    from ddpm_jax.experiments.pipelines import load_pipeline

    return load_pipeline(found, **options)


def load_network(
    found: Recognised, *, dtype: str | None = None, raw_weights: bool = False
) -> TrainedModel:
    """Read a network of another project, and the first stage that it is over, if any.

    Raises:
      UsageError: as `foreign_models.foreign_config`, `load_foreign` and `load_first_stage`.
    """
    from ddpm_jax.experiments.foreign_models import foreign_config, load_foreign

    config = foreign_config(found.foreign, found.request)
    directory = config.first_stage.ckpt
    first_stage = load_first_stage(directory) if directory else None
    return load_foreign(
        found, config, first_stage=first_stage, dtype=dtype, raw_weights=raw_weights
    )


def _check_no_step(path: str | pathlib.Path, step: int | None) -> None:
    if step is not None:
        raise UsageError(f"{path} holds one set of weights: leave out the step.")


def _check_objective(path: str | pathlib.Path, model: Model, objective: str | None) -> None:
    theirs = model.config.objective
    if objective not in (None, theirs):
        raise UsageError(
            f"{path} holds {OBJECTIVES[theirs]} and not {OBJECTIVES[objective]}: give the "
            f"directory of a run whose config has objective = {objective!r}."
        )


def _check_own(workdir: str | pathlib.Path, files: FileOptions | None) -> None:
    """Refuse part of a model of others, and settings of other people's files for a run.

    Raises:
      UsageError: it is one, or one is given.
    """
    check_is_whole(workdir)
    for name in files.given if files else ():
        raise UsageError(
            f"{name} is for the files of other projects, and {workdir} is none of these: leave it "
            "out."
        )


def load_updates(
    workdir: str | os.PathLike, *, step: int | None = None, raw_weights: bool = False
) -> tuple[LoraModel, Any]:
    """Return (model, its updates alone) of a run that trained low-rank updates.

    Raises:
      UsageError: as `load_trained`, or it trained all weights.
    """
    if is_foreign(workdir):
        raise UsageError(f"{workdir} is no training run, and has no low-rank updates of its own.")
    step = find_step(workdir, step)
    settings = read_config(workdir, step)
    model = model_from_settings(settings, source=f"the config of {workdir}, step {step}")
    if not isinstance(model, LoraModel):
        raise UsageError(f"{workdir} trained all weights (lora.rank is 0): it has no updates.")
    item = "params" if raw_weights else "ema_params"
    return model, read_weights(workdir, step, {item: model.params_shapes()})[item]


def _read_kind(
    workdir: str | pathlib.Path, step: int, model: Model, *, raw_weights: bool
) -> tuple[Weights, str]:
    """Return (the average of the weights, or these as trained; which: "ema" or "raw").

    A run that was imported from files without an average has the weights as trained alone, and they
    are read whatever is asked for.

    Raises:
      UsageError: the weights as trained are asked for, and the run has the average alone.
    """
    try:
        item = "params" if raw_weights else "ema_params"
        weights = _read_weights(workdir, step, model, item)
    except MissingFields as error:
        if raw_weights and "ema_params" in error.saved:
            raise UsageError(
                f"raw_weights: {workdir} holds no weights as trained, only their average."
            ) from error
        if raw_weights or "params" not in error.saved:
            raise
        return _read_weights(workdir, step, model, "params"), "raw"
    return weights, "raw" if raw_weights else "ema"


def _read_weights(workdir: str | pathlib.Path, step: int, model: Model, item: str) -> Weights:
    shapes = model.params_shapes()
    if item == "params":
        shapes = jax.eval_shape(
            functools.partial(with_training_params, model.config), shapes, base_key(0)
        )
    template = {item: shapes}
    if not isinstance(model, FirstStageModel) and jax.tree.leaves(model.frozen_shapes()):
        template["frozen"] = model.frozen_shapes()
    saved = read_weights(workdir, step, template)
    params = without_training_params(saved[item])
    if isinstance(model, FirstStageModel):
        return Weights(params)
    return model.weights(params, saved.get("frozen", ()))


def load_first_stage(
    workdir: str | pathlib.Path,
    *,
    step: int | None = None,
    raw_weights: bool = False,
    dtype: str | None = None,
    files: FileOptions | None = None,
) -> TrainedModel:
    """Read a first stage, or the frozen one of a model over latents; see `load_trained`.

    Raises:
      UsageError: as `load_trained`, or there is none.
    """
    if is_foreign(workdir):
        if raw_weights:
            raise UsageError(f"{workdir} has one VAE, with no raw weights: leave them out.")
        _check_no_step(workdir, step)
        found = open_model(workdir, files)
        if isinstance(found, Recognised):
            raise UsageError(f"{workdir} holds {found.foreign.family} and no first stage.")
        from ddpm_jax.experiments.pipelines import load_vae

        return load_vae(found, dtype=dtype)
    _check_own(workdir, files)
    step = find_step(workdir, step)
    settings = read_config(workdir, step)
    if dtype is not None:
        own = settings[FIRST_STAGE]["config"] if FIRST_STAGE in settings else settings
        own["model"]["dtype"] = dtype
    model = model_from_settings(settings, source=f"the config of {workdir}, step {step}")
    first_stage = frozen_first_stage(model)
    if first_stage is None:
        return load_trained(workdir, "first_stage", step=step, raw_weights=raw_weights, dtype=dtype)
    if raw_weights:
        raise UsageError(
            f"{workdir} holds its first stage as it was frozen, with no raw weights: leave them "
            "out."
        )
    saved = read_weights(workdir, step, {"frozen": model.frozen_shapes()})
    params = model.weights((), saved["frozen"]).frozen.params
    sha256 = weights_digest(params)
    return TrainedModel(
        first_stage.model, Weights(params), step, "frozen", sha256, directory=as_path(workdir)
    )
