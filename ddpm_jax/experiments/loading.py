"""A checkpoint directory -> a model ready to use: the checkpoint brings its own config."""

import functools
import importlib.metadata
import pathlib
import platform
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax import __version__
from ddpm_jax.checkpoints.reader import find_step, read_config, read_weights
from ddpm_jax.cli.command import MAX_STEP, Parser
from ddpm_jax.data.about import about
from ddpm_jax.data.sources import Source
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.config_checks import OBJECTIVES
from ddpm_jax.experiments.experiment import (
    Experiment,
    First,
    Weights,
    build,
    objective_state_shapes,
)
from ddpm_jax.experiments.perceptual import with_discriminator
from ddpm_jax.files import read_file, reporting
from ddpm_jax.monitoring.results import weights_digest
from ddpm_jax.randomness import IMPLEMENTATION, base_key
from ddpm_jax.schema import LARGEST, SHA256, Malformed, Table, Text, Whole, check, parse
from ddpm_jax.training.sharpness import without_discriminator

FIRST_STAGE = "frozen_first_stage"  # of the settings of a run over latents
# of the settings of a run that began with another's weights: which these were
INIT_FROM = "begun_from"
# of the settings: what is known of the data and is in no config, such as the names of the classes
DATASET = "dataset"
# Groups and fields of a config: with the weights they decide what a model computes.
OF_A_MODEL = (
    "objective",
    "data.image_size",
    "data.channels",
    "diffusion.",
    "model.",
    "dit.",
    "condition.",
    "first_stage.",
)
SETTINGS = Table(
    optional={
        FIRST_STAGE: Table({"sha256": SHA256, "config": Table()}),
        INIT_FROM: Table({"source": Text(), "step": Whole(), "weights": Text(), "sha256": SHA256}),
    }
)
SCALE_TOLERANCE = 0.05  # of scales that two runs have measured, each to about 1 %


def define_checkpoint_flags(parser: Parser) -> None:
    """Adds the flags that say which weights of which run."""
    parser.path(
        "ckpt", None, "Directory of a training run: the --workdir of train.py.", metavar="DIR"
    )
    parser.integer(
        "ckpt_step",
        None,
        "Which of its checkpoints; the newest by default.",
        lower=0,
        upper=MAX_STEP,
    )
    parser.boolean("raw_weights", "Use the weights as trained instead of their moving average.")


def check_names_a_run(flags: Any) -> None:
    """Refuses a command line without --ckpt.

    Raises:
      UsageError: it is missing.
    """
    if not flags.ckpt:
        raise UsageError(
            "--ckpt is missing: name the directory of a training run, as in --ckpt runs/digits."
        )


class Loaded(NamedTuple):
    """A trained model."""

    experiment: Experiment
    # of a model over latents `experiment.Weights`: its first stage is in the checkpoint too
    params: Any
    step: int
    weights: str  # "ema" or "raw"; "frozen": a first stage that another model's checkpoint has
    sha256: str = ""  # `results.weights_digest` of the parameters
    class_names: tuple[str, ...] = ()  # of the data it was trained on; () where they are not known
    # `about.About.contents` of the data it was trained on; "" where they are not known
    contents: str = ""


def load(
    workdir: str | pathlib.Path, *, step: int | None = None, raw_weights: bool = False
) -> Loaded:
    """Reads a checkpoint's config and its weights: the EMA, or with `raw_weights` those that were
    trained.

    Args:
      workdir: the directory of a training run.
      step: which checkpoint; the newest by default.
      raw_weights: see above.

    Raises:
      UsageError: no such checkpoint, or not one of ours, or that of a classifier.
      FailureError: its files are damaged.
    """
    return _load(workdir, step, raw_weights, objective="diffusion")


def load_any(
    workdir: str | pathlib.Path,
    objective: str,
    *,
    step: int | None = None,
    raw_weights: bool = False,
) -> Loaded:
    """As `load`, but of a run with this `objective`."""
    return _load(workdir, step, raw_weights, objective=objective)


