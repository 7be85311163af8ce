"""The weights of LPIPS, from an NPZ or safetensors file that the user provides.

The names are those of the authors' package, `lpips.LPIPS(net="vgg").state_dict()`:

- net.slice1.0.weight ... net.slice5.28.bias: the convolutions, numbered as in torchvision's VGG16;
- lin0.model.1.weight ... lin4.model.1.weight: [1, C, 1, 1], none negative;

or, for the convolutions, those of torchvision, features.0.weight ... features.28.bias. Other
tensors are ignored.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.diffusers import from_torch
from ddpm_jax.interop.renaming import shapes_of
from ddpm_jax.interop.tensor_files import as_weight, read_tensors
from ddpm_jax.models.lpips import Lpips

_HOW = 'docs/first_stages.md, "Sharp reconstructions", says how to make it'


def read_lpips(path: str | os.PathLike, model: Lpips) -> dict[str, Any]:
    """Read the parameters of the distance.

    Args:
      path: an NPZ or a safetensors file, here or in a bucket.
      model: the network they are for.

    Returns:
      params, nested, float32: `model.apply({"params": params}, x, y)`.

    Raises:
      UsageError: there is no such file, it is neither of these, or as `lpips_params`.
    """
    tensors = read_tensors(path, what="weights of the perceptual distance", how=_HOW)
    return lpips_params(tensors, model, source=str(path))


def lpips_params(tensors: Mapping[str, np.ndarray], model: Lpips, *, source: str) -> dict[str, Any]:
    """Build the parameters from tensors by name; `source` names their origin in messages.

    Raises:
      UsageError: a tensor is missing, has another shape than the network's, or holds an invalid
        number (`tensor_files.as_weight`).
    """
    tensors = {
        re.sub(r"^net\.slice\d+\.", "features.", name): value for name, value in tensors.items()
    }
    params = {}
    for path, shape in lpips_shapes(model).items():
        name = _name(path, model)
        if name not in tensors:
            raise UsageError(
                f"{source} has no tensor {name}, which the perceptual distance is made of: {_HOW}."
            )
        value = as_weight(name, tensors[name], source)
        # A linear map [1, C, 1, 1] is our vector [C].
        value = value.reshape(-1) if path[-1].startswith("lin_") else from_torch(path, value)
        if value.shape != shape:
            raise UsageError(
                f"{name} of {source} has shape {np.shape(tensors[name])}, read here as "
                f"{value.shape}, where VGG16 has {shape}: {_HOW}."
            )
        if path[-1].startswith("lin_") and (value < 0).any():
            raise UsageError(
                f"{name} of {source} has negative weights, with which it is no distance: {_HOW}."
            )
        params[path] = value
    return unflatten_dict(params)


def lpips_shapes(model: Lpips) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Return the shape of every parameter, without computing any."""
    image = jax.ShapeDtypeStruct((1, model.smallest_side, model.smallest_side, 3), jnp.float32)
    return shapes_of(model, image, image)


def _name(path: tuple[str, ...], model: Lpips) -> str:
    if path[-1].startswith("lin_"):
        return f"lin{path[-1].removeprefix('lin_')}.model.1.weight"
    _, k, _, j = path[1].split("_")
    # Their numbers count convolutions, ReLUs and the pooling between slices.
    before = sum(2 * len(channels) + 1 for channels in model.channels[: int(k)])
    return f"features.{before + 2 * int(j)}.{'weight' if path[-1] == 'kernel' else 'bias'}"
