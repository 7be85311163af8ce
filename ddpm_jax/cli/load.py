"""A checkpoint directory -> a model ready to use: the checkpoint brings its own config."""

import importlib.metadata
import pathlib
import platform
from typing import Any, NamedTuple

from ddpm_jax import __version__
from ddpm_jax.cli import config as configs
from ddpm_jax.cli.experiment import Experiment, build
from ddpm_jax.training import checkpoint


class Loaded(NamedTuple):
    """A trained model."""

    experiment: Experiment
    params: Any
    step: int
    weights: str  # "ema" or "raw"


def load(workdir: str | pathlib.Path, *, step: int | None = None, raw_weights: bool = False) -> Loaded:
    """Reads a checkpoint's config and its weights: the EMA, or with `raw_weights` those that were trained.

    Args:
      workdir: the directory of a training run.
      step: which checkpoint; the newest by default.
      raw_weights: see above.

    Raises:
      UsageError: no such checkpoint, or not one of ours.
      FailureError: its files are damaged.
    """
    step = checkpoint.find_step(workdir, step)
    saved = checkpoint.read_config(workdir, step)
    experiment = build(configs.from_dict(saved, source=f"the config of {workdir}, step {step}"))
    item = "params" if raw_weights else "ema_params"
    params = checkpoint.read_weights(workdir, step, {item: experiment.params_shapes()})[item]
    return Loaded(experiment, params, step, "raw" if raw_weights else "ema")


def versions(*more: str) -> dict[str, str]:
    """Versions of what the numbers depend on, `more` packages among it, for records that say how a result was made."""
    others = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy", *more)}
    return {"python": platform.python_version(), "ddpm-jax": __version__} | others
