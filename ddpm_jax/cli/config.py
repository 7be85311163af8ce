"""The config: every field with its default and meaning, and the checks that need no device.

A config file is Python with `get_config()`, which starts from `default_config()` and sets what its experiment needs;
any field can be overridden on the command line. Lower layers never see a ConfigDict.
"""

import difflib
import importlib.util
import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from ddpm_jax.cli.command import MAX_SEED
from ddpm_jax.errors import UsageError, choose, suggest
from ddpm_jax.training.ema_profiles import WIDEST


def default_config() -> ConfigDict:
    """Every field there is. The values are those of DDPM on CIFAR-10 (Ho et al. 2020)."""
    return ConfigDict(
        {
            "seed": 0,  # of the initial weights, the data order and every draw
            "parallel": "pmap",  # the state on every device, or split over them where it outgrows one: pmap, fsdp
            "objective": "diffusion",  # what is trained: diffusion, classifier (of noisy images), first_stage
            "data": {
                "name": "cifar10",  # a TFDS image dataset, "digits", or "folder"
                "data_dir": "",  # TFDS's data_dir, or the folder of images; "" is TFDS's own default
                "train_split": "train",
                "test_split": "test",  # held out: never trained on
                "holdout": 0.0,  # share of the training images to hold out where the dataset has no test split
                "image_size": 32,  # height and width in pixels
                "channels": 3,  # 1 or 3
                "flip": True,  # mirror training images at random
                "cache": "auto",  # keep decoded images in memory: auto, always, never
                "unreadable": "stop",  # an image that cannot be read: stop, skip
            },
            "diffusion": {
                "num_timesteps": 1000,  # T
                "rescale_timesteps": False,  # tell the network times in 0..1000 whatever T is
                "schedule": "linear",  # linear, quad, const, jsd, warmup10, warmup50, cosine, scaled_linear, sigmoid
                "beta_start": config_dict.placeholder(float),  # None is the schedule's published value
                "beta_end": config_dict.placeholder(float),
                "parameterization": "eps",  # what the network predicts: eps, x_0, v, mu
                "variance": "fixed_large",  # fixed_small, fixed_large, learned, learned_range
                "loss": "simple",  # simple, vlb, hybrid
                "weighting": "uniform",  # of the simple loss over t: uniform, min_snr, p2
                "timestep_sampling": "uniform",  # of t in training: uniform, antithetic, importance
            },
            "model": {
                "name": "unet",  # the network: unet, or dit with its fields below; of these it has the last five
                "ch": 128,  # channels of the first level
                "ch_mult": (1, 2, 2, 2),  # channels of each level, in units of ch
                "num_res_blocks": 2,  # per level on the way down, one more on the way up
                "attn_resolutions": (16,),  # heights of the feature maps that get attention
                "num_heads": 1,
                "scale_shift_norm": False,  # the time scales and shifts the second norm of a block
                "downsample_padding": "end",  # where a stride of 2 pads: end (DDPM), both (Improved DDPM)
                "dropout": 0.1,
                "time_embedding": "sin_cos",  # sin_cos (DDPM), cos_sin (Improved DDPM, DiT), cos_sin_inclusive
                "norm_eps": 1e-6,  # added to the variance in normalisations
                "dtype": "float32",  # of the computation: float32, bfloat16; parameters are float32
                "remat": "none",  # what is computed again in the backward pass, for memory: none, products, blocks
            },
            "dit": {  # the transformer
                "size": "S",  # of its paper: S, B, L, XL; custom: of the next three fields
                "hidden_size": 384,  # channels of a token
                "depth": 12,  # blocks
                "num_heads": 6,
                "patch_size": 2,  # height and width of what becomes a token, in pixels of what the network sees
            },
            "condition": {  # what the network is told of an image beside x_t and t
                "num_classes": 0,  # its class, of the data's so many; 0: not told
                "label_dropout": 0.0,  # share of the labels hidden in training, for classifier-free guidance
                "low_res_factor": 0,  # the image shrunk so many times, as in super-resolution; 0: not told
            },
            "first_stage": {  # an autoencoder; of the fields of model it has all but those of the time
                # The first three are of a model over the latents of one that is trained already, the others of its own.
                "ckpt": "",  # directory of its run: the model is one of its latents; "": of pixels
                "latent_scale": 0.0,  # what the latents are multiplied by; 0: one over their standard deviation
                "cache": "",  # directory to keep encoded images in; "": every batch is encoded anew
                "kind": "vae",  # ae, vae, vq
                "latent_channels": 4,  # of the latents, 2**(len(model.ch_mult) - 1) times smaller than the image
                "family": "gaussian",  # what the decoder says of a pixel: gaussian, discretized_logistic, bernoulli
                "scale": "shared",  # of its distribution: fixed, shared (one number, learned), pixel (by the decoder)
                "log_scale": 0.0,  # of the fixed scale, or where the shared one starts
                "beta": 1.0,  # vae: weight of the KL
                "kl_warmup_steps": 0,  # vae: over which it rises from 0
                "free_nats": 0.0,  # vae: of the KL of each latent channel, that cost nothing
                "num_codes": 512,  # vq: rows of the codebook
                "commitment": 0.25,  # vq: weight of the loss that keeps vectors near their codes
                "codebook": "averages",  # vq: how it is learned: averages, gradient
                "codebook_decay": 0.99,  # vq: of the averages; a codebook learned by its gradient has none
                "restart_below": 0.0,  # of the averages: vectors per update below which a code is given a new place
            },
            "sharp": {  # what reconstructions of a first stage are held against, beside what the decoder says of them
                "perceptual_weight": 0.0,  # of the LPIPS distance, nats per dimension for a distance of 1; 0: none
                "perceptual_file": "",  # its weights, NPZ or safetensors; a run that has begun has them itself
                "adversarial_weight": 0.0,  # of a discriminator's verdict, times the adaptive weight; 0: none
                "start_step": 0,  # updates before discriminator and verdict begin
                "discriminator_ch": 64,  # channels of its first layer
                "discriminator_layers": 3,  # of stride 2: a logit sees 70x70 pixels with 3, 34x34 with 2, 16x16 with 1
                "discriminator_learning_rate": 2e-4,  # of its Adam; warm-up and decay are those of the optimizer
                "discriminator_b1": 0.5,
                "discriminator_b2": 0.9,
            },
            "optimizer": {
                "name": "adam",  # adam, adamw
                "learning_rate": 2e-4,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "weight_decay": 0.0,  # adamw only
                "warmup_steps": 5000,  # linear, from 0
                "decay": "constant",  # after the warm-up: constant, cosine, linear
                "clip_norm": 1.0,  # global norm of the gradient; 0 for no clipping
                "clip_scope": "replica",  # replica: each device's gradient, as the original; average: the batch's
                "accumulate_steps": 1,  # parts in which a device computes its share of the batch
            },
            "ema": {
                "decay": 0.9999,
                "warmup": False,  # min(decay, (1 + step) / (10 + step))
                "rampup_ratio": 0.0,  # half-life at most this share of the steps done: EDM has 0.05; 0 for no limit
                "sigma_rel": 0.0,  # above 0: a power function of time of this relative width (EDM2), and no decay
                "decays": (),  # of further averages, kept for `python -m ddpm_jax.cli.ema`
                "sigma_rels": (),  # likewise; from snapshots of two of these any width can be made after training
                "snapshot_every": 0,  # steps between these snapshots; 0 for none
            },
            "train": {
                "num_steps": 800_000,
                "batch_size": 128,  # over all devices
                "log_every": 100,  # steps between records
                "sample_every": 10_000,  # steps between sample grids; 0 for only the last
                "num_samples": 64,  # images in a grid
                "sample_steps": 1000,  # steps of the chain for a grid
                "skip_nonfinite": 0,  # updates in a row that are passed over if loss or gradient is not finite
                "raw_grid": False,  # show samples of the raw weights beside those of the EMA: twice the sampling
                "steps_per_call": 1,  # updates dispatched together: more where a step takes milliseconds
            },
            "checkpoint": {
                "save_every": 5000,  # steps
                "keep_last": 2,
                "keep_every": 0,  # keep also every checkpoint at a multiple of this, for ever; 0 for none
            },
        }
    ).lock()


