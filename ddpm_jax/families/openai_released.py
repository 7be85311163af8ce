"""The models that OpenAI has released: their architectures, and what their files do not say.

Nichol and Dhariwal (2021), Improved Denoising Diffusion Probabilistic Models, and Dhariwal and
Nichol (2021), Diffusion Models Beat GANs on Image Synthesis. The settings are those of the flags
that are published with the files, and of the defaults of the scripts they are for. A model is
called as its file is, without `.pt`.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from ddpm_jax.errors import UsageError, choose
from ddpm_jax.families.foreign import Assumption, Request, Tensors
from ddpm_jax.families.openai_blocks import SIZES, Architecture, unsaid
from ddpm_jax.interop.containers import Container

CLASSES = 1000  # of ImageNet
_CH_MULT = {size: ch_mult for ch_mult, size in SIZES.items()}
_OF_TRAINING = {"model.dropout", "diffusion.loss"}


class Released(NamedTuple):
    """A released model."""

    architecture: Architecture
    settings: Mapping[str, Any]  # fields of a config that the files do not tell
    parameters: str = ""  # how many there are, as published


def _unet(
    size: int,
    ch: int,
    blocks: int,
    attention: tuple[int, ...],
    *,
    parameters: str,
    classes: int = 0,
    low_res_factor: int = 0,
    scale_shift_norm: bool = True,
    guided: bool = False,
    **settings: Any,
) -> Released:
    """Describe a U-Net by the flags of the scripts; `ch` is that of the first level."""
    ch_mult = _CH_MULT[256 if low_res_factor else size]
    architecture = Architecture(
        in_channels=6 if low_res_factor else 3,
        out_channels=6,
        ch=ch,
        ch_mult=ch_mult,
        num_res_blocks=blocks,
        attends=_levels(size, ch_mult, attention),
        scale_shift_norm=scale_shift_norm,
        resampling="block" if guided else "conv",
        num_classes=classes,
        # one flag has the channels of both but for the network at 512x512, which begins with half
        time_channels=256 if size == 512 and not low_res_factor else 0,
    )
    common = {
        "data.image_size": size,
        "model.qkv_order": "heads",
        "model.dropout": 0.0,
        "diffusion.num_timesteps": 1000,
        "diffusion.schedule": "linear",
        "diffusion.parameterization": "eps",
        "diffusion.loss": "hybrid",
    }
    if low_res_factor:
        common["condition.low_res_factor"] = low_res_factor
    return Released(architecture, common | _dotted(settings), parameters)


def _classifier(size: int, ch: int, blocks: int, *, parameters: str, schedule: str) -> Released:
    ch_mult = _CH_MULT[size]
    architecture = Architecture(
        in_channels=3,
        out_channels=CLASSES,
        ch=ch,
        ch_mult=ch_mult,
        num_res_blocks=blocks,
        attends=_levels(size, ch_mult, (32, 16, 8)),
        scale_shift_norm=True,
        resampling="block",
        time_channels=128 if size == 512 else 0,
        pool="attention",
        positions=size // 2 ** (len(ch_mult) - 1),
    )
    settings = {
        "model.head_channels": 64,
        "model.qkv_order": "heads",
        "model.dropout": 0.0,
        "diffusion.num_timesteps": 1000,
        "diffusion.schedule": schedule,
    }
    return Released(architecture, settings, parameters)


def _levels(size: int, ch_mult: tuple[int, ...], attention: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(i for i in range(len(ch_mult)) if size // 2**i in attention)


def _dotted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """{"diffusion_schedule": "cosine"} -> {"diffusion.schedule": "cosine"}."""
    return {name.replace("_", ".", 1): value for name, value in settings.items()}


# of improved-diffusion
_LONG = {"diffusion_num_timesteps": 4000, "model_num_heads": 4}
_COSINE = _LONG | {"diffusion_schedule": "cosine", "diffusion_rescale_timesteps": True}
_CIFAR10 = (32, 128, 3, (16, 8))
_IMAGENET64 = (64, 128, 3, (16, 8))
_LSUN = (256, 128, 2, (16,))
# of guided-diffusion
_GUIDED = {"guided": True, "model_head_channels": 64}
_ATTENTION = (32, 16, 8)
_ADM_LSUN = (256, 256, 2, _ATTENTION)

RELEASED = {
    "cifar10_uncond_50M_500K": _unet(*_CIFAR10, parameters="", model_dropout=0.3, **_COSINE),
    "cifar10_uncond_vlb_50M_500K": _unet(
        *_CIFAR10, parameters="", model_dropout=0.3, diffusion_loss="vlb", **_COSINE
    ),
    "imagenet64_uncond_100M_1500K": _unet(*_IMAGENET64, parameters="", **_COSINE),
    "imagenet64_uncond_vlb_100M_1500K": _unet(
        *_IMAGENET64, parameters="", diffusion_loss="vlb", **_COSINE
    ),
    "imagenet64_cond_270M_250K": _unet(
        *(64, 192, 3, (16, 8)),
        parameters="270M",
        classes=CLASSES,
        **_COSINE | {"diffusion_rescale_timesteps": False},
    ),
    "upsample_cond_500K": _unet(
        *(256, 192, 2, (16, 8)),
        parameters="280M",
        classes=CLASSES,
        low_res_factor=4,
        diffusion_scale_betas=True,
        **_LONG,
    ),
    **dict.fromkeys(
        ("lsun_uncond_100M_1200K_bs128", "lsun_uncond_100M_2400K_bs64"),
        _unet(*_LSUN, parameters="", scale_shift_norm=False, model_num_heads=1),
    ),
    "64x64_diffusion": _unet(
        *(64, 192, 3, _ATTENTION),
        parameters="296M",
        classes=CLASSES,
        model_dropout=0.1,
        model_qkv_order="maps",
        diffusion_schedule="cosine",
        **_GUIDED,
    ),
    "128x128_diffusion": _unet(
        *(128, 256, 2, _ATTENTION),
        parameters="422M",
        classes=CLASSES,
        guided=True,
        model_num_heads=4,
    ),
    "256x256_diffusion": _unet(
        *(256, 256, 2, _ATTENTION), parameters="554M", classes=CLASSES, **_GUIDED
    ),
    "256x256_diffusion_uncond": _unet(*_ADM_LSUN, parameters="", **_GUIDED),
    "512x512_diffusion": _unet(
        *(512, 128, 2, _ATTENTION), parameters="559M", classes=CLASSES, **_GUIDED
    ),
    "64_256_upsampler": _unet(
        *(256, 192, 2, _ATTENTION),
        parameters="312M",
        classes=CLASSES,
        low_res_factor=4,
        guided=True,
        model_num_heads=4,
    ),
    "128_512_upsampler": _unet(
        *(512, 192, 2, (32, 16)),
        parameters="309M",
        classes=CLASSES,
        low_res_factor=4,
        **_GUIDED,
    ),
    **dict.fromkeys(
        ("lsun_bedroom", "lsun_cat", "lsun_horse"),
        _unet(*_ADM_LSUN, parameters="552M", model_dropout=0.1, **_GUIDED),
    ),
    "lsun_horse_nodropout": _unet(*_ADM_LSUN, parameters="552M", **_GUIDED),
    "64x64_classifier": _classifier(64, 128, 4, parameters="65M", schedule="cosine"),
    "128x128_classifier": _classifier(128, 128, 2, parameters="43M", schedule="linear"),
    "256x256_classifier": _classifier(256, 128, 2, parameters="54M", schedule="linear"),
    "512x512_classifier": _classifier(512, 64, 2, parameters="54M", schedule="linear"),
}


def find_released(
    architecture: Architecture, request: Request, path: pathlib.Path
) -> tuple[dict[str, Assumption], str]:
    """Return the settings of the released model of this architecture, and its name.

    Of several that are alike, that is taken whose name the file has, or else the first, and all are
    named. Without any, both are empty.

    Args:
      architecture: of the files.
      request: its preset, if any, is the model that is taken, or how the names of some begin, as
        "imagenet64": those of them of this architecture.
      path: of the files.

    Raises:
      UsageError: there is no such preset, or it is of another architecture.
    """
    alike = [name for name, model in RELEASED.items() if model.architecture == architecture]
    if request.preset is not None:
        alike = _named(request.preset, architecture, path)
    elif path.stem in alike:
        alike = [path.stem]
    if not alike:
        return {}, ""
    why = f"as in {' and '.join(alike)}"
    if request.preset is None:
        why += f", which {'have' if alike[1:] else 'has'} these sizes"
    assumed = {
        name: Assumption(value, f"{why}; of training only" if name in _OF_TRAINING else why)
        for name, value in RELEASED[alike[0]].settings.items()
    }
    return assumed, " or ".join(alike)


def _named(preset: str, found: Architecture, path: pathlib.Path) -> list[str]:
    """Return the released models of an architecture that a preset names."""
    begun = [name for name in RELEASED if name.startswith(f"{preset}_")]
    if preset in RELEASED or not begun:
        model = choose("preset", preset, RELEASED)
        _check_fits(model.architecture, found, preset, path)
        return [preset]
    named = [name for name in begun if RELEASED[name].architecture == found]
    if not named:
        raise UsageError(
            f"{path} is none of {', '.join(begun)}: it has a network of other sizes. Leave out "
            "the preset, and say by fields of the config what the file does not."
        )
    return named


def common_parts(
    container: Container,
    weights: Mapping[str, Tensors],
    assumed: Mapping[str, Assumption],
    request: Request,
    released_as: str,
) -> dict[str, Any]:
    """Return the fields of `Foreign` that are made alike for U-Nets and classifiers."""
    return {
        "assumed": unsaid(assumed, request),
        "weights": weights,
        "unread": tuple(container.unread.values()),
        "released_as": released_as,
        "published": _published(released_as),
    }


def _published(released_as: str) -> str:
    """Return the number of parameters that is published for the models that are named."""
    return RELEASED[released_as.split(" or ")[0]].parameters if released_as else ""


def _check_fits(wanted: Architecture, found: Architecture, preset: str, path: pathlib.Path) -> None:
    for name in Architecture._fields:
        there, here = getattr(wanted, name), getattr(found, name)
        if there != here:
            raise UsageError(
                f"{path} is not {preset}: {name} of its network is {here!r}, and {there!r} of that."
            )
