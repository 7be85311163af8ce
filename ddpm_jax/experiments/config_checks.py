"""The checks of a config that need no device: numbers in their ranges, fields that something reads.

What the fields are, and how they are set, is `config`; names are checked where they are looked up.
"""

import math
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.errors import UsageError, choose
from ddpm_jax.experiments.config import default_config, flatten
from ddpm_jax.limits import MAX_SEED
from ddpm_jax.schema import shown
from ddpm_jax.training.ema_profiles import WIDEST

OBJECTIVES = {
    "diffusion": "a diffusion model",
    "classifier": "a classifier",  # of noisy images, to guide one
    "first_stage": "a first stage",  # of latent diffusion, or for itself
}
NETWORKS = {"unet": "a U-Net", "dit": "a transformer, whose fields are in the group dit,"}
# Network -> fields that have no part in it, single ones or whole groups.
_NO_PART_OF_NETWORK = {
    "unet": ("dit",),
    "dit": tuple(
        f"model.{name}"
        for name in (
            "ch",
            "ch_mult",
            "num_res_blocks",
            "attn_resolutions",
            "num_heads",
            "scale_shift_norm",
            "downsample_padding",
        )
    ),
}
# Objective -> fields that have no part in it, single ones or whole groups.
_NO_PART = {
    "diffusion": ("sharp",),
    "classifier": (
        "diffusion.parameterization",
        "diffusion.variance",
        "diffusion.loss",
        "diffusion.weighting",
        "condition.label_dropout",
        "condition.low_res_factor",
        "sharp",
    ),
    "first_stage": (
        "diffusion",
        "condition",
        "model.scale_shift_norm",
        "model.time_embedding",
        "train.sample_steps",
        "train.raw_grid",
    ),
}
_OF_LATENTS = ("ckpt", "latent_scale", "cache")
_OF_KL = ("beta", "kl_warmup_steps", "free_nats")
_OF_AVERAGES = ("codebook_decay", "restart_below")
_OF_CODES = ("num_codes", "commitment", "codebook", *_OF_AVERAGES)
# Kind of first stage -> fields of its group that have no part in it.
_NO_PART_OF_KIND = {
    "ae": (*_OF_KL, *_OF_CODES),
    "vae": _OF_CODES,
    "vq": _OF_KL,
}
_AT_LEAST_ONE = (
    "data.image_size",
    "model.ch",
    "model.num_res_blocks",
    "model.num_heads",
    "dit.hidden_size",
    "dit.depth",
    "dit.num_heads",
    "dit.patch_size",
    "optimizer.accumulate_steps",
    "train.num_steps",
    "train.batch_size",
    "train.log_every",
    "train.num_samples",
    "train.sample_steps",
    "train.steps_per_call",
    "checkpoint.save_every",
    "checkpoint.keep_last",
    "first_stage.latent_channels",
    "sharp.discriminator_ch",
    "sharp.discriminator_layers",
)
_AT_LEAST_ZERO = (
    "first_stage.latent_scale",
    "first_stage.beta",
    "first_stage.kl_warmup_steps",
    "first_stage.free_nats",
    "first_stage.commitment",
    "first_stage.restart_below",
    "sharp.perceptual_weight",
    "sharp.adversarial_weight",
    "sharp.start_step",
    "condition.num_classes",
    "condition.low_res_factor",
    "optimizer.warmup_steps",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "train.sample_every",
    "train.skip_nonfinite",
    "checkpoint.keep_every",
    "ema.snapshot_every",
)
_ABOVE_ZERO = (
    "model.norm_eps",
    "optimizer.learning_rate",
    "optimizer.eps",
    "sharp.discriminator_learning_rate",
)
_BELOW_ONE = (
    "model.dropout",
    "condition.label_dropout",
    "data.holdout",
    "ema.decay",
    "ema.rampup_ratio",
    "first_stage.codebook_decay",
    "sharp.discriminator_b1",
    "sharp.discriminator_b2",
    "optimizer.b1",
    "optimizer.b2",
)


