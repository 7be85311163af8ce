"""Preparation of training over latents: the first stage, the scale, the cached latents.

Afterwards the first stage is in the run's checkpoints, and its directory is not needed any more.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from ddpm_jax.checkpoints.reader import find_step, read_config, saved_steps
from ddpm_jax.data.sources import Source
from ddpm_jax.distributed import hosts
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.codec import FrozenFirstStage
from ddpm_jax.experiments.config import config_file
from ddpm_jax.experiments.loading import load_first_stage
from ddpm_jax.experiments.model_files import is_foreign
from ddpm_jax.experiments.models import Model
from ddpm_jax.experiments.run_settings import first_stage_in
from ddpm_jax.files import as_path, is_folder, is_remote
from ddpm_jax.randomness import base_key, scale_key
from ddpm_jax.training import latent_cache
from ddpm_jax.variational.latent_space import Frozen

# training images that the scale is measured on: the standard error of it is below 1 %
SAMPLE = 4096
AS_INIT_FROM = "init_from"  # as first_stage.ckpt: the one of what that field names


def find_first_stage(
    config: ConfigDict, workdir: pathlib.Path, settings: dict[str, Any] | None
) -> tuple[FrozenFirstStage | None, Any]:
    """Return the first stage that `first_stage.ckpt` names and its parameters.

    Both are None if it names none.

    Args:
      config: of the run.
      workdir: its directory.
      settings: of the run that has begun in it, or None. That run is resumed without the first
        stage's directory, or with an empty one: its checkpoints hold the parameters, and none are
        returned; likewise of files of Stable Diffusion.

    Raises:
      UsageError: there is no such directory, or it holds no first stage or not the one that the run
        was begun with.
    """
    directory = _named(config)
    if not directory:
        return None, None
    if settings is None and saved_steps(workdir):
        settings = read_config(workdir, find_step(workdir))
    begun = first_stage_in(settings, source="the config of the run") if settings else None
    stable_diffusion = _is_stable_diffusion(config, directory)
    if begun is not None and not (stable_diffusion or saved_steps(directory)):
        return begun, None
    if begun is not None and stable_diffusion and saved_steps(workdir):
        return begun, None
    if not stable_diffusion and not is_folder(as_path(directory)):
        if config.first_stage.ckpt == AS_INIT_FROM:
            raise UsageError(
                f"init_from is {directory}, and there is no such directory or file: name one of "
                "Stable Diffusion, or a run."
            )
        name = as_path(directory).name
        known = name if config_file(name).is_file() else "vae_digits"
        raise UsageError(
            f"first_stage.ckpt is {directory}, and there is no such directory: train a first "
            f"stage, with the config {known}, say, and name its directory."
        )
    try:
        trained = load_first_stage(directory)
    except UsageError as error:
        raise UsageError(f"first_stage.ckpt: {error}") from error
    found = FrozenFirstStage(trained.model, trained.sha256)
    if begun is not None and begun.sha256 != found.sha256:
        raise UsageError(
            f"first_stage.ckpt: {directory} has changed since this run was begun with it (SHA-256 "
            f"{begun.sha256[:12]} then, {found.sha256[:12]} now): to go on with the one that is in "
            "the run's checkpoints, give the run's own directory as first_stage.ckpt; for "
            "the new one, another workdir."
        )
    return begun or found, trained.params


def _named(config: ConfigDict) -> str:
    """Return what `first_stage.ckpt` names, where it may say that it is what `init_from` names."""
    directory = config.first_stage.ckpt
    if directory != AS_INIT_FROM:
        return directory
    if not config.init_from:
        raise UsageError(
            f"first_stage.ckpt is {AS_INIT_FROM!r}, and init_from names nothing: set init_from to "
            "a directory or a file of Stable Diffusion, or to a run."
        )
    return config.init_from


def _is_stable_diffusion(config: ConfigDict, directory: str) -> bool:
    """Return whether the first stage is the VAE of Stable Diffusion; a hub name is init_from's."""
    there = not is_remote(as_path(directory)) and as_path(directory).exists()
    return is_foreign(directory) if there or directory == config.init_from else False


def freeze(model: Model, params: Any, source: Source) -> Frozen:
    """Return the first stage as the run keeps it, with the config's scale or a measured one."""
    scale = model.config.first_stage.latent_scale
    if not scale:
        scale = latent_cache.measure_scale(
            model.codec.space,
            params,
            source,
            key=scale_key(base_key(model.config.seed)),
            num_images=SAMPLE,
        )
    return Frozen(params, jnp.float32(scale))


def kept_latents(
    model: Model, frozen: Frozen, source: Source, *, whole: Callable[[Any], Any]
) -> Source | latent_cache.CachedLatents:
    """Return `source` itself, or with `first_stage.cache` the cached latents of its images.

    `whole` lays a part of the state out on every device: `Parallelism.whole`.

    Raises:
      UsageError: the directory holds other latents, or lies in a bucket, or is not shared by the
        processes.
      FailureError: it cannot be written.
    """
    directory = model.config.first_stage.cache
    if not directory:
        return source
    if is_remote(as_path(directory)):
        raise UsageError(
            f"first_stage.cache is {directory}, but latents are read from a disk at every step: "
            "name a directory of this machine."
        )
    return latent_cache.cached(
        as_path(directory),
        model.codec.space,
        hosts.local(whole(frozen.params)),
        source,
        flip=model.config.data.flip,
        sha256=model.codec.first_stage.sha256,
    )
