"""The config: every field with its default and meaning.

A config file is Python with `get_config()`, which starts from `default_config()` and sets what its
experiment needs; any field can be overridden on the command line. Lower layers never see a
ConfigDict.
"""

import difflib
import importlib.util
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

import ddpm_jax
from ddpm_jax.cli.synonyms import FIELDS, ours
from ddpm_jax.errors import UsageError, suggest

CONFIGS = "configs"  # the folder of those that come with the package


def default_config() -> ConfigDict:
    """Every field there is. The values are those of DDPM on CIFAR-10 (Ho et al. 2020)."""
    return ConfigDict(
        {
            "seed": 0,  # of the initial weights, the data order and every draw
            # the state on every device, or split over them where it outgrows one: pmap, fsdp
            "parallel": "pmap",
            # what is trained: diffusion, classifier (of noisy images), first_stage
            "objective": "diffusion",
            # directory of a run whose weights this one begins with; "": they are drawn
            "init_from": "",
            # which of its checkpoints; None: the newest
            "init_from_step": config_dict.placeholder(int),
            "init_from_raw": False,  # its weights as trained, instead of their moving average
            "data": {
                "name": "cifar10",  # a TFDS image dataset, "digits", or "folder"
                # TFDS's data_dir, or the folder of images; "" is TFDS's own default
                "data_dir": "",
                "train_split": "train",
                "test_split": "test",  # held out: never trained on
                # share of the training images to hold out where the dataset has no test split
                "holdout": 0.0,
                "image_size": 32,  # height and width in pixels
                "channels": 3,  # 1 or 3
                "flip": True,  # mirror training images at random
                "cache": "auto",  # keep decoded images in memory: auto, always, never
                "unreadable": "stop",  # an image that cannot be read: stop, skip
                "small": "stop",  # an image smaller than image_size: stop, skip, enlarge
                # what the folders in a folder of images are: classes, splits, auto (by their names)
                "layout": "auto",
            },
            "diffusion": {
                "num_timesteps": 1000,  # T
                "rescale_timesteps": False,  # tell the network times in 0..1000 whatever T is
                # linear, quad, const, jsd, warmup10, warmup50, cosine, scaled_linear, sigmoid
                "schedule": "linear",
                # None is the schedule's published value
                "beta_start": config_dict.placeholder(float),
                "beta_end": config_dict.placeholder(float),
                # the end points are those of 1000 steps: scale them to num_timesteps
                "scale_betas": False,
                "parameterization": "eps",  # what the network predicts: eps, x_0, v, mu
                "variance": "fixed_large",  # fixed_small, fixed_large, learned, learned_range
                "loss": "simple",  # simple, vlb, hybrid
                "weighting": "uniform",  # of the simple loss over t: uniform, min_snr, p2
                "timestep_sampling": "uniform",  # of t in training: uniform, antithetic, importance
            },
            "model": {
                # the network: unet, or dit with its fields below; of these it has the last five
                "name": "unet",
                "ch": 128,  # channels of the first level
                "ch_mult": (1, 2, 2, 2),  # channels of each level, in units of ch
                "num_res_blocks": 2,  # per level on the way down, one more on the way up
                "attn_resolutions": (16,),  # heights of the feature maps that get attention
                "num_heads": 1,
                "scale_shift_norm": False,  # the time scales and shifts the second norm of a block
                # where a stride of 2 pads: end (DDPM), both (Improved DDPM)
                "downsample_padding": "end",
                "dropout": 0.1,
                # sin_cos (DDPM), cos_sin (Improved DDPM, DiT), cos_sin_inclusive
                "time_embedding": "sin_cos",
                "norm_eps": 1e-6,  # added to the variance in normalisations
                "dtype": "float32",  # of the computation: float32, bfloat16; parameters are float32
                # what is computed again in the backward pass, for memory: none, products, blocks
                "remat": "none",
            },
            "dit": {  # the transformer
                "size": "S",  # of its paper: S, B, L, XL; custom: of the next three fields
                "hidden_size": 384,  # channels of a token
                "depth": 12,  # blocks
                "num_heads": 6,
                # height and width of what becomes a token, in pixels of what the network sees
                "patch_size": 2,
            },
            "condition": {  # what the network is told of an image beside x_t and t
                "num_classes": 0,  # its class, of the data's so many; 0: not told
                # share of the labels hidden in training, for classifier-free guidance
                "label_dropout": 0.0,
                # the image shrunk so many times, as in super-resolution; 0: not told
                "low_res_factor": 0,
            },
            # an autoencoder; of the fields of model it has all but those of the time
            "first_stage": {
                # The first three are of a model over the latents of one that is trained already,
                # the others of its own.
                "ckpt": "",  # directory of its run: the model is one of its latents; "": of pixels
                # what the latents are multiplied by; 0: one over their standard deviation
                "latent_scale": 0.0,
                "cache": "",  # directory to keep encoded images in; "": every batch is encoded anew
                "kind": "vae",  # ae, vae, vq
                # of the latents, 2**(len(model.ch_mult) - 1) times smaller than the image
                "latent_channels": 4,
                # what the decoder says of a pixel: gaussian, discretized_logistic, bernoulli
                "family": "gaussian",
                # of its distribution: fixed, shared (one number, learned), pixel (by the decoder)
                "scale": "shared",
                "log_scale": 0.0,  # of the fixed scale, or where the shared one starts
                "beta": 1.0,  # vae: weight of the KL
                "kl_warmup_steps": 0,  # vae: over which it rises from 0
                "free_nats": 0.0,  # vae: of the KL of each latent channel, that cost nothing
                "num_codes": 512,  # vq: rows of the codebook
                "commitment": 0.25,  # vq: weight of the loss that keeps vectors near their codes
                "codebook": "averages",  # vq: how it is learned: averages, gradient
                # vq: of the averages; a codebook learned by its gradient has none
                "codebook_decay": 0.99,
                # of the averages: vectors per update below which a code is given a new place
                "restart_below": 0.0,
            },
            # what reconstructions of a first stage are held against, beside what the decoder says
            # of them
            "sharp": {
                # of the LPIPS distance, nats per dimension for a distance of 1; 0: none
                "perceptual_weight": 0.0,
                # its weights, NPZ or safetensors; a run that has begun has them itself
                "perceptual_file": "",
                # of a discriminator's verdict, times the adaptive weight; 0: none
                "adversarial_weight": 0.0,
                "start_step": 0,  # updates before discriminator and verdict begin
                "discriminator_ch": 64,  # channels of its first layer
                # of stride 2: a logit sees 70x70 pixels with 3, 34x34 with 2, 16x16 with 1
                "discriminator_layers": 3,
                # of its Adam; warm-up and decay are those of the optimizer
                "discriminator_learning_rate": 2e-4,
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
                # replica: each device's gradient, as the original; average: the batch's
                "clip_scope": "replica",
                "accumulate_steps": 1,  # parts in which a device computes its share of the batch
            },
            "ema": {
                "decay": 0.9999,
                "warmup": False,  # min(decay, (1 + step) / (10 + step))
                # Half-life at most this share of the steps done: EDM has 0.05; 0 for no limit
                "rampup_ratio": 0.0,
                # above 0: a power function of time of this relative width (EDM2), and no decay
                "sigma_rel": 0.0,
                "decays": (),  # of further averages, kept for `python -m ddpm_jax.cli.ema`
                # Likewise; from snapshots of two of these any width can be made after training
                "sigma_rels": (),
                "snapshot_every": 0,  # steps between these snapshots; 0 for none
            },
            "train": {
                "num_steps": 800_000,
                "batch_size": 128,  # over all devices
                "log_every": 100,  # steps between records
                "sample_every": 10_000,  # steps between sample grids; 0 for only the last
                "num_samples": 64,  # images in a grid
                "sample_steps": 1000,  # steps of the chain for a grid
                # updates in a row that are passed over if loss or gradient is not finite
                "skip_nonfinite": 0,
                # show samples of the raw weights beside those of the EMA: twice the sampling
                "raw_grid": False,
                # updates dispatched together: more where a step takes milliseconds
                "steps_per_call": 1,
            },
            "checkpoint": {
                "save_every": 5000,  # steps
                "keep_last": 2,
                # keep also every checkpoint at a multiple of this, for ever; 0 for none
                "keep_every": 0,
            },
        }
    ).lock()


