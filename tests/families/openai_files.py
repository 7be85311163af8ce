"""State dicts of OpenAI's networks that take no memory, and what is made of them."""

import pathlib

import jax
import numpy as np

from ddpm_jax.experiments.config import from_dict
from ddpm_jax.interop.containers import Container
from ddpm_jax.interop.openai import tensor_name, to_openai
from ddpm_jax.interop.renaming import network_shapes, shapes_of
from ddpm_jax.models.unet import UNet


def of(tensors, name="model.pt"):
    return Container(pathlib.Path(name), "a file of PyTorch", {"": tensors}, {})


def zeros(network, in_channels=3):
    """Return a state dict of a network that takes no memory."""
    side = network.resolution
    image = jax.ShapeDtypeStruct((1, side, side, in_channels), np.float32)
    inputs = [image, jax.ShapeDtypeStruct((1,), np.int32)]
    if isinstance(network, UNet):
        shapes = network_shapes(network, in_channels, side=side)
    else:
        shapes = shapes_of(network, *inputs)
    tensors = {}
    for path, shape in shapes.items():
        value = to_openai(path, np.broadcast_to(np.float32(0), shape))
        name, part, leaf = tensor_name(path, network).partition(" (q)")
        if part:
            value = np.broadcast_to(np.float32(0), (3 * value.shape[0], *value.shape[1:]))
        if " (" not in name:
            tensors[name + leaf] = value
    return tensors


def config_of(foreign, **said):
    assumed = {name: guess.value for name, guess in foreign.assumed.items()}
    return from_dict(assumed | dict(foreign.fields) | said, source="the test")


def changed(tensors, **shapes):
    """Return tensors with some of other shapes, or left out."""
    renamed = {name.replace("__", "."): shape for name, shape in shapes.items()}
    kept = {name: value for name, value in tensors.items() if name not in renamed}
    return kept | {name: np.zeros(shape) for name, shape in renamed.items() if shape is not None}
