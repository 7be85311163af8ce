"""The U-Net of Ho et al. (2020): what the shapes of its parameters say, and what they do not.

Shared by the original checkpoints (`ddpm_tensorflow`) and those of its PyTorch ports
(`ddpm_ports`), which have this network and this process.
"""

import itertools
import pathlib
from collections.abc import Callable, Container, Mapping
from typing import Any, NamedTuple

from ddpm_jax.errors import UsageError, choose
from ddpm_jax.families.foreign import Assumption, Request
from ddpm_jax.interop.renaming import Path

ATTENDS = 16  # height of the feature maps with attention in all released models
CH, BLOCKS = 128, 2  # of all released models


class Released(NamedTuple):
    """What is known of a released model."""

    name: str  # in words
    image_size: int
    ch_mult: tuple[int, ...]
    variance: str
    dropout: float


_AT_256 = (256, (1, 1, 2, 2, 4, 4), "fixed_small", 0.0)
RELEASED = {  # preset -> model; the names are those of configs/, where there is one
    "ddpm_cifar10": Released("DDPM on CIFAR-10", 32, (1, 2, 2, 2), "fixed_large", 0.1),
    "ddpm_celebahq256": Released("DDPM on CelebA-HQ at 256x256", *_AT_256),
    "ddpm_lsun_bedroom": Released("DDPM on LSUN Bedroom at 256x256", *_AT_256),
    "ddpm_lsun_cat": Released("DDPM on LSUN Cat at 256x256", *_AT_256),
    "ddpm_lsun_church": Released("DDPM on LSUN Church at 256x256", *_AT_256),
    "ddim_celeba64": Released("DDIM on CelebA at 64x64", 64, (1, 2, 2, 2, 4), "fixed_large", 0.1),
}


class Network(NamedTuple):
    """The parts of a `Foreign` that the families have in common."""

    fields: dict[str, Any]
    assumed: dict[str, Assumption]
    released_as: str