def load_first_stage(
    workdir: str | pathlib.Path, *, step: int | None = None, raw_weights: bool = False
) -> Loaded:
    """As `load`, but of a first stage, or of the one that a model over latents is frozen with.

    Raises:
      UsageError: as `load`, or there is none.
    """
    step = find_step(workdir, step)
    experiment = experiment_of(
        read_config(workdir, step), source=f"the config of {workdir}, step {step}"
    )
    if experiment.first is None:
        return _load(workdir, step, raw_weights, objective="first_stage")
    if raw_weights:
        raise UsageError(
            f"{workdir} holds its first stage as it was frozen, with no raw weights: leave them "
            "out."
        )
    shapes = objective_state_shapes(experiment)
    frozen = read_weights(workdir, step, {"objective_state": shapes})["objective_state"].frozen
    return Loaded(
        experiment.first.experiment, frozen.params, step, "frozen", weights_digest(frozen.params)
    )


def load_classifier(
    workdir: str | pathlib.Path,
    guided: Loaded,
    *,
    step: int | None = None,
    raw_weights: bool = False,
) -> Loaded:
    """As `load`, but of a classifier; `guided` is the model that it is to guide.

    Raises:
      UsageError: as `load`, or it is no classifier, or it was trained on other images or another
        noise.
    """
    classifier = _load(workdir, step, raw_weights, objective="classifier")
    ours, theirs = classifier.experiment, guided.experiment
    if ours.image_shape != theirs.image_shape:
        raise UsageError(
            f"The classifier of {workdir} reads images of {'x'.join(map(str, ours.image_shape))}, "
            f"but the model makes images of {'x'.join(map(str, theirs.image_shape))}: train the "
            "one for the other."
        )
    if not of_one_kind(classifier, guided):
        raise UsageError(
            f"The classifier of {workdir} is of {latents_of(classifier)}, the model of "
            f"{latents_of(guided)}: train it with the model's first_stage.ckpt and latent_scale."
        )
    if (
        not np.array_equal(ours.chain.betas, theirs.chain.betas)
        or ours.chain.time_scale != theirs.chain.time_scale
    ):
        raise UsageError(
            f"The classifier of {workdir} was trained on another schedule or number of timesteps "
            "than the model: train it with the model's diffusion.schedule, beta_start, beta_end, "
            "num_timesteps and rescale_timesteps."
        )
    return classifier


def identity_of(loaded: Loaded) -> dict[str, Any]:
    """What says which model results are of, whatever lies in its directory later; as JSON has it.

    The digest is of the weights themselves, in memory, and not of the checkpoint's files: those of
    one state differ from save to save, and the weights of a copy, or those of one average out of
    two checkpoints, are the same.
    """
    config = _set_fields(configs.to_dict(loaded.experiment.config))
    if loaded.experiment.first is not None:
        config[FIRST_STAGE] = _set_fields(
            configs.to_dict(loaded.experiment.first.experiment.config)
        )
    return {"weights_sha256": loaded.sha256, "config": config, "random_numbers": IMPLEMENTATION}


