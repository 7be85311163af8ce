"""Checks of a config that need no device: of each field, and of fields together.

Checks that depend on a network or a schedule are made where that is built.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.data.augmentation import LABELS
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments import distill_fields, mean_flow_fields
from ddpm_jax.experiments.config import flatten
from ddpm_jax.experiments.config_field import Field, Owner
from ddpm_jax.experiments.fields import FIELDS
from ddpm_jax.experiments.learning_rates import parse_groups
from ddpm_jax.experiments.owners import FIRST_STAGE, OBJECTIVES
from ddpm_jax.schema import format_value

# of residual blocks on the way down of a U-Net, each of which takes about a second to trace
_BLOCKS = 64


def check_config(config: ConfigDict) -> None:
    """Refuse values that mean nothing, and fields that are unused or contradictory.

    Raises:
      UsageError: the first of these.
    """
    values = dict(flatten(config))
    for name, field in FIELDS.items():
        _check_value(field, values[name])
    for name, field in FIELDS.items():
        if values[name] != field.default:
            _check_owners(field, values)
    _check_process(config)
    _check_learned_levels(config)
    _check_weighting(config)
    _check_network(config)
    _check_condition(config)
    parse_groups(config.optimizer.groups)
    _check_scheduler(config)
    _check_augmentation(config)
    _check_ema(config)
    _check_few_steps(config)
    _check_lengths(config)


def _check_value(field: Field, value: Any) -> None:
    complaint = field.complaint(value)
    if complaint is not None:
        text = format_value(value) if isinstance(value, tuple | str) else value
        raise UsageError(f"{field.name} is {text}: {complaint}")


def _check_owners(field: Field, values: Mapping[str, Any]) -> None:
    """Refuse a field that was set though nothing reads it."""
    for owner in field.owners:
        if not owner.has(values):
            raise UsageError(
                f"{field.name} is {values[field.name]!r}, but {_other(owner, field, values)} has "
                f"none: set it back to {field.default!r}, or leave it out."
            )


def _other(owner: Owner, field: Field, values: Mapping[str, Any]) -> str:
    """Name the models, such as the config's, that lack a field."""
    value = values[owner.field]
    if not owner.values:
        of_objective = any(owner.field == "objective" for owner in field.owners)
        return (
            f"{OBJECTIVES[values['objective']] if of_objective else 'a run'} without {owner.field}"
        )
    what = FIELDS[owner.field].choices[value]
    if (
        (owner,) == FIRST_STAGE
        and values["first_stage.ckpt"]
        and field.name.startswith("first_stage.")
    ):
        return f"{what} over latents, whose first stage brings its own,"
    return what


def _check_process(config: ConfigDict) -> None:
    c = config.diffusion
    if c.process == "chain":
        return
    for name, value, other in (
        ("loss", c.loss, "simple"),
        ("timestep_sampling", c.timestep_sampling, "uniform"),
    ):
        if value not in (other, "antithetic", "low_discrepancy"):
            raise UsageError(
                f"diffusion.{name} is {value!r}, which is of the T steps of a chain, but "
                f"diffusion.process is {c.process!r}, in continuous time: set it to {other!r}."
            )


def _check_learned_levels(config: ConfigDict) -> None:
    if config.diffusion.process != "vdm":
        return
    what = "diffusion.process is 'vdm', whose noise levels are learned with a network that denoises"
    if config.objective != "diffusion":
        raise UsageError(
            f"{what}, but this is {OBJECTIVES[config.objective]}: choose a process whose levels "
            "are given."
        )
    if config.first_stage.ckpt:
        raise UsageError(
            f"{what} by a bound on the likelihood of 8-bit pixels, and latents have none: choose "
            "another process, or leave out first_stage.ckpt."
        )
    if config.distill.evaluations:
        raise UsageError(
            f"{what}, but distill.evaluations is {config.distill.evaluations}, and a model of few "
            "steps is trained at levels that are given: distill a model of another process."
        )