def describe(
    shapes: Mapping[str, tuple[int, ...]],
    rename: Callable[[Path], str],
    request: Request,
    path: pathlib.Path,
) -> Network:
    """Return the config of a network of which the names and shapes of its tensors are known.

    Args:
      shapes: by the family's names, in our layout: [height, width, in, out].
      rename: the path of one of our parameters -> its name.
      request: what the user says.
      path: of the files, for messages.

    Raises:
      UsageError: a tensor is missing that decides the sizes; the network is none of ours; the
        preset is unknown, or of another architecture.
    """

    def shape(*leaf: str) -> tuple[int, ...]:
        name = rename(leaf)
        if len(shapes.get(name, ())) != 4 or 0 in shapes[name]:
            raise UsageError(f"{path} lacks {name}, the weights of a convolution in a U-Net.")
        return shapes[name]

    _, _, channels, ch = shape("conv_in", "kernel")
    out_channels = shape("conv_out", "kernel")[-1]
    firsts = _counted(lambda i: rename((f"down_{i}_block_0", "conv1", "kernel")), shapes)
    widths = [shape(f"down_{i}_block_0", "conv1", "kernel")[-1] for i in range(firsts)]
    for i, width in enumerate(widths):
        if width % ch:
            raise UsageError(
                f"{rename((f'down_{i}_block_0', 'conv1', 'kernel'))} of {path} has {width} "
                f"channels, which is no multiple of the {ch} of the first convolution."
            )
    if out_channels not in (channels, 2 * channels):
        raise UsageError(
            f"{rename(('conv_out', 'kernel'))} of {path} has {out_channels} channels: {channels} "
            f"are expected, or {2 * channels} where the variance is learned."
        )
    attends = [
        i for i in range(len(widths)) if rename((f"down_{i}_attn_0", "norm", "scale")) in shapes
    ]
    resamples = len(widths) == 1 or rename(("down_0_downsample", "kernel")) in shapes
    fields = {
        "objective": "diffusion",
        "data.channels": channels,
        "model.name": "unet",
        "model.ch": ch,
        "model.ch_mult": tuple(width // ch for width in widths),
        "model.num_res_blocks": _counted(
            lambda j: rename((f"down_0_block_{j}", "conv1", "kernel")), shapes
        ),
        "model.num_heads": 1,
        "model.scale_shift_norm": False,
        "model.resampling": "conv" if resamples else "pool",
        "model.downsample_padding": "end",
        "model.time_embedding": "sin_cos",
        "model.norm_eps": 1e-6,
    }
    if out_channels != channels:
        fields["diffusion.variance"] = "learned"  # there is no other kind in these projects
    released, name = _released(fields, attends, request, path)
    assumed = _assumed(released, attends, fields)
    size = request.fields.get("data.image_size", assumed["data.image_size"].value)
    fields["model.attn_resolutions"] = tuple(size // 2**i for i in attends)
    unsaid = {field: guess for field, guess in assumed.items() if field not in request.fields}
    return Network(fields, unsaid, name)


def _counted(name: Callable[[int], str], names: Container[str]) -> int:
    """Return how many of the names of 0, 1, ... there are in a row."""
    return next(i for i in itertools.count() if name(i) not in names)


def _released(
    fields: Mapping[str, Any], attends: list[int], request: Request, path: pathlib.Path
) -> tuple[Released | None, str]:
    """Return the released model of this architecture, or that the preset names, and its name.

    Raises:
      UsageError: an unknown preset, or one of another architecture.
    """

    def fits(model: Released) -> bool:
        return (
            (CH, BLOCKS, model.ch_mult)
            == (fields["model.ch"], fields["model.num_res_blocks"], fields["model.ch_mult"])
            and [model.image_size // 2**i for i in attends] == [ATTENDS]
            and fields["data.channels"] == 3
            and fields["model.resampling"] == "conv"
            and "diffusion.variance" not in fields
        )

    if request.preset is not None:
        model = choose("preset", request.preset, RELEASED)
        if not fits(model):
            raise UsageError(
                f"{path} is not {model.name}, which has model.ch {CH}, model.ch_mult "
                f"{model.ch_mult}, {BLOCKS} blocks and attention at {ATTENDS}x{ATTENDS}: it has "
                f"{fields['model.ch']}, {fields['model.ch_mult']}, "
                f"{fields['model.num_res_blocks']} and attention on "
                f"{'level ' + ', '.join(map(str, attends)) if attends else 'no level'}."
            )
        return model, model.name
    found = [model for model in RELEASED.values() if fits(model)]
    # the architecture at 256x256 is that of several
    name = " or ".join(model.name for model in found)
    return (found[0] if found else None), name


def _assumed(
    released: Released | None, attends: list[int], fields: Mapping[str, Any]
) -> dict[str, Assumption]:
    if released:
        why = f"as in {released.name}, which has these sizes"
        size = Assumption(released.image_size, why)
        variance = Assumption(released.variance, why)
        dropout = Assumption(released.dropout, f"{why}; of training only")
    else:
        size = (
            Assumption(
                ATTENDS * 2 ** attends[0],
                f"attention on level {attends[0]} is at {ATTENDS}x{ATTENDS} in Ho et al.'s models",
            )
            if attends
            else Assumption(32, "there is no attention that would tell; any size will do")
        )
        variance = Assumption("fixed_large", "Ho et al.'s for CIFAR-10; fixed_small for 256x256")
        dropout = Assumption(0.1, "Ho et al.'s for CIFAR-10; of training only")
    chain = "Ho et al.'s, in all their models"
    return {
        "data.image_size": size,
        "diffusion.num_timesteps": Assumption(1000, chain),
        "diffusion.schedule": Assumption("linear", chain),
        "diffusion.parameterization": Assumption("eps", chain),
        "model.dropout": dropout,
        **(
            {"diffusion.loss": Assumption("vlb", "the bound trains it; of training only")}
            if "diffusion.variance" in fields
            else {"diffusion.variance": variance}
        ),
    }