def _set_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The fields that what a model computes follows from, where they are not today's default: later
    ones may join."""
    defaults = dict(configs.flatten(configs.to_dict(configs.default_config())))
    return {
        name: value
        for name, value in configs.flatten(config)
        if name.startswith(OF_A_MODEL) and name not in configs.RESUMABLE and value != defaults[name]
    }


def of_one_kind(model: Loaded, other: Loaded) -> bool:
    """Whether both are of pixels, or of the same latents: of one first stage, and scales that
    differ by chance only."""
    ours, theirs = model.experiment.first, other.experiment.first
    if ours is None or theirs is None:
        return ours is theirs
    scales = (np.asarray(loaded.params.frozen.scale) for loaded in (model, other))
    return ours.sha256 == theirs.sha256 and np.isclose(*scales, rtol=SCALE_TOLERANCE)


def latents_of(loaded: Loaded) -> str:
    """What a model is of, in words: pixels, or which latents."""
    if loaded.experiment.first is None:
        return "pixels"
    scale = float(np.asarray(loaded.params.frozen.scale))
    return f"latents of the first stage {loaded.experiment.first.sha256[:12]} times {scale:.3g}"


def settings_of(experiment: Experiment, source: Source | None = None) -> dict[str, Any]:
    """What a run saves of how it was made: its config, what `source` says of the data, and its
    first stage.

    Of the first stage these are its config and the digest of its parameters.
    """
    settings = configs.to_dict(experiment.config)
    if source is not None and about(source).contents:
        settings[DATASET] = {
            "class_names": list(about(source).class_names),
            "contents": about(source).contents,
        }
    if experiment.first is None:
        return settings
    config, sha256 = experiment.first.experiment.config, experiment.first.sha256
    return settings | {FIRST_STAGE: {"sha256": sha256, "config": configs.to_dict(config)}}


def read_settings(path: pathlib.Path) -> dict[str, Any] | None:
    """What `settings_of` told of, from a run's config.json; None where there is no such file.

    Raises:
      FailureError: it is damaged, or cannot be read.
    """
    with reporting(path, "read"):
        data = read_file(path, largest=LARGEST + 1) if path.exists() else None
    try:
        return None if data is None else parse(data, SETTINGS)
    except Malformed as error:
        raise FailureError(
            f"{path} is damaged ({error}): move it away to go on without it."
        ) from error


def experiment_of(settings: dict[str, Any], *, source: str) -> Experiment:
    """The experiment that `settings_of` told of; `source` says where they stand.

    Raises:
      UsageError: they are not a config of this version.
    """
    check_settings(settings, source=source)
    return build(
        configs.from_dict(config_in(settings), source=source), first_of(settings, source=source)
    )


def check_settings(settings: dict[str, Any], *, source: str) -> None:
    """Refuses settings whose parts beside the config are not as `settings_of` makes them.

    Raises:
      UsageError: they are not.
    """
    try:
        check(settings, SETTINGS)
    except Malformed as error:
        raise UsageError(f"In {source}, {error}.") from error


def config_in(settings: dict[str, Any]) -> dict[str, Any]:
    """The config of what `settings_of` told of."""
    return {
        name: value
        for name, value in settings.items()
        if name not in (FIRST_STAGE, DATASET, INIT_FROM)
    }


def contents_of(settings: dict[str, Any]) -> str:
    """What tells the data that a run was trained on from others; "" in settings of before it was
    kept."""
    contents = _dataset_in(settings).get("contents")
    return contents if isinstance(contents, str) else ""


def _dataset_in(settings: dict[str, Any]) -> dict[str, Any]:
    known = settings.get(DATASET)
    return known if isinstance(known, dict) else {}


def class_names_of(settings: dict[str, Any]) -> tuple[str, ...]:
    """The names of the classes that a run was trained on; () in settings of before they were
    kept."""
    names = _dataset_in(settings).get("class_names")
    return (
        tuple(names)
        if isinstance(names, list) and all(isinstance(name, str) for name in names)
        else ()
    )


def first_of(settings: dict[str, Any], *, source: str) -> First | None:
    """The first stage of a run over latents, None of another; as `experiment_of`."""
    if FIRST_STAGE not in settings:
        return None
    first = settings[FIRST_STAGE]
    return First(
        build(configs.from_dict(first["config"], source=f"{source}, of its first stage")),
        first["sha256"],
    )


def _load(
    workdir: str | pathlib.Path, step: int | None, raw_weights: bool, *, objective: str
) -> Loaded:
    step = find_step(workdir, step)
    settings = read_config(workdir, step)
    experiment = experiment_of(settings, source=f"the config of {workdir}, step {step}")
    theirs, wanted = (OBJECTIVES[name] for name in (experiment.config.objective, objective))
    if theirs != wanted:
        raise UsageError(
            f"{workdir} holds {theirs} and not {wanted}: give the directory of a run whose config "
            f"has objective = {objective!r}."
        )
    item, shapes = "params" if raw_weights else "ema_params", experiment.params_shapes()
    # those of a first stage's discriminator are there too, and are read with the others
    if raw_weights:
        shapes = jax.eval_shape(
            functools.partial(with_discriminator, experiment.config), shapes, base_key(0)
        )
    template = {item: shapes}
    if experiment.first is not None:
        template["objective_state"] = objective_state_shapes(experiment)
    read = read_weights(workdir, step, template)
    params = without_discriminator(read[item])
    params = params if experiment.first is None else Weights(params, read["objective_state"].frozen)
    weights = "raw" if raw_weights else "ema"
    of_data = class_names_of(settings), contents_of(settings)
    return Loaded(experiment, params, step, weights, weights_digest(params), *of_data)


def versions(*more: str) -> dict[str, str]:
    """Versions of what the numbers depend on, `more` packages among it, for records that say how a
    result was made."""
    others = {
        name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy", *more)
    }
    return {"python": platform.python_version(), "ddpm-jax": __version__} | others