def _check_weighting(config: ConfigDict) -> None:
    if config.diffusion.weighting != "learned":
        return
    if config.lora.rank:
        raise UsageError(
            "diffusion.weighting is 'learned', with the network that is trained, but lora.rank is "
            f"{config.lora.rank}, where it has none: set diffusion.weighting to 'uniform'."
        )


def _check_network(config: ConfigDict) -> None:
    if config.model.name != "unet" and config.objective != "diffusion":
        raise UsageError(
            f"model.name is {config.model.name!r}, but {OBJECTIVES[config.objective]} is made of "
            "the U-Net's blocks: set it to 'unet'."
        )
    if config.edm_unet.embedding == "fourier" and config.optimizer.weight_decay:
        raise UsageError(
            f"optimizer.weight_decay is {config.optimizer.weight_decay}, which would shrink the "
            "random frequencies of edm_unet.embedding 'fourier': set it to 0."
        )
    if config.model.name == "edm2_unet" and config.optimizer.weight_decay:
        raise UsageError(
            f"optimizer.weight_decay is {config.optimizer.weight_decay}, but the weights of "
            "model.name 'edm2_unet' are normalised after every update: set it to 0."
        )
    levels, blocks = len(config.model.ch_mult), config.model.num_res_blocks
    if levels * blocks > _BLOCKS:
        raise UsageError(
            f"model.num_res_blocks is {blocks} on each of the {levels} levels of model.ch_mult: "
            f"that must be at most {_BLOCKS} blocks in all."
        )


def _check_condition(config: ConfigDict) -> None:
    c, size = config.condition, config.data.image_size
    if config.objective == "classifier" and c.num_classes < 2:
        raise UsageError(
            f"condition.num_classes is {c.num_classes}, and a classifier tells classes apart: set "
            "it to the number of classes of the data."
        )
    if config.data.captions and config.model.name != "text_unet":
        raise UsageError(
            f"data.captions is {config.data.captions!r}, but this network reads no texts: set "
            "model.name to 'text_unet', or leave data.captions ''."
        )
    if c.label_dropout and not c.num_classes:
        raise UsageError(
            f"condition.label_dropout is {c.label_dropout}, but the network is given no labels to "
            "hide: set condition.num_classes to the number of classes of the data."
        )
    if c.label_dropout and not c.null_class:
        raise UsageError(
            f"condition.label_dropout is {c.label_dropout}, but a network without a null class can "
            "be given no hidden labels: set condition.null_class to true."
        )
    if c.low_res_factor and config.first_stage.ckpt:
        raise UsageError(
            f"condition.low_res_factor is {c.low_res_factor}, but a model over latents can be "
            "given no image of lower resolution: set it to 0, or leave out first_stage.ckpt."
        )
    if c.inpainting and not config.first_stage.ckpt:
        raise UsageError(
            "condition.inpainting is true, but its network is given the latents of a picture, and "
            "this model is over pixels: set it to false."
        )
    if c.low_res_factor == 1:
        raise UsageError(
            "condition.low_res_factor is 1, which gives the network the image itself: use 0 or 2 "
            "and more."
        )
    if c.low_res_factor and size % c.low_res_factor:
        raise UsageError(
            f"condition.low_res_factor is {c.low_res_factor}, which does not divide "
            f"data.image_size {size}: choose a divisor."
        )


def _check_scheduler(config: ConfigDict) -> None:
    """Refuse options of diffusers' scheduler that no sampler would read."""
    if config.model.name != "unet" or config.scheduler.given:
        return
    for name, value in config.scheduler.items():
        default = FIELDS[f"scheduler.{name}"].default
        if value != default:
            raise UsageError(
                f"scheduler.{name} is {value!r}, and scheduler.given is false: set that to true, "
                f"or scheduler.{name} back to {default!r}."
            )


