"""A checkpoint directory -> a model ready to use: the checkpoint brings its own config."""

import importlib.metadata
import pathlib
import platform
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import __version__
from ddpm_jax.cli import config as configs
from ddpm_jax.cli.command import Parser
from ddpm_jax.cli.experiment import Experiment, build
from ddpm_jax.errors import UsageError
from ddpm_jax.training.checkpoint_reading import find_step, read_config, read_weights


def define_checkpoint_flags(parser: Parser) -> None:
    """Adds the flags that say which weights of which run."""
    parser.string("ckpt", None, "Directory of a training run: the --workdir of train.py.", metavar="DIR")
    parser.integer("ckpt_step", None, "Which of its checkpoints; the newest by default.", lower=0)
    parser.boolean("raw_weights", "Use the weights as trained instead of their moving average.")


def check_names_a_run(flags: Any) -> None:
    """Refuses a command line without --ckpt.

    Raises:
      UsageError: it is missing.
    """
    if not flags.ckpt:
        raise UsageError("--ckpt is missing: name the directory of a training run, as in --ckpt runs/digits.")


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
      UsageError: no such checkpoint, or not one of ours, or that of a classifier.
      FailureError: its files are damaged.
    """
    return _load(workdir, step, raw_weights, objective="diffusion")


def load_first_stage(workdir: str | pathlib.Path, *, step: int | None = None, raw_weights: bool = False) -> Loaded:
    """As `load`, but of a first stage.

    Raises:
      UsageError: as `load`, or it is none.
    """
    return _load(workdir, step, raw_weights, objective="first_stage")


def load_classifier(
    workdir: str | pathlib.Path, guided: Experiment, *, step: int | None = None, raw_weights: bool = False
) -> Loaded:
    """As `load`, but of a classifier; `guided` is the experiment of the model that it is to guide.

    Raises:
      UsageError: as `load`, or it is no classifier, or it was trained on other images or another noise.
    """
    classifier = _load(workdir, step, raw_weights, objective="classifier")
    ours, theirs = classifier.experiment, guided
    if ours.image_shape != theirs.image_shape:
        raise UsageError(
            f"The classifier of {workdir} reads images of {'x'.join(map(str, ours.image_shape))}, but the model makes "
            f"images of {'x'.join(map(str, theirs.image_shape))}: train the one for the other."
        )
    if not np.array_equal(ours.chain.betas, theirs.chain.betas) or ours.chain.time_scale != theirs.chain.time_scale:
        raise UsageError(
            f"The classifier of {workdir} was trained on another schedule or number of timesteps than the model: train "
            "it with the model's diffusion.schedule, beta_start, beta_end, num_timesteps and rescale_timesteps."
        )
    return classifier


def _load(workdir: str | pathlib.Path, step: int | None, raw_weights: bool, *, objective: str) -> Loaded:
    step = find_step(workdir, step)
    saved = read_config(workdir, step)
    experiment = build(configs.from_dict(saved, source=f"the config of {workdir}, step {step}"))
    theirs, wanted = (configs.OBJECTIVES[name] for name in (experiment.config.objective, objective))
    if theirs != wanted:
        raise UsageError(
            f"{workdir} holds {theirs} and not {wanted}: give the directory of a run whose config has "
            f"objective = {objective!r}."
        )
    item = "params" if raw_weights else "ema_params"
    params = read_weights(workdir, step, {item: experiment.params_shapes()})[item]
    return Loaded(experiment, params, step, "raw" if raw_weights else "ema")


def versions(*more: str) -> dict[str, str]:
    """Versions of what the numbers depend on, `more` packages among it, for records that say how a result was made."""
    others = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy", *more)}
    return {"python": platform.python_version(), "ddpm-jax": __version__} | others
