"""The identity of a model in records and manifests, by which two models are compared."""

import importlib.metadata
import platform
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import __version__
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.run_settings import FIRST_STAGE, frozen_first_stage
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.randomness import IMPLEMENTATION

# Groups and fields of a config that, with the weights, decide what a model computes.
DECIDING = (
    "objective",
    "data.image_size",
    "data.channels",
    "diffusion.",
    "model.",
    "dit.",
    "linear_unet.",
    "edm_unet.",
    "condition.",
    "text.",
    "text_unet.",
    "scheduler.",
    "first_stage.",
)
SCALE_TOLERANCE = 0.05  # of scales that two runs have measured, each to about 1 %


def identity(trained: TrainedModel) -> dict[str, Any]:
    """Return what identifies the model of a result, whatever its directory holds later.

    The result is JSON-able.

    The digest is computed from the weights in memory, not from the checkpoint's files: the files of
    one state differ from save to save, while a copy, or the same average in two checkpoints, has
    the same weights.
    """
    config = _set_fields(trained.model.config)
    first_stage = frozen_first_stage(trained.model)
    if first_stage is not None:
        config[FIRST_STAGE] = _set_fields(first_stage.model.config)
    return {"weights_sha256": trained.sha256, "config": config, "random_numbers": IMPLEMENTATION}


def checkpoint_record(trained: TrainedModel) -> dict[str, Any]:
    """Return the entries of a record about its model."""
    return {
        "checkpoint": trained.origin,
        "checkpoint_step": trained.step,
        "weights": trained.average,
        **identity(trained),
    }


def _set_fields(config: ConfigDict) -> dict[str, Any]:
    """Return the deciding fields that differ from today's defaults: new ones may be added."""
    defaults = dict(configs.flatten(configs.to_dict(configs.default_config())))
    return {
        name: value
        for name, value in configs.flatten(configs.to_dict(config))
        if name.startswith(DECIDING) and name not in configs.RESUMABLE and value != defaults[name]
    }


def is_of_one_kind(model: TrainedModel, other: TrainedModel) -> bool:
    """Return whether both are models over pixels, or over the same latents.

    Latents are the same if the first stage is, and the scales differ by chance only.
    """
    ours, theirs = (frozen_first_stage(trained.model) for trained in (model, other))
    if ours is None or theirs is None:
        return ours is theirs
    scales = (np.asarray(trained.weights.frozen.scale) for trained in (model, other))
    return ours.sha256 == theirs.sha256 and np.isclose(*scales, rtol=SCALE_TOLERANCE)


def versions(*more: str) -> dict[str, str]:
    """Return the versions that results depend on, `more` packages included, for records."""
    names = ("jax", "jaxlib", "flax", "numpy", *more)
    others = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), "ddpm-jax": __version__} | others
