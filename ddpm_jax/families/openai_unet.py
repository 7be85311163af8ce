"""U-Nets of OpenAI's improved-diffusion and guided-diffusion: a state dict, and nothing beside it.

Sizes, attention, classes, low-resolution input and a learned variance follow from names and shapes.
Heads, the order of q, k and v, the process and the image size do not: they are taken from the user,
from the released model of the same architecture, or assumed.
"""

from typing import Any

from ddpm_jax.errors import UsageError
from ddpm_jax.families.foreign import Assumption, Foreign, Request
from ddpm_jax.families.openai_blocks import (
    Architecture,
    guesses,
    image_size,
    network_fields,
    networks_in,
    read_architecture,
)
from ddpm_jax.families.openai_released import common_parts, find_released
from ddpm_jax.interop.containers import Container
from ddpm_jax.interop.openai import unet_params_from_openai, unet_params_to_openai

FAMILY = "OpenAI's improved- or guided-diffusion"


def recognise(container: Container, request: Request) -> Foreign | None:
    """Describe a U-Net; None for other files.

    Args:
      container: a group of it is a state dict.
      request: `preset` is a key of `openai_released.RELEASED`.

    Raises:
      UsageError: the network is none of ours, or another one than the preset's.
    """
    weights = networks_in(container, classifiers=False)
    if not weights:
        return None
    architecture = read_architecture(next(iter(weights.values())), request, container.path)
    channels = _image_channels(architecture, container)
    released, name = find_released(architecture, request, container.path)
    assumed = released or _guesses(architecture, channels, request)
    size = image_size(assumed, request)
    return Foreign(
        family=FAMILY,
        fields=network_fields(architecture, size) | _fields(architecture, channels, request),
        read=unet_params_from_openai,
        write=unet_params_to_openai,
        **common_parts(container, weights, assumed, request, name),
    )


def _image_channels(architecture: Architecture, container: Container) -> int:
    """Return the channels of an image: those in, or half of them beside a low-resolution image."""
    ins, outs = architecture.in_channels, architecture.out_channels
    for channels in (1, 3):
        if ins in (channels, 2 * channels) and outs in (channels, 2 * channels):
            return channels
    raise UsageError(
        f"input_blocks.0.0.weight of {container.path} takes {ins} channels and out.2.weight gives "
        f"{outs}: networks of images of 1 or 3 channels are known here, which may be given a "
        "second image and may learn a variance."
    )


def _fields(architecture: Architecture, channels: int, request: Request) -> dict[str, Any]:
    classes = architecture.num_classes
    fields = {
        "objective": "diffusion",
        "data.channels": channels,
        "condition.num_classes": classes,
    }
    if classes:  # of which the user may say that the last carries no information
        has_null = request.fields.get("condition.null_class") is True and classes > 1
        fields["condition.null_class"] = has_null
        fields["condition.num_classes"] = classes - has_null
    if architecture.out_channels != channels:
        fields["diffusion.variance"] = "learned_range"  # there is no other kind in this code
    if architecture.in_channels == channels:
        fields["condition.low_res_factor"] = 0
    return fields


def _guesses(architecture: Architecture, channels: int, request: Request) -> dict[str, Assumption]:
    default = "the default of OpenAI's scripts"
    assumed = guesses(architecture, request)
    assumed["diffusion.parameterization"] = Assumption("eps", default)
    learned = architecture.out_channels != channels
    if not learned:
        assumed["diffusion.variance"] = Assumption("fixed_large", default)
    assumed["diffusion.loss"] = Assumption(
        "hybrid" if learned else "simple", f"{default}; of training only"
    )
    if architecture.in_channels != channels:
        assumed["condition.low_res_factor"] = Assumption(4, "as in all released networks")
    return assumed