def _check_augmentation(config: ConfigDict) -> None:
    if not config.data.augment:
        return
    what = f"data.augment is {config.data.augment}, but"
    if config.edm_unet.augment_dim != LABELS:
        raise UsageError(
            f"{what} the network has as its condition {config.edm_unet.augment_dim} "
            f"numbers of an augmentation, not {LABELS}: set edm_unet.augment_dim to {LABELS}."
        )
    if config.data.flip:
        raise UsageError(
            f"{what} data.flip mirrors images too, which the network is not told: set data.flip to "
            "false."
        )
    if config.first_stage.ckpt:
        raise UsageError(f"{what} it is of pixels, and this model is over latents: set it to 0.")


def _check_few_steps(config: ConfigDict) -> None:
    c = config.distill
    if c.evaluations and config.mean_flow.evaluations:
        raise UsageError(
            f"distill.evaluations is {c.evaluations}, but a mean flow takes few steps as it is: "
            "set mean_flow.evaluations, or distill a model without it."
        )
    unread, of_whom = (), ""  # fields of the group diffusion, and who does not read them
    if c.evaluations:
        unread = distill_fields.UNREAD
        of_whom = (
            f"a distillation (distill.evaluations is {c.evaluations}) has a loss and levels of its "
            "own"
        )
    elif config.mean_flow.evaluations:
        unread = mean_flow_fields.UNREAD
        of_whom = "a mean flow has a loss of its own, with weights by mean_flow.power"
    for name in unread:
        value, default = config.diffusion[name], FIELDS[f"diffusion.{name}"].default
        if value != default:
            raise UsageError(
                f"diffusion.{name} is {value!r}, but {of_whom}: set it back to {default!r}."
            )
    if not c.evaluations or c.method != "progressive":
        return
    if config.lora.rank:
        raise UsageError(
            f"lora.rank is {config.lora.rank}, but a student of progressive distillation becomes "
            "the next teacher with all its weights: set lora.rank to 0, or distill.method to "
            "'consistency'."
        )
    if config.train.num_steps < c.rounds:
        raise UsageError(
            f"train.num_steps is {config.train.num_steps}, which leaves no update for each of the "
            f"{c.rounds} rounds of distill.rounds: give at least {c.rounds}."
        )


def _check_ema(config: ConfigDict) -> None:
    e = config.ema
    laws = [f"ema.{name}" for name in ("warmup", "rampup_ratio", "sigma_rel") if e[name]]
    if len(laws) > 1:
        raise UsageError(f"{laws[0]} and {laws[1]} are two laws for one average: set one of them.")
    for field in ("decays", "sigma_rels"):
        if len(set(e[field])) < len(e[field]):
            raise UsageError(f"ema.{field} is {e[field]}: name every average once.")
    if e.snapshot_every and not e.sigma_rels:
        raise UsageError(
            f"ema.snapshot_every is {e.snapshot_every}, but there are no averages to save: set "
            "ema.sigma_rels, to 0.05,0.10, say."
        )
    if e.sigma_rels and not e.snapshot_every:
        raise UsageError(
            f"ema.sigma_rels is {e.sigma_rels}, but no snapshots are saved of these averages: set "
            "ema.snapshot_every, to a fiftieth of train.num_steps, say."
        )


def _check_lengths(config: ConfigDict) -> None:
    num_timesteps, steps = config.diffusion.num_timesteps, config.train.sample_steps
    if steps > num_timesteps:
        raise UsageError(
            f"train.sample_steps is {steps}, more than the {num_timesteps} of "
            f"diffusion.num_timesteps: choose 1 to {num_timesteps}."
        )
    start, num_steps = config.sharp.start_step, config.train.num_steps
    if config.sharp.adversarial_weight and start >= num_steps:
        raise UsageError(
            f"sharp.start_step is {start}, but the run ends after {num_steps} steps "
            "(train.num_steps), and the discriminator would never begin: start it sooner, or train "
            "longer."
        )
