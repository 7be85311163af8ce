"""A model of few steps, made of a trained one: `ddpm_jax.distill`."""

import dataclasses
import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.distill_fields import MAX_STEPS, METHODS, UNREAD
from ddpm_jax.experiments.few_steps import num_rounds
from ddpm_jax.experiments.fields import FIELDS
from ddpm_jax.experiments.latents import AS_INIT_FROM
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.experiments.model_files import is_foreign
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
SAMPLERS = {"consistency": "consistency", "progressive": "ddim"}  # by method


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
      fields: of the config in place of the derived ones, nested or by dotted name.
      callbacks: called while it trains.
      max_seconds: after which to save and return.

    Raises:
      UsageError: a model that cannot be distilled, or a setting that cannot work.
      FailureError: something cannot be read or written, or the loss is not finite.
    """
    check_settings()
    settings = Distillation(steps=steps, method=method)
    _check_path("ckpt", ckpt)
    _check_path("workdir", workdir)
    if not isinstance(fields, Mapping | None):
        raise UsageError(
            f'fields is {fields!r}: give a dict of config fields, as in {{"train.num_steps": 500}}.'
        )
    given = dict(configs.flatten(fields or {}))
    callbacks = check_callbacks(callbacks)
    run = TrainingRun(os.fspath(workdir), None, None, max_seconds)
    teacher = load_trained(ckpt, step=step, raw_weights=raw_weights)
    derived = dict(configs.flatten(distill_config(teacher, ckpt, settings)))
    config = settled(configs.from_dict(derived | given, source="fields"), teacher, given)
    return run_training(config, run, callbacks=callbacks)


def _check_path(name: str, path: Any) -> None:
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"{name} is {path!r}: give the path of a directory.")


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
      and 0.5, in `distill.rounds` that begin with 64 DDIM steps or more; each has the cosine;
    - `eval.sampler` and `eval.sample_steps`: those of the new model;
    - `distill_fields.UNREAD`, its loss and its levels: defaults, since nothing reads them.

    Fields that the user sets come next, and then `settled`.

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
    config.init_from_step = None if is_foreign(ckpt) else teacher.step
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
    config.eval.sampler, config.eval.sample_steps = SAMPLERS[settings.method], settings.steps
    updates = max(1, round(SHARE_OF_UPDATES[settings.method] * config.train.num_steps))
    if settings.method == "progressive":
        rounds = _rounds(model.chain, config.distill.sigma_max, settings.steps)
        config.distill.rounds, updates = rounds, max(rounds, updates)
    else:
        config.distill.sigma_last = min(config.distill.sigma_last, config.distill.sigma_max / 4)
    config.train.num_steps = updates
    config.optimizer.learning_rate = SHARE_OF_LEARNING_RATE * config.optimizer.learning_rate
    config.optimizer.decay = "cosine"
    return config


def settled(config: ConfigDict, teacher: TrainedModel, given: Collection[str]) -> ConfigDict:
    """Return the config of `distill_config` with what follows from the fields that the user set.

    There are no more rounds than the levels below `distill.sigma_max` allow, `distill.sigma_last`
    is below it too, and the warm-up is at most a tenth of the run, or of a round.

    Args:
      config: with these fields.
      teacher: the model.
      given: their dotted names; what is set is not changed.

    Raises:
      UsageError: an imported model, whose config says nothing of its training, without
        `train.num_steps`.
    """
    if not teacher.step and "train.num_steps" not in given:
        raise UsageError(
            f"{config.init_from} was not trained here, so nothing says how long to distill it: "
            "give a number of updates, --config.train.num_steps=20000, say."
        )
    c, optimizer = config.distill, config.optimizer
    if c.method == "progressive" and "distill.rounds" not in given:
        c.rounds = min(c.rounds, _rounds(teacher.model.chain, c.sigma_max, c.evaluations))
    if "optimizer.warmup_steps" not in given:
        most = round(WARMUP * config.train.num_steps / num_rounds(config))
        optimizer.warmup_steps = min(optimizer.warmup_steps, most)
    is_above = c.method == "consistency" and c.sigma_last >= c.sigma_max
    if is_above and "distill.sigma_last" not in given:
        c.sigma_last = c.sigma_max / 4
    return config


def _rounds(chain: Chain, sigma_max: float, steps: int) -> int:
    """Return how often the first teacher's steps are halved; a chain may have too few for 64."""
    there = chain.times_from_sigmas(np.array([sigma_max]))[0] + 1
    wanted = math.ceil(math.log2(FIRST_STEPS / steps))
    return max(1, min(wanted, math.floor(math.log2(there / steps))))
