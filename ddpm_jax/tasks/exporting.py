"""Models that read texts, written for other programs: as diffusers' directory, as LoRA's file."""

import functools
import os
import pathlib

import jax
import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.chains import has_learned_levels
from ddpm_jax.experiments.loading import load_updates
from ddpm_jax.experiments.models import DiffusionModel
from ddpm_jax.experiments.run_settings import frozen_first_stage
from ddpm_jax.experiments.scheduler_fields import facts_in
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.files import as_path, is_remote
from ddpm_jax.interop.diffusers_writing import pipeline_from_params, write_pipeline
from ddpm_jax.interop.lora_files import write_lora
from ddpm_jax.interop.pipeline_params import Networks, PipelineParams
from ddpm_jax.interop.schedulers import scheduler_config
from ddpm_jax.models.text_conditioned import TextConditioned
from ddpm_jax.text.tokenizer_files import write_tokenizer

LICENSE = "unknown"  # of the weights, where nothing is said


def check_is_of_others(trained: TrainedModel) -> None:
    """Refuse a model that is sampled in few steps or has learned its noise levels.

    Other projects would sample its network on a chain that it was not trained for.

    Raises:
      UsageError: it is such a model.
    """
    config = getattr(trained.model, "config", None)
    if config is None:
        return
    if few := config.distill.evaluations or config.mean_flow.evaluations:
        what = f"is a model of {few} steps" if few > 1 else "is a model of one step"
    elif has_learned_levels(config):
        what = "has learned its noise levels"
    else:
        return
    raise UsageError(
        f"{trained.directory} {what}, and other projects would sample it on a chain of many given "
        "ones: choose the format safetensors, which keeps its config."
    )


def write_diffusers(
    trained: TrainedModel, directory: str | os.PathLike, *, license: str = LICENSE
) -> None:
    """Write a model as a directory that diffusers' `StableDiffusionPipeline` loads.

    Args:
      trained: a model of texts over the latents of a VAE, low-rank updates merged.
      directory: where; nothing may be there yet.
      license: of the weights, for the model card.

    Raises:
      UsageError: it is another kind of model, or has a network that diffusers lacks, or the
        directory exists; what `check_is_of_others` raises.
      FailureError: it cannot be written.
    """
    check_is_of_others(trained)
    model, weights = trained.model, trained.weights
    first_stage = frozen_first_stage(model)
    if not isinstance(model, DiffusionModel) or model.encoder is None or first_stage is None:
        raise UsageError(
            f"{trained.directory} cannot be written for diffusers, which has Stable Diffusion: a "
            "U-Net that reads texts, over the latents of a VAE."
        )
    learned = isinstance(model.network, TextConditioned)
    networks = Networks(
        model.network.network if learned else model.network,
        first_stage.model.network,
        model.encoder,
        float(np.asarray(weights.frozen.scale)),
    )
    params = PipelineParams(
        weights.params["network"] if learned else weights.params,
        weights.frozen.params,
        model.text_params(weights),
    )
    pipeline = pipeline_from_params(
        networks,
        jax.tree.map(np.asarray, params),
        scheduler=scheduler_config(facts_in(model.config)),
        sample_size=model.shape[0],
    )
    write = functools.partial(write_tokenizer, trained.tokenizer)
    write_pipeline(directory, pipeline, tokenizer=write, license=license)


def new_file(file: str | os.PathLike, *endings: str) -> pathlib.Path:
    """Return the path of a file that is to be written, ".safetensors" unless `endings` are given.

    Raises:
      UsageError: it is in a bucket, exists, or has another ending.
    """
    path, endings = as_path(file), endings or (".safetensors",)
    if is_remote(path) or path.exists() or path.suffix not in endings:
        raise UsageError(
            f"{path} is in a bucket, exists, or does not end in {' or '.join(endings)}: name a new "
            "local file."
        )
    return pathlib.Path(path)


def export_lora(
    workdir: str | os.PathLike,
    file: str | os.PathLike,
    *,
    step: int | None = None,
    raw_weights: bool = False,
) -> None:
    """Write the low-rank updates of a run as diffusers and PEFT name them.

    Args:
      workdir: of the run.
      file: a new safetensors file; `lora_files.FILE` is what diffusers looks for in a directory.
      step: which checkpoint; the newest by default.
      raw_weights: as trained, instead of their moving average.

    Raises:
      UsageError: the run trained all weights, or its encoder of texts; the file exists.
      FailureError: it cannot be read or written.
    """
    path = new_file(file)
    model, updates = load_updates(workdir, step=step, raw_weights=raw_weights)
    learned = isinstance(model.network, TextConditioned)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lora(
        path,
        updates["network"] if learned else updates,
        model.network.network if learned else model.network,
        scale=model.scale,
    )