_LARGEST = 2**31 - 1  # of any whole number: the step, and what is counted on a device, has 32 bits
# What costs time or memory as soon as the network or the chain is built or traced, far above
# anything in use.
_AT_MOST = {
    "data.image_size": 8192,
    "diffusion.num_timesteps": 1_000_000,
    "model.ch": 16_384,
    "model.num_res_blocks": 16,
    "model.num_heads": 1024,
    "dit.hidden_size": 65_536,
    "dit.depth": 128,
    "dit.num_heads": 1024,
    "dit.patch_size": 8192,
    "condition.num_classes": 1_000_000,
    "first_stage.latent_channels": 4096,
    "first_stage.num_codes": 1 << 20,
    "sharp.discriminator_ch": 16_384,
    "sharp.discriminator_layers": 10,
    "optimizer.accumulate_steps": 1 << 20,
    "train.batch_size": 1 << 20,
    "train.num_samples": 1 << 16,
    "train.steps_per_call": 10_000,
    "checkpoint.keep_last": 1_000_000,
}
_LONGEST = {  # how many there are, and how large each may be
    "model.ch_mult": (12, 1024),
    "model.attn_resolutions": (64, 8192),
    "ema.decays": (16, 1),
    "ema.sigma_rels": (16, 1),
}
# of residual blocks on the way down of a U-Net, each of which takes about a second to trace
_BLOCKS = 64


def check_ranges(config: ConfigDict) -> None:
    """Refuses numbers that mean nothing; names are checked where they are looked up.

    Raises:
      UsageError: a number outside its range.
    """
    values = dict(flatten(config))
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{name} is {value}: it must be a finite number.")
    for name in ("model.ch_mult", "model.attn_resolutions"):
        if not all(isinstance(item, int) and item >= 1 for item in values[name]):
            raise UsageError(
                f"{name} is {values[name]}: it must be whole numbers of at least 1, as in 1,2,2."
            )
    _check_largest(values)
    for names, valid, wanted in (
        (_AT_LEAST_ONE, lambda v: v >= 1, "at least 1"),
        (_AT_LEAST_ZERO, lambda v: v >= 0, "at least 0"),
        (_BELOW_ONE, lambda v: 0 <= v < 1, "in [0, 1)"),
        (_ABOVE_ZERO, lambda v: v > 0, "above 0"),
        (("data.channels",), lambda v: v in (1, 3), "1 or 3"),
        (("first_stage.num_codes",), lambda v: v >= 2, "at least 2"),
        (("seed",), lambda v: 0 <= v <= MAX_SEED, f"in 0..{MAX_SEED}"),
        (("diffusion.num_timesteps",), lambda v: v >= 2, "at least 2"),
        (("ema.sigma_rel",), lambda v: 0 <= v < WIDEST, f"0 or more and below {WIDEST:.4f}"),
    ):
        for name in names:
            if not valid(values[name]):
                raise UsageError(f"{name} is {values[name]}: it must be {wanted}.")
    if not config.init_from:
        _check_unused(config, ["init_from_step", "init_from_raw"], "a run without init_from")
    elif config.init_from_step is not None and config.init_from_step < 0:
        raise UsageError(f"init_from_step is {config.init_from_step}: it must be at least 0.")
    _check_condition(config)
    _check_objective(config)
    _check_network(config)
    _check_ema(config)
    steps, num_timesteps = values["train.sample_steps"], values["diffusion.num_timesteps"]
    if steps > num_timesteps:
        raise UsageError(
            f"train.sample_steps is {steps}, more than the {num_timesteps} of "
            f"diffusion.num_timesteps: choose 1 to {num_timesteps}."
        )


def _check_largest(values: dict[str, Any]) -> None:
    """Refuses numbers and lists that would be worked on for minutes before anything else could be
    said of them."""
    for name, value in values.items():
        largest = _AT_MOST.get(name, _LARGEST)
        if isinstance(value, int) and name != "seed" and abs(value) > largest:
            raise UsageError(f"{name} is {value}: it must be at most {largest}.")
    for name, (longest, largest) in _LONGEST.items():
        numbers = [item for item in values[name] if isinstance(item, int | float)]
        if len(values[name]) > longest or max(numbers, default=0) > largest:
            raise UsageError(
                f"{name} is {shown(values[name])}: it must be at most {longest} numbers of up to "
                f"{largest}."
            )
    levels, blocks = len(values["model.ch_mult"]), values["model.num_res_blocks"]
    if levels * blocks > _BLOCKS:
        raise UsageError(
            f"model.num_res_blocks is {blocks} on each of the {levels} levels of model.ch_mult: "
            f"that must be at most {_BLOCKS} blocks in all."
        )


def _check_objective(config: ConfigDict) -> None:
    what = choose("objective", config.objective, OBJECTIVES)
    if config.objective == "classifier" and config.condition.num_classes < 2:
        raise UsageError(
            f"condition.num_classes is {config.condition.num_classes}, and a classifier tells "
            "classes apart: set it to the number of classes of the data."
        )
    _check_unused(config, _NO_PART[config.objective], what)
    if config.objective != "first_stage":
        _check_latents(config, what)
    else:
        _check_unused(config, [f"first_stage.{name}" for name in _OF_LATENTS], what)
        kind = config.first_stage.kind
        unused = choose("kind of first stage", kind, _NO_PART_OF_KIND)
        _check_unused(
            config,
            [f"first_stage.{name}" for name in unused],
            f"a first stage of the kind {kind!r}",
        )
        if config.first_stage.codebook == "gradient":
            names = [f"first_stage.{name}" for name in _OF_AVERAGES]
            _check_unused(config, names, "a codebook that is learned by its gradient")
        if config.first_stage.scale == "pixel":
            _check_unused(
                config, ["first_stage.log_scale"], "a decoder that gives a scale for each number"
            )
        _check_sharp(config)