# A run may be resumed with other values of these: they change neither the model nor the draws.
# Where the learning rate falls over train.num_steps, `optimizer.check_length` says when that may
# change.
RESUMABLE = (
    "parallel",
    "data.data_dir",
    "data.cache",
    "data.unreadable",
    "data.small",
    "data.layout",  # the fingerprint of the data tells
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


_WANTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: "values separated by commas",
}


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
      UsageError: there is no such file (the nearest is suggested), it fails, or it sets a field
        that does not exist.
    """
    path = config_file(path)
    if not path.is_file():
        beside = [str(p) for p in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
        if path.name == str(path):
            beside = sorted(
                {file.stem for folder in _config_folders() for file in folder.glob("*.py")}
            )
        there = (
            f"There are {', '.join(beside)}."
            if beside
            else f"Paths start from {pathlib.Path.cwd()}."
        )
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
        raise UsageError(
            f"The config file {path} fails: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, Mapping | ConfigDict):
        raise UsageError(
            f"get_config() of {path} returns {config!r}: it must return a ConfigDict or a dict."
        )
    return from_dict(
        config.to_dict() if isinstance(config, ConfigDict) else config, source=str(path)
    )


def config_file(name: str | pathlib.Path) -> pathlib.Path:
    """Find the file that --config names: a path, or for "digits" the digits.py of a folder of configs.

    These are configs/ of the current directory, then those that come with the package. Where there
    is no such file, returns `name` as a path.
    """
    path = pathlib.Path(name)
    if path.is_file() or path.name != str(name) or path.suffix not in ("", ".py"):
        return path
    return next(
        (file for folder in _config_folders() if (file := folder / f"{path.stem}.py").is_file()),
        path,
    )


def _config_folders() -> tuple[pathlib.Path, ...]:
    package = pathlib.Path(ddpm_jax.__file__).parent
    # a wheel holds them inside the package, a checkout next to it
    ours = package / CONFIGS if (package / CONFIGS).is_dir() else package.parent / CONFIGS
    return pathlib.Path(CONFIGS), ours


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
            if not _fits(value, target.get_type(field), optional=target[field] is None):
                raise TypeError(value)
            target[field] = tuple(value) if isinstance(value, list) else value
        except (TypeError, ValueError) as error:
            raise UsageError(f"{source}: {_type_sentence(name, value, config)}") from error
    return config


def _fits(value: Any, kind: type, *, optional: bool) -> bool:
    """Whether a value is of a field's type. ConfigDict is less strict: it takes true for a number
    and null for all."""
    if value is None:
        return optional
    if isinstance(value, list | tuple):
        return all(isinstance(item, int | float) and not isinstance(item, bool) for item in value)
    return isinstance(value, bool) == issubclass(kind, bool)


def _in_todays_words(name: str, value: Any) -> Any:
    """What a field of an older config would be called now: model.remat was once true or false."""
    return (
        ("blocks" if value else "none")
        if name == "model.remat" and isinstance(value, bool)
        else value
    )


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
            raise UsageError(
                f"{source}: {name!r} is a group of config fields: set one of {inside}."
            )
    elif name not in fields:
        known = field_called(name, config)
        near = [known] if known else difflib.get_close_matches(name, fields, n=1)
        hint = (
            f" Did you mean {near[0]!r}?"
            if near
            else f" The groups are {', '.join(n for n in config if isinstance(config[n], ConfigDict))}."
        )
        raise UsageError(f"{source}: there is no config field {name!r}.{hint}")


def field_called(name: str, config: ConfigDict) -> str | None:
    """The field that `name`, perhaps with a group before it, stands for in our words or others';
    None where unknown."""
    fields = [field for field, _ in flatten(config)]
    # A field's own name outweighs the group it was looked for in: model.batch_size means
    # train.batch_size.
    leaf = name.rpartition(".")[2]
    return next((field for field in fields if field.rpartition(".")[2] == leaf), None) or ours(
        leaf, FIELDS, fields
    )


def _type_sentence(name: str, value: Any, config: ConfigDict) -> str:
    parent, _, field = name.rpartition(".")
    group = _group(config, parent)
    kind = group.get_type(field)
    wanted = _WANTED.get(kind)
    return (
        f"config field {name!r} is of type {kind.__name__} and cannot be {value!r} (it is "
        f"{group[field]!r} now){f': give {wanted}' if wanted else ''}."
    )


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits a command line into its --config.FIELD=VALUE arguments (also "--config.FIELD VALUE")
    and the others.

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
                    raise UsageError(
                        f"{argument} has no value: write {argument}=VALUE, as in "
                        "--config.data.flip=true."
                    )
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
            config_flags.DEFINE_config_dict(
                "config", config, flag_values=values, sys_argv=["", argument]
            )
            values(["", argument])
        except (flags.Error, TypeError, ValueError, SyntaxError) as error:
            raise UsageError(f"command line: {_type_sentence(name, value, config)}") from error
        config = values.config
    return config


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """Plain nested dicts with lists for tuples, as JSON gives them back."""
    return json.loads(json.dumps(config.to_dict(preserve_field_references=False)))


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Every field by its dotted name; a run from before a field existed was made with what is its
    default now."""
    return dict(flatten(to_dict(default_config()))) | dict(flatten(values))


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Returns "model.ch (64 there, 32 here)" for each field that keeps a run with `ours` from
    continuing `theirs`."""
    here, there = dict(flatten(ours)), completed(theirs)
    names = [
        name for name in here | there if name not in RESUMABLE and here.get(name) != there.get(name)
    ]
    return [f"{name} ({there.get(name)!r} there, {here.get(name)!r} here)" for name in names]
