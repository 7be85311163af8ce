"""`UNet2DModel` of diffusers: a DDPMPipeline or DDIMPipeline, its U-Net alone, or a state dict.

The process of a U-Net without a scheduler is assumed to be that of `DDPMScheduler` as its class has
it, the one of diffusers' training script; the options that a state dict without a config does not
say (`diffusers_unet2d_shapes`) those of the class, too.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.families.ddpm_networks import ATTENDS, BLOCKS, CH, RELEASED
from ddpm_jax.families.foreign import Assumption, Foreign, Request, Tensors
from ddpm_jax.interop.containers import Container
from ddpm_jax.interop.diffusers import (
    new_name,
    old_name,
    unet_params_from_diffusers,
    unet_params_to_diffusers,
)
from ddpm_jax.interop.diffusers_directory import INDEX
from ddpm_jax.interop.diffusers_options import OF_AVERAGES
from ddpm_jax.interop.diffusers_unet2d_config import CLASS, unet2d_from_config
from ddpm_jax.interop.diffusers_unet2d_shapes import (
    is_unet2d,
    options_from_shapes,
    unsaid_options,
)
from ddpm_jax.interop.schedulers import SchedulerFacts, read_scheduler
from ddpm_jax.interop.tensor_store import Renamed
from ddpm_jax.models.unet import UNet
from ddpm_jax.samplers.diffusers_levels import default_spacing
from ddpm_jax.schema import format_value

FAMILY = "diffusers' UNet2DModel"
PIPELINES = ("DDPMPipeline", "DDIMPipeline")
PARALLEL = "module."  # before all names in the state dict of a `DataParallel`
SIZE = 64  # of images where the files name none, and the user neither
MODEL_FIELDS = (  # of the network and of a config by the same name
    *("ch", "ch_mult", "num_res_blocks", "attn_resolutions", "num_heads", "head_channels"),
    *("block_down", "block_up", "mid_block", "dropout", "norm_eps", "norm_groups"),
    *("downsample_padding", "scale_shift_norm", "time_embedding", "resampling"),
)
FIELDS_OF = {  # options that a state dict does not say -> our field
    "attention_head_dim": "head_channels",
    "downsample_padding": "downsample_padding",
    "dropout": "dropout",
    "flip_sin_to_cos": "time_embedding",
    "norm_eps": "norm_eps",
    "norm_num_groups": "norm_groups",
}


class _Part(NamedTuple):
    """A network in a container."""

    config: Mapping[str, Any] | None
    tensors: Tensors
    is_average: bool
    place: str  # of the config in the container: "unet/config.json"


def recognise(container: Container, request: Request) -> Foreign | None:
    """Describe a U-Net of diffusers over pixels; None if the files are of another family.

    Args:
      container: a directory whose groups are "unet" and perhaps "unet_ema", or "" for that of a
        U-Net alone, with their config.json, and perhaps model_index.json and
        scheduler_config.json; or a file with one such network and perhaps its average, the group
        with "ema" in its keys.
      request: `condition.null_class` true says that the last of the classes is the null class, and
        `data.image_size` the size of images where the config has none. There are no presets.

    Raises:
      UsageError: an option that our network or samplers do not have; a network whose two configs
        differ; the user contradicts the files.
    """
    parts = _parts(container)
    if not parts:
        return None
    if request.preset is not None:
        raise UsageError(
            f"preset {request.preset}: there is none for the networks of diffusers, as in "
            f"{container.path}, so leave it out."
        )
    _check_pipeline(container)
    config, unsaid, whose = _config(parts[0])
    for part in parts[1:]:
        _check_same(config, _config(part)[0], container)
    size, assumed = _size(config, request, whose)
    unet = unet2d_from_config(config, size)
    channels = config.get("in_channels", 3)
    if channels not in (1, 3) or channels is True:
        raise UsageError(
            f"in_channels of the {CLASS} is {format_value(channels)}: 1 and 3 are known here, for "
            "grey and colour images."
        )
    process, of_process = _process(container, unet, channels)
    fields = {
        "objective": "diffusion",
        "data.channels": channels,
        "model.name": "unet",
        **{f"model.{name}": getattr(unet, name) for name in MODEL_FIELDS},
        **_classes(unet, request),
        **process,
    }
    if "data.image_size" not in assumed:
        fields["data.image_size"] = unet.resolution
    for option in unsaid & FIELDS_OF.keys():
        name = f"model.{FIELDS_OF[option]}"
        assumed[name] = Assumption(fields.pop(name), f"{option} of {whose}")
    assumed |= of_process
    is_old = any(new_name(name) != name for name in parts[0].tensors)
    return Foreign(
        family=FAMILY,
        fields=fields,
        assumed={name: guess for name, guess in assumed.items() if name not in request.fields},
        weights={"ema" if part.is_average else "raw": part.tensors for part in parts},
        read=unet_params_from_diffusers,
        write=_write_old if is_old else unet_params_to_diffusers,
        unread=tuple(sorted(set(container.unread.values()))),
        released_as=_released_as(unet),
        config="" if unsaid else str(container.path / parts[0].place),
    )


def _parts(container: Container) -> list[_Part]:
    """Return the networks of this family, that as trained first."""
    parts = []
    for group, found in container.groups.items():
        tensors = Renamed(found, lambda name: name.removeprefix(PARALLEL))
        place = f"{group}/config.json" if group else "config.json"
        config = container.facts.get(place)
        is_another = config is not None and config.get("_class_name") != CLASS
        if is_unet2d(tensors) and not is_another:
            is_average = "ema" in group.lower() or not OF_AVERAGES.isdisjoint(config or ())
            parts.append(_Part(config, tensors, is_average, place))
    kinds = [part.is_average for part in parts]
    if len(set(kinds)) < len(kinds):
        raise UsageError(
            f"{container.path} has several networks of the class {CLASS}: give one, and perhaps "
            "its moving average under a name with 'ema'."
        )
    return sorted(parts, key=lambda part: part.is_average)


def _config(part: _Part) -> tuple[Mapping[str, Any], set[str], str]:
    """Return (the config of a network, the options that are assumed in it, whose these are)."""
    if part.config is not None:
        return part.config, set(), ""
    shapes = {name: np.shape(value) for name, value in part.tensors.items()}
    unsaid, whose = unsaid_options(shapes)
    return options_from_shapes(shapes) | unsaid, set(unsaid), whose


def _released_as(unet: UNet) -> str:
    """Return the models of Ho et al. with this architecture, which google/ddpm-* are."""
    plain = unet.clone(dropout=0.0)
    return " or ".join(
        model.name
        for model in RELEASED.values()
        if plain
        == UNet(
            resolution=model.image_size,
            ch=CH,
            ch_mult=model.ch_mult,
            num_res_blocks=BLOCKS,
            attn_resolutions=(ATTENDS,),
            dropout=0.0,
        )
    )


def _check_pipeline(container: Container) -> None:
    """Refuse a pipeline in which the network does not predict from x_t and t what we think."""
    name = container.facts.get(INDEX, {}).get("_class_name", PIPELINES[0])
    if name not in PIPELINES:
        raise UsageError(
            f"{container.path} is a {format_value(name)}: of the pipelines with a {CLASS}, "
            f"{' and '.join(PIPELINES)} are known here."
        )


def _check_same(
    config: Mapping[str, Any], average: Mapping[str, Any], container: Container
) -> None:
    for name in sorted((config.keys() | average.keys()) - OF_AVERAGES):
        if not name.startswith("_") and config.get(name) != average.get(name):
            raise UsageError(
                f"{name} is {format_value(config.get(name))} in the config of the network in "
                f"{container.path}, and {format_value(average.get(name))} in that of its average."
            )


def _size(
    config: Mapping[str, Any], request: Request, whose: str
) -> tuple[int | None, dict[str, Assumption]]:
    """Return (the size of images where the config does not say it, what is assumed of it).

    `whose` are the options that are assumed in the config; "" if none is.
    """
    name, given = "data.image_size", config.get("sample_size")
    asked = request.fields.get(name)
    if asked is not None and (type(asked) is not int or asked < 1):
        raise UsageError(f"{name} is {format_value(asked)}: give a whole number of pixels.")
    if given is None:
        guess, why = SIZE, "no config says it, and the weights do not depend on it"
    elif whose:
        guess, why = given, f"attention is at {ATTENDS}x{ATTENDS} in {whose}"
    else:
        return (asked if isinstance(given, list) else None), {}
    return (guess if asked is None else asked), {name: Assumption(guess, why)}


def _classes(unet: UNet, request: Request) -> dict[str, Any]:
    """Return the classes, of which the last is the null class if the user says so."""
    if not unet.num_classes:
        return {"condition.num_classes": 0}
    has_null = request.fields.get("condition.null_class") is True
    return {
        "condition.num_classes": unet.num_classes - has_null,
        "condition.null_class": has_null,
    }


def _process(
    container: Container, unet: UNet, channels: int
) -> tuple[dict[str, Any], dict[str, Assumption]]:
    """Return (what the scheduler says of the process and its sampler, what is assumed).

    Raises:
      UsageError: as `read_scheduler`; a variance that is not that of the network; betas without a
        name.
    """
    names = ("scheduler/scheduler_config.json", "scheduler_config.json")
    config = next((container.facts[name] for name in names if name in container.facts), None)
    facts = read_scheduler({"_class_name": "DDPMScheduler"} if config is None else config)
    if facts.trained_betas is not None:
        raise UsageError(
            f"The scheduler of {container.path} lists its betas (trained_betas), and is read with "
            "a beta_schedule by name only."
        )
    if unet.out_channels not in (channels, 2 * channels):
        raise UsageError(
            f"out_channels of the {CLASS} is {unet.out_channels}: {channels} are expected, or "
            f"{2 * channels} where the variance is learned."
        )
    is_learned = unet.out_channels != channels
    fields = {
        "diffusion.num_timesteps": facts.num_timesteps,
        "diffusion.schedule": facts.beta_schedule,
        "diffusion.beta_start": facts.beta_start,
        "diffusion.beta_end": facts.beta_end,
        "diffusion.parameterization": facts.prediction,
        "diffusion.clip": _clip(facts),
        **_of_sampler(facts),
    }
    variance = "learned_range" if is_learned else "fixed_small"
    loss = {"diffusion.loss": Assumption("hybrid", "a learned variance is trained by it")}
    assumed = loss if is_learned else {}
    if config is None:
        why = "there is no scheduler, and this is the default of DDPMScheduler"
        assumed |= {name: Assumption(value, why) for name, value in fields.items()}
        fields = {}
    if config is None or facts.variance is None:
        why = "neither does a scheduler say it, and it is the default of DDPMScheduler"
        if is_learned:
            why = "the network has twice the channels of an image"
        return fields, assumed | {"diffusion.variance": Assumption(variance, why)}
    if (facts.variance == "learned_range") != is_learned:
        raise UsageError(
            f"variance_type of the scheduler of {container.path} is {facts.variance}, and its "
            f"{CLASS} has {unet.out_channels} out_channels for images of {channels}: one of them "
            "is of another model."
        )
    return fields | {"diffusion.variance": facts.variance}, assumed


def _clip(facts: SchedulerFacts) -> str:
    """Return the treatment of x_0 by a scheduler, a key of `clipping.CLIPPINGS`."""
    if not facts.clips(facts.sampler):
        return "none"
    return "keep_eps" if facts.sampler == "ddim" else "static"


def _of_sampler(facts: SchedulerFacts) -> dict[str, Any]:
    """Return what a scheduler says of the steps of its sampler; none where its class has that."""
    options = facts.options
    is_usual = (
        options.spacing in (None, default_spacing(facts.sampler))
        and options.set_alpha_to_one in (None, facts.sampler == "ddim")
        and (options.steps_offset, options.sigmas) == (0, None)
    )
    if is_usual:
        return {}
    said = {
        "given": True,
        "spacing": options.spacing or "",
        "sigmas": options.sigmas or "",
        "steps_offset": options.steps_offset,
        "set_alpha_to_one": options.set_alpha_to_one is not False,
    }
    return {f"scheduler.{name}": value for name, value in said.items()}


def _write_old(params: Mapping[str, Any], unet: Any) -> dict[str, np.ndarray]:
    """Return the tensors by the names that they had before diffusers 0.15."""
    return {old_name(name): x for name, x in unet_params_to_diffusers(params, unet).items()}
