"""The config's `init_from`: a new run begins with the weights of another one."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.checkpoints.reader import find_step, read_config, saved_steps
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.fields import FIELDS
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.experiments.lora_models import LoraModel
from ddpm_jax.experiments.models import DiffusionModel, Model
from ddpm_jax.experiments.run_settings import INIT_FROM, check_settings, frozen_first_stage
from ddpm_jax.experiments.text_networks import ENCODER_FIELDS
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.text.tokenizer import Tokenizer
from ddpm_jax.training.initial_weights import Fitting, Given, fitting

# Fields of a model that say how it is trained, and not what its weights compute.
_OF_TRAINING = (
    "diffusion.loss",
    "diffusion.weighting",
    "diffusion.timestep_sampling",
    "diffusion.bound",
    "diffusion.levels",
    "diffusion.level_mean",
    "diffusion.level_std",
    "diffusion.mode_scale",
    "diffusion.coupling",
    "diffusion.clip",
    "model.dropout",
    "model.dtype",
    "model.remat",
    "model.qkv_order",
    "condition.num_classes",  # its parameters say so
    "condition.null_class",
    "condition.label_dropout",
    "text.ckpt",
    "text.cache",
    "text.dropout",
    "text.guidance",
    "first_stage.ckpt",
    "first_stage.cache",
    "first_stage.latent_scale",
    "first_stage.beta",
    "first_stage.kl_warmup_steps",
    "first_stage.free_nats",
    "first_stage.commitment",
    "first_stage.codebook",
    "first_stage.codebook_decay",
    "first_stage.restart_below",
)
_GROUPS = (
    "data.channels",
    "diffusion.",
    "model.",
    "dit.",
    "linear_unet.",
    "edm_unet.",
    "condition.",
    "text.",
    "text_unet.",
    "first_stage.",
)


_OF_NETWORK = (
    "data.channels",
    "condition.low_res_factor",
    "first_stage.kind",
    "first_stage.family",
    "first_stage.scale",
    "first_stage.latent_channels",
    "first_stage.num_codes",
    "model.",
    "dit.",
    "linear_unet.",
    "edm_unet.",
    "text_unet.",
    "text.",
    "mean_flow.evaluations",
)


class Beginning(NamedTuple):
    """The weights and the first stage of another run that a new run begins with."""

    given: Given  # parameters that are not drawn
    frozen: Any  # the frozen part of the state: first stage, encoder of texts; None: there is none
    record: dict[str, Any]  # run, step and weights, kept with the settings
    notes: list[str]  # what the user should know, half a sentence each
    tokenizer: Tokenizer | None = None  # of the texts that these weights read
    average: Given | None = None  # what the averages begin as, if that is not `given`

    @property
    def what(self) -> str:
        """Return a description of the weights."""
        record = self.record
        return f"the {record['weights']} weights of {record['source']}, step {record['step']}"


def find_beginning(
    model: Model, workdir: pathlib.Path, settings: dict[str, Any] | None
) -> tuple[Beginning | None, dict[str, Any] | None]:
    """Return (the weights that `init_from` names, their record).

    Nothing is read for a run that has checkpoints of its own.

    Args:
      model: of the new run.
      workdir: its directory.
      settings: those that the run was begun with (`run_directory.begun_settings`), if any.

    Raises:
      UsageError: there is no such run or step; it has another kind, architecture or first stage; or
        it has changed since this run was begun from it.
      FailureError: its files are damaged.
    """
    config = model.config
    if saved_steps(workdir):
        if settings is None:
            settings = read_config(workdir, find_step(workdir))
            check_settings(settings, source=f"the config of {workdir}")
        return None, settings.get(INIT_FROM)
    if not config.init_from:
        return None, None
    try:
        trained = load_trained(
            config.init_from,
            config.objective,
            step=config.init_from_step,
            raw_weights=config.init_from_raw,
        )
        _check_kind(trained, model)
        _check_encoder(trained, model)
        found = _fitting(trained, model)
        average = _average(trained, model)
    except UsageError as error:
        raise UsageError(f"init_from: {error}") from error
    record = {
        "source": trained.origin,
        "step": trained.step,
        "weights": trained.average,
        "sha256": trained.sha256,
    }
    before = (settings or {}).get(INIT_FROM)
    if before is not None and before["sha256"] != trained.sha256:
        raise UsageError(
            f"init_from: {config.init_from} has changed since this run was begun from it (SHA-256 "
            f"{before['sha256'][:12]} then, {trained.sha256[:12]} now): give "
            f"init_from_step={before['step']}, or another workdir."
        )
    notes = _notes(found)
    differing = _differing(trained.model.config, config)
    if differing:
        notes.append(f"its weights mean something else here, because {'; '.join(differing)}")
    frozen = _frozen(trained, model)
    # those that updates are trained of are in the frozen part
    given = {} if isinstance(model, LoraModel) else found.given
    return Beginning(given, frozen, record, notes, trained.tokenizer, average), record


def _average(trained: TrainedModel, model: Model) -> Given | None:
    """Return what the averages begin as, beside the raw weights of other people's files.

    It is the average in these files, or in the run of step 0 that was imported of them. None: what
    the parameters begin as.
    """
    config = model.config
    if not config.init_from_raw or trained.step or isinstance(model, LoraModel):
        return None
    other = load_trained(config.init_from, config.objective, step=config.init_from_step)
    return None if other.average == "raw" else _fitting(other, model).given


def _check_kind(trained: TrainedModel, model: Model) -> None:
    ours, theirs = frozen_first_stage(model), frozen_first_stage(trained.model)
    if (ours is None) != (theirs is None) or (ours is not None and ours.sha256 != theirs.sha256):
        there = trained.model.codec.describe(trained.weights.frozen)
        here = "pixels" if ours is None else f"latents of the first stage {ours.sha256[:12]}"
        raise UsageError(
            f"{model.config.init_from} holds a model of {there}, and this config "
            f"is of one of {here}: give first_stage.ckpt as that run has it."
        )


def _check_encoder(trained: TrainedModel, model: Model) -> None:
    """Refuse another encoder of texts than the one that comes with the weights."""
    if not _reads_by_trained_encoder(model):
        return
    config, theirs = model.config, trained.model.config
    if not _reads_by_trained_encoder(trained.model):
        raise UsageError(
            f"{config.init_from} has no encoder of texts that was trained before, and text.kind is "
            "'clip' in this config: give text.kind as that run has it."
        )
    if config.text.ckpt not in ("", config.init_from):
        raise UsageError(
            f"text.ckpt is {config.text.ckpt}, but the encoder of texts is that of init_from: "
            "leave text.ckpt out."
        )
    for name in ENCODER_FIELDS:
        if theirs.text[name] != config.text[name]:
            raise UsageError(
                f"{config.init_from} is of another architecture: text.{name} is "
                f"{theirs.text[name]!r} there and {config.text[name]!r} here."
            )


def _reads_by_trained_encoder(model: Model) -> bool:
    return isinstance(model, DiffusionModel) and model.has_trained_encoder


def _notes(found: Fitting) -> list[str]:
    """Return which parameters are drawn, in words."""
    if found.rows:
        return [
            f"of {name} the rows of the classes {found.rows} are kept, and the others are "
            "initialized, because the classes differ"
            for name in found.fresh
        ]
    return [f"{name} is initialized, because the classes differ" for name in found.fresh]


def _fitting(trained: TrainedModel, model: Model) -> Fitting:
    """Return the weights that a model takes over, and which it draws.

    Raises:
      UsageError: they do not fit: the first field of the network that differs, or its parameter.
    """
    has_updates = isinstance(model, LoraModel)
    shapes = model.network_shapes() if has_updates else model.params_shapes()
    classes = tuple(of.config.condition.num_classes for of in (trained.model, model))
    try:
        found = fitting(
            trained.params,
            shapes,
            source=model.config.init_from,
            classes=classes,
            groups=_groups_of_network(model.config),
        )
        if has_updates and found.fresh:
            raise UsageError(
                f"{model.config.init_from} has other classes, and lora.rank trains updates of its "
                "weights alone: give condition.num_classes as that run has it."
            )
        return found
    except UsageError as error:
        differing = _differing(trained.model.config, model.config, _OF_NETWORK)
        differing += _other_variance(trained.model.config, model.config)
        differing = _other_classes(trained.model, model) + differing
        differing = differing or _other_levels(trained.model.config, model.config)
        if not differing:
            raise
        others = len(differing) - 1
        differ = "field differs" if others == 1 else "fields differ"
        more = f", and {others} more {differ}" if others else ""
        raise UsageError(f"{str(error).removesuffix('.')}; {differing[0]}{more}.") from error


def _other_classes(theirs: Model, ours: Model) -> list[str]:
    """Return the field that decides how many classes a classifier tells apart, if it differs."""
    there, here = (model.config.condition.num_classes for model in (theirs, ours))
    if ours.config.objective != "classifier" or there == here:
        return []
    return [f"condition.num_classes is {there} there and {here} here"]


def _other_variance(theirs: ConfigDict, ours: ConfigDict) -> list[str]:
    """Return the field that doubles the outputs of a network, if it does in one of them."""
    there, here = theirs.diffusion.variance, ours.diffusion.variance
    if there.startswith("learned") == here.startswith("learned"):
        return []
    return [f"diffusion.variance is {there!r} there and {here!r} here"]


def _groups_of_network(config: ConfigDict) -> list[str]:
    """Return the groups of a config that have fields of its network."""
    values = dict(configs.flatten(config))
    found = {
        name.split(".")[0]: None
        for name, field in FIELDS.items()
        if name.startswith(_OF_NETWORK)
        and not name.startswith(("data.", "condition."))
        and name not in _OF_TRAINING
        and all(owner.has(values) for owner in field.owners)
    }
    return list(found)


def _other_levels(theirs: ConfigDict, ours: ConfigDict) -> list[str]:
    """Return the field that puts attention on other levels for images of another size, if any."""
    size, here = theirs.data.image_size, ours.data.image_size
    heights = theirs.model.attn_resolutions
    if ours.model.name not in ("unet", "text_unet") or size == here:
        return []
    same = ",".join(str(height * here // size) for height in heights)
    return [
        f"data.image_size is {size} there and {here} here, so attention is on other levels: give "
        f"model.attn_resolutions={same}"
    ]


def _frozen(trained: TrainedModel, model: Model) -> Any:
    """Return the frozen part of the state, with the scale of this config, if set; or None."""
    weights = trained.weights
    if frozen_first_stage(trained.model) is not None:
        scale = model.config.first_stage.latent_scale
        frozen = weights.frozen._replace(scale=np.float32(scale)) if scale else weights.frozen
        weights = weights._replace(frozen=frozen)
    elif not (_reads_by_trained_encoder(model) or isinstance(model, LoraModel)):
        return None
    return model.frozen_part(weights)


def _levels_with_attention(fields: Mapping[str, Any]) -> set[float]:
    """Return how many times smaller than an image the feature maps with attention are."""
    return {fields["data.image_size"] / height for height in fields["model.attn_resolutions"]}


def _differing(
    theirs: ConfigDict, ours: ConfigDict, groups: tuple[str, ...] = _GROUPS
) -> list[str]:
    """Return the fields that change what the same weights compute, with both values.

    For example "model.num_heads is 1 there and 2 here".
    """
    there, here = (dict(configs.flatten(configs.to_dict(config))) for config in (theirs, ours))
    names = [
        name
        for name in here
        if name.startswith(groups) and name not in _OF_TRAINING and here[name] != there.get(name)
    ]
    if _levels_with_attention(there) == _levels_with_attention(here):
        names = [name for name in names if name != "model.attn_resolutions"]
    return [f"{name} is {there.get(name)!r} there and {here[name]!r} here" for name in names]