def _check_sharp(config: ConfigDict) -> None:
    c = config.sharp
    if not c.perceptual_weight:
        _check_unused(
            config, ["sharp.perceptual_file"], "a first stage without sharp.perceptual_weight"
        )
    if not c.adversarial_weight:
        names = [name for name in c if name.startswith(("start_", "discriminator_"))]
        _check_unused(
            config,
            [f"sharp.{name}" for name in names],
            "a first stage without sharp.adversarial_weight",
        )
    elif c.start_step >= config.train.num_steps:
        raise UsageError(
            f"sharp.start_step is {c.start_step}, but the run ends after {config.train.num_steps} "
            "steps (train.num_steps), and the discriminator would never begin: start it sooner, or "
            "train longer."
        )


def _check_network(config: ConfigDict) -> None:
    what = choose("network", config.model.name, NETWORKS)
    if config.model.name != "unet" and config.objective != "diffusion":
        raise UsageError(
            f"model.name is {config.model.name!r}, but {OBJECTIVES[config.objective]} is made of "
            "the U-Net's blocks: set it to 'unet'."
        )
    _check_unused(config, _NO_PART_OF_NETWORK[config.model.name], what)


def _check_latents(config: ConfigDict, what: str) -> None:
    """Refuses fields of a first stage where it is trained already, or where there is none."""
    stage = config.first_stage
    own = [f"first_stage.{name}" for name in stage if name not in _OF_LATENTS]
    _check_unused(
        config,
        own,
        f"{what} over latents, whose first stage brings its own," if stage.ckpt else what,
    )
    if not stage.ckpt:
        _check_unused(config, [f"first_stage.{name}" for name in _OF_LATENTS], f"{what} of pixels")
    elif config.condition.low_res_factor:
        raise UsageError(
            f"condition.low_res_factor is {config.condition.low_res_factor}, but a model over "
            "latents can be told no image of lower resolution: set it to 0, or leave out "
            "first_stage.ckpt."
        )


def _check_unused(config: ConfigDict, names: Iterable[str], what: str) -> None:
    """Refuses fields that were set though nothing reads them; a name without a dot is a whole
    group."""
    values, defaults = dict(flatten(config)), dict(flatten(default_config()))
    for name, value in values.items():
        if (name in names or name.split(".")[0] in names) and value != defaults[name]:
            raise UsageError(
                f"{name} is {value!r}, but {what} has none: leave it {defaults[name]!r}."
            )


def _check_ema(config: ConfigDict) -> None:
    e = config.ema
    laws = [f"ema.{name}" for name in ("warmup", "rampup_ratio", "sigma_rel") if e[name]]
    if len(laws) > 1:
        raise UsageError(f"{laws[0]} and {laws[1]} are two laws for one average: set one of them.")
    for field in ("decays", "sigma_rels"):
        if len(set(e[field])) < len(e[field]):
            raise UsageError(f"ema.{field} is {e[field]}: name every average once.")
    for decay in e.decays:
        if not (isinstance(decay, float) and 0 <= decay < 1):
            raise UsageError(
                f"ema.decays has {decay!r}: every decay must be in [0, 1), as in 0.999,0.9999."
            )
    for width in e.sigma_rels:
        if not (isinstance(width, float) and 0 < width < WIDEST):
            raise UsageError(
                f"ema.sigma_rels has {width!r}: every relative width must be above 0 and below "
                f"{WIDEST:.4f}, where all of the run weighs the same, as in 0.05,0.10."
            )
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


def _check_condition(config: ConfigDict) -> None:
    c, size = config.condition, config.data.image_size
    if c.label_dropout and not c.num_classes:
        raise UsageError(
            f"condition.label_dropout is {c.label_dropout}, but the network is told no labels to "
            "hide: set condition.num_classes to the number of classes of the data."
        )
    if c.low_res_factor == 1:
        raise UsageError(
            "condition.low_res_factor is 1, which tells the network the image itself: use 0 or 2 "
            "and more."
        )
    if c.low_res_factor and size % c.low_res_factor:
        raise UsageError(
            f"condition.low_res_factor is {c.low_res_factor}, which does not divide "
            f"data.image_size {size}: choose a divisor."
        )