# A run may be resumed with other values of these: they change neither the model nor the draws.
RESUMABLE = (
    "parallel",
    "data.data_dir",
    "data.cache",
    "data.unreadable",
    "first_stage.ckpt",  # which one it is, its digest says
    "first_stage.cache",
    "model.remat",
    "sharp.perceptual_file",
    "train.num_steps",
    "train.log_every",
    "train.sample_every",
    "train.num_samples",
    "train.sample_steps",
    "train.skip_nonfinite",
    "train.raw_grid",
    "train.steps_per_call",
    "checkpoint.save_every",
    "checkpoint.keep_last",
    "checkpoint.keep_every",
    "ema.snapshot_every",
)


def flatten(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("model.ch", 128) for every field."""
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def load_config(path: str | pathlib.Path) -> ConfigDict:
    """Runs a config file and returns its config, completed by the defaults.

    Raises:
      UsageError: there is no such file (the nearest is suggested), it fails, or it sets a field that does not exist.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        beside = [str(p) for p in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
        there = f"There are {', '.join(beside)}." if beside else f"Paths start from {pathlib.Path.cwd()}."
        raise UsageError(f"There is no config file {path}.{suggest(str(path), beside)} {there}")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None:
        raise UsageError(f"{path} is not a Python file: a config is Python with get_config().")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"The config file {path} fails: {type(error).__name__}: {error}") from error
    if not isinstance(config, Mapping | ConfigDict):
        raise UsageError(f"get_config() of {path} returns {config!r}: it must return a ConfigDict or a dict.")
    return from_dict(config.to_dict() if isinstance(config, ConfigDict) else config, source=str(path))


def from_dict(values: Mapping[str, Any], *, source: str) -> ConfigDict:
    """Returns the default config with `values` (nested dicts, as from JSON) in place of its own.

    Raises:
      UsageError: an unknown field or a value of the wrong type; `source` says where it stands.
    """
    config = default_config()
    for name, value in flatten(values):
        value = _in_todays_words(name, value)
        check_field(name, config, source)
        try:
            parent, _, field = name.rpartition(".")
            target = _group(config, parent)
            target[field] = tuple(value) if isinstance(value, list) else value
        except (TypeError, ValueError) as error:
            raise UsageError(f"{source}: {_type_sentence(name, value, config)}") from error
    return config


def _in_todays_words(name: str, value: Any) -> Any:
    """What a field of an older config would be called now: model.remat was once true or false."""
    return ("blocks" if value else "none") if name == "model.remat" and isinstance(value, bool) else value


def _group(config: ConfigDict, dotted: str) -> ConfigDict:
    for part in filter(None, dotted.split(".")):
        config = config[part]
    return config


def check_field(name: str, config: ConfigDict, source: str) -> None:
    """Refuses a dotted name that is not a field, suggesting the nearest.

    Raises:
      UsageError: it is not a field.
    """
    fields = [field for field, _ in flatten(config)]
    if name in config:
        if isinstance(config[name], ConfigDict):
            inside = ", ".join(f"{name}.{field}" for field in config[name])
            raise UsageError(f"{source}: {name!r} is a group of config fields: set one of {inside}.")
    elif name not in fields:
        # A field's own name outweighs the group it was looked for in: model.batch_size means train.batch_size.
        leaf = name.rpartition(".")[2]
        near = [f for f in fields if f.rpartition(".")[2] == leaf] or difflib.get_close_matches(name, fields, n=1)
        hint = (
            f" Did you mean {near[0]!r}?"
            if near
            else f" The groups are {', '.join(n for n in config if isinstance(config[n], ConfigDict))}."
        )
        raise UsageError(f"{source}: there is no config field {name!r}.{hint}")


def _type_sentence(name: str, value: Any, config: ConfigDict) -> str:
    parent, _, field = name.rpartition(".")
    group = _group(config, parent)
    kind = group.get_type(field).__name__
    return f"config field {name!r} is of type {kind} and cannot be {value!r} (it is {group[field]!r} now)."


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits a command line into its --config.FIELD=VALUE arguments (also "--config.FIELD VALUE") and the others.

    Raises:
      UsageError: a field without a value.
    """
    overrides, others = [], []
    rest = iter(argv)
    for argument in rest:
        if argument.lstrip("-").startswith("config.") and argument.startswith("-"):
            if "=" not in argument:
                value = next(rest, None)
                if value is None or value.startswith("--"):
                    raise UsageError(f"{argument} has no value: write {argument}=VALUE, as in --config.data.flip=true.")
                argument = f"{argument}={value}"
            overrides.append("--" + argument.lstrip("-"))
        else:
            others.append(argument)
    return overrides, others


def override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Applies --config.FIELD=VALUE arguments.

    Raises:
      UsageError: an unknown field, or a value of the wrong type.
    """
    for argument in overrides:
        name, _, value = argument.removeprefix("--config.").partition("=")
        check_field(name, config, "command line")
        try:
            values = flags.FlagValues()
            config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["", argument])
            values(["", argument])
        except (flags.Error, TypeError, ValueError, SyntaxError) as error:
            raise UsageError(f"command line: {_type_sentence(name, value, config)}") from error
        config = values.config
    return config


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """Plain nested dicts with lists for tuples, as JSON gives them back."""
    return json.loads(json.dumps(config.to_dict(preserve_field_references=False)))


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Returns "model.ch (64 there, 32 here)" for each field that keeps a run with `ours` from continuing `theirs`."""
    # A run from before a field existed was made with what is its default now.
    here, there = dict(flatten(ours)), dict(flatten(to_dict(default_config()))) | dict(flatten(theirs))
    names = [name for name in here | there if name not in RESUMABLE and here.get(name) != there.get(name)]
    return [f"{name} ({there.get(name)!r} there, {here.get(name)!r} here)" for name in names]


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
_ABOVE_ZERO = ("model.norm_eps", "optimizer.learning_rate", "optimizer.eps", "sharp.discriminator_learning_rate")
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
            raise UsageError(f"{name} is {values[name]}: it must be whole numbers of at least 1, as in 1,2,2.")
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
    _check_condition(config)
    _check_objective(config)
    _check_network(config)
    _check_ema(config)
    steps, num_timesteps = values["train.sample_steps"], values["diffusion.num_timesteps"]
    if steps > num_timesteps:
        raise UsageError(
            f"train.sample_steps is {steps}, more than the {num_timesteps} of diffusion.num_timesteps: "
            f"choose 1 to {num_timesteps}."
        )


def _check_objective(config: ConfigDict) -> None:
    what = choose("objective", config.objective, OBJECTIVES)
    if config.objective == "classifier" and config.condition.num_classes < 2:
        raise UsageError(
            f"condition.num_classes is {config.condition.num_classes}, and a classifier tells classes apart: set it to "
            "the number of classes of the data."
        )
    _check_unused(config, _NO_PART[config.objective], what)
    if config.objective != "first_stage":
        _check_latents(config, what)
    else:
        _check_unused(config, [f"first_stage.{name}" for name in _OF_LATENTS], what)
        kind = config.first_stage.kind
        unused = choose("kind of first stage", kind, _NO_PART_OF_KIND)
        _check_unused(config, [f"first_stage.{name}" for name in unused], f"a first stage of the kind {kind!r}")
        if config.first_stage.codebook == "gradient":
            names = [f"first_stage.{name}" for name in _OF_AVERAGES]
            _check_unused(config, names, "a codebook that is learned by its gradient")
        if config.first_stage.scale == "pixel":
            _check_unused(config, ["first_stage.log_scale"], "a decoder that gives a scale for each number")
        _check_sharp(config)


def _check_sharp(config: ConfigDict) -> None:
    c = config.sharp
    if not c.perceptual_weight:
        _check_unused(config, ["sharp.perceptual_file"], "a first stage without sharp.perceptual_weight")
    if not c.adversarial_weight:
        names = [name for name in c if name.startswith(("start_", "discriminator_"))]
        _check_unused(config, [f"sharp.{name}" for name in names], "a first stage without sharp.adversarial_weight")
    elif c.start_step >= config.train.num_steps:
        raise UsageError(
            f"sharp.start_step is {c.start_step}, but the run ends after {config.train.num_steps} steps "
            "(train.num_steps), and the discriminator would never begin: start it sooner, or train longer."
        )


def _check_network(config: ConfigDict) -> None:
    what = choose("network", config.model.name, NETWORKS)
    if config.model.name != "unet" and config.objective != "diffusion":
        raise UsageError(
            f"model.name is {config.model.name!r}, but {OBJECTIVES[config.objective]} is made of the U-Net's blocks: "
            "set it to 'unet'."
        )
    _check_unused(config, _NO_PART_OF_NETWORK[config.model.name], what)


def _check_latents(config: ConfigDict, what: str) -> None:
    """Refuses fields of a first stage where it is trained already, or where there is none."""
    stage = config.first_stage
    own = [f"first_stage.{name}" for name in stage if name not in _OF_LATENTS]
    _check_unused(config, own, f"{what} over latents, whose first stage brings its own," if stage.ckpt else what)
    if not stage.ckpt:
        _check_unused(config, [f"first_stage.{name}" for name in _OF_LATENTS], f"{what} of pixels")
    elif config.condition.low_res_factor:
        raise UsageError(
            f"condition.low_res_factor is {config.condition.low_res_factor}, but a model over latents can be told no "
            "image of lower resolution: set it to 0, or leave out first_stage.ckpt."
        )


def _check_unused(config: ConfigDict, names: Iterable[str], what: str) -> None:
    """Refuses fields that were set though nothing reads them; a name without a dot is a whole group."""
    values, defaults = dict(flatten(config)), dict(flatten(default_config()))
    for name, value in values.items():
        if (name in names or name.split(".")[0] in names) and value != defaults[name]:
            raise UsageError(f"{name} is {value!r}, but {what} has none: leave it {defaults[name]!r}.")


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
            raise UsageError(f"ema.decays has {decay!r}: every decay must be in [0, 1), as in 0.999,0.9999.")
    for width in e.sigma_rels:
        if not (isinstance(width, float) and 0 < width < WIDEST):
            raise UsageError(
                f"ema.sigma_rels has {width!r}: every relative width must be above 0 and below {WIDEST:.4f}, where all "
                "of the run weighs the same, as in 0.05,0.10."
            )
    if e.snapshot_every and not e.sigma_rels:
        raise UsageError(
            f"ema.snapshot_every is {e.snapshot_every}, but there are no averages to save: set ema.sigma_rels, to "
            "0.05,0.10, say."
        )
    if e.sigma_rels and not e.snapshot_every:
        raise UsageError(
            f"ema.sigma_rels is {e.sigma_rels}, but no snapshots are saved of these averages: set ema.snapshot_every, "
            "to a fiftieth of train.num_steps, say."
        )


def _check_condition(config: ConfigDict) -> None:
    c, size = config.condition, config.data.image_size
    if c.label_dropout and not c.num_classes:
        raise UsageError(
            f"condition.label_dropout is {c.label_dropout}, but the network is told no labels to hide: "
            "set condition.num_classes to the number of classes of the data."
        )
    if c.low_res_factor == 1:
        raise UsageError(
            "condition.low_res_factor is 1, which tells the network the image itself: use 0 or 2 and more."
        )
    if c.low_res_factor and size % c.low_res_factor:
        raise UsageError(
            f"condition.low_res_factor is {c.low_res_factor}, which does not divide data.image_size {size}: "
            "choose a divisor."
        )
