"""Noisy classifiers of OpenAI's guided-diffusion: a state dict, and nothing beside it."""

from ddpm_jax.families.foreign import Foreign, Request
from ddpm_jax.families.openai_blocks import (
    guesses,
    image_size,
    network_fields,
    networks_in,
    read_architecture,
)
from ddpm_jax.families.openai_released import common_parts, find_released
from ddpm_jax.interop.containers import Container
from ddpm_jax.interop.openai import classifier_params_from_openai, classifier_params_to_openai

FAMILY = "a classifier of OpenAI's guided-diffusion"


def recognise(container: Container, request: Request) -> Foreign | None:
    """Describe a classifier; None for other files.

    Args:
      container: a group of it is a state dict.
      request: `preset` is a key of `openai_released.RELEASED`.

    Raises:
      UsageError: the network is none of ours, or another one than the preset's.
    """
    weights = networks_in(container, classifiers=True)
    if not weights:
        return None
    architecture = read_architecture(next(iter(weights.values())), request, container.path)
    released, name = find_released(architecture, request, container.path)
    assumed = released or guesses(architecture, request)
    fields = {
        "objective": "classifier",
        "data.channels": architecture.in_channels,
        "condition.num_classes": architecture.out_channels,
        "model.pool": architecture.pool,
    }
    if architecture.positions:
        size = architecture.positions * 2 ** (len(architecture.ch_mult) - 1)
        fields["data.image_size"] = size
        assumed = {name: guess for name, guess in assumed.items() if name not in fields}
    else:
        size = image_size(assumed, request)
    return Foreign(
        family=FAMILY,
        fields=network_fields(architecture, size) | fields,
        read=classifier_params_from_openai,
        write=classifier_params_to_openai,
        **common_parts(container, weights, assumed, request, name),
    )
