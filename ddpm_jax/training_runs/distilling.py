"""A model of few steps, made of a trained one: `ddpm_jax.distill`."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.distill_fields import MAX_STEPS, METHODS, UNREAD
from ddpm_jax.experiments.fields import FIELDS
from ddpm_jax.experiments.latents import AS_INIT_FROM
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.experiments.models import DiffusionModel
from ddpm_jax.experiments.run_settings import frozen_first_stage
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.randomness import check_settings
from ddpm_jax.settings import Settings, setting
from ddpm_jax.training.callbacks import Callback, check_callbacks
from ddpm_jax.training_runs.training_run import TrainingResult, run_training
from ddpm_jax.training_runs.training_settings import TrainingRun

# An update of consistency tuning evaluates the network once more without gradients, one of
# progressive distillation twice: about 4/3 and 5/3 of an update of diffusion's.
SHARE_OF_UPDATES = {"consistency": 0.7, "progressive": 0.6}
SHARE_OF_LEARNING_RATE = 0.5
# |x_0|² / (2 σ²), at which noise of σ alone is 0.1 nats from noisy images whose numbers have mean
# square 1/2
PRIOR_NATS, MEAN_SQUARE = 0.1, 0.5
LARGEST_SIGMA = 80.0  # Karras et al. 2022, table 1
# DDIM steps of the first teacher of progressive distillation, at least: near the limit of many
FIRST_STEPS = 64
WARMUP = 0.1  # of the updates of a round, at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation(Settings):
    """What becomes of the model"""

    steps: int = setting(
        2, "Network evaluations of a sample of the new model.", lower=1, upper=MAX_STEPS
    )
    method: str = setting(
        "consistency",
        "How it learns: consistency, whose two levels of one path lead to one image; or "
        "progressive, which halves the number of DDIM steps in every round, the simple baseline.",
        choices=tuple(METHODS),
    )


def distill(
    ckpt: str | os.PathLike,
    workdir: str | os.PathLike,
    *,
    steps: int = 2,
    method: str = "consistency",
    step: int | None = None,
    raw_weights: bool = False,
    fields: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] | Callback = (),
    max_seconds: int | None = None,
) -> TrainingResult:
    """Tune a trained diffusion model into one whose samples take few network evaluations.

        ddpm_jax.distill("runs/digits", "runs/digits_2step", steps=2)
        ddpm_jax.load("runs/digits_2step").sample(16)         # two evaluations each

    It is a training run like any other, in `workdir`, resumed by the same call, whose config is the
    teacher's with the fields of `distill_config`.

    Args:
      ckpt: directory of the teacher's run, of any process and parameterisation but mu.
      workdir: of the new run.
      steps: network evaluations of a sample, 1 to 64.
      method: a key of `distill_fields.METHODS`.
      step: of the teacher's checkpoint; None for the newest.
      raw_weights: of the teacher, as trained instead of their average.
      fields: of the config, by dotted name, in place of the derived ones.
      callbacks: called while it trains.
      max_seconds: after which to save and return.

    Raises:
      UsageError: a model that cannot be distilled, or a setting that cannot work.
      FailureError: something cannot be read or written, or the loss is not finite.
    """
    check_settings()
    settings = Distillation(steps=steps, method=method)
    teacher = load_trained(ckpt, step=step, raw_weights=raw_weights)
    derived = distill_config(teacher, ckpt, settings)
    config = configs.from_dict({**derived.to_dict(), **(fields or {})}, source="fields")
    run = TrainingRun(os.fspath(workdir), None, None, max_seconds)
    return run_training(config, run, callbacks=check_callbacks(callbacks))


def distill_config(
    teacher: TrainedModel,
    ckpt: str | os.PathLike,
    settings: Distillation,
) -> ConfigDict:
    """Return the config of the run that distils a model: its own, and

    - `init_from`, `init_from_step` and `init_from_raw`: its weights;
    - `distill.evaluations`; `distill.sigma_max`: the level at which samples begin, where noise is
      within 0.1 nats of noisy images, √(2.5 D) of D numbers, and at most 80 and the most that the
      process has; `distill.sigma_last`: at most a quarter of it;
    - `train.num_steps` and `optimizer.learning_rate`: 0.7 and 0.5 of the teacher's, by a cosine to
      0: an update takes 4/3 of the time of one of the teacher's. Of progressive distillation 0.6
      and 0.5, in `distill.rounds` that begin with 64 DDIM steps or more; each has the cosine, after
      a warm-up of at most a tenth of it;
    - `distill_fields.UNREAD`, its loss and its levels: defaults, since nothing reads them.

    Raises:
      UsageError: a model that cannot be distilled.
    """
    model = teacher.model
    if not isinstance(model, DiffusionModel):
        raise UsageError(f"{ckpt} is no diffusion model, and only those are distilled.")
    config = configs.from_dict(model.config, source="the teacher's config")
    if config.distill.evaluations and "progressive" in (settings.method, config.distill.method):
        raise UsageError(
            f"{ckpt} takes {config.distill.evaluations} evaluations already, and progressive "
            f"distillation begins with a model of many: distill its teacher, {config.init_from}."
        )
    config.init_from = os.fspath(ckpt)
    config.init_from_step = teacher.step if teacher.directory else None
    config.init_from_raw = teacher.average == "raw"
    if frozen_first_stage(model) is not None:
        config.first_stage.ckpt = AS_INIT_FROM
    nats = PRIOR_NATS / MEAN_SQUARE
    largest = math.sqrt(math.prod(model.shape) / (2 * nats))
    of_process = math.exp(min(model.chain.log_sigmas[-1], math.log(LARGEST_SIGMA)))
    for name in UNREAD:
        config.diffusion[name] = FIELDS[f"diffusion.{name}"].default
    config.distill.evaluations = settings.steps
    config.distill.sigma_max = float(f"{min(largest, of_process):.3g}")
    config.distill.method = settings.method
    updates = max(1, round(SHARE_OF_UPDATES[settings.method] * config.train.num_steps))
    if settings.method == "progressive":
        rounds = _rounds(model.chain, config.distill.sigma_max, settings.steps)
        config.distill.rounds, updates = rounds, max(rounds, updates)
        warmup = round(WARMUP * updates / rounds)
        config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, warmup)
    else:
        config.distill.sigma_last = min(config.distill.sigma_last, config.distill.sigma_max / 4)
    config.train.num_steps = updates
    config.optimizer.learning_rate = SHARE_OF_LEARNING_RATE * config.optimizer.learning_rate
    config.optimizer.decay = "cosine"
    return config


def _rounds(chain: Chain, sigma_max: float, steps: int) -> int:
    """Return how often the first teacher's steps are halved; a chain may have too few for 64."""
    there = chain.times_from_sigmas(np.array([sigma_max]))[0] + 1
    wanted = math.ceil(math.log2(FIRST_STEPS / steps))
    return max(1, min(wanted, math.floor(math.log2(there / steps))))
