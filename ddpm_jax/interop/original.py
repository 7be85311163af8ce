"""The U-Net in the variable names of the original DDPM code (hojonathanho/diffusion).

TensorFlow's layouts are the same as ours: convolutions [height, width, in, out], linear maps and
1x1 convolutions [in, out].
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.renaming import (
    Params,
    Path,
    input_channels,
    rename_from,
    rename_to,
    unet_shapes,
)
from ddpm_jax.models.unet import UNet

SOURCE = "original TensorFlow checkpoint"


def unet_params_from_original(
    variables: Mapping[str, np.ndarray], unet: UNet, scope: str = "model"
) -> dict[str, Any]:
    """Convert the variables of an original checkpoint to the parameters of a network.

    Args:
      variables: name -> array, "model/down_0/block_0/conv1/W" and so on, without the optimiser's.
      unet: the network whose fields match the checkpoint.
      scope: prefix of every name. For averaged weights strip "/ExponentialMovingAverage" from the
        names first.

    Returns:
      params, nested, float32: `unet.apply({"params": params}, x, t)`.

    Raises:
      UsageError: a variable is missing, is left over, or has another shape than the network's; the
        network has classes.
    """
    _check_unconditional(unet.num_classes)
    in_channels = input_channels(variables, f"{scope}/conv_in/W", 3, axis=2)
    shapes = unet_shapes(unet, in_channels)
    return rename_from(
        variables, shapes, lambda path: f"{scope}/{variable_name(path)}", _same_layout, SOURCE
    )


def unet_params_to_original(params: Params, scope: str = "model") -> dict[str, np.ndarray]:
    """Convert the parameters of a network to the original variable names, float32.

    Raises:
      UsageError: the network has classes.
    """
    _check_unconditional("class_embedding" in params)
    return rename_to(params, lambda path: f"{scope}/{variable_name(path)}", _same_layout)


def _check_unconditional(has_classes: object) -> None:
    if has_classes:
        raise UsageError(
            "The original code has no networks with classes: choose one without, or the diffusers "
            "format."
        )


def variable_name(path: Path) -> str:
    """Return the name in the original code of the parameter at a path, without the scope."""
    *modules, leaf = path
    name = "/".join(modules)
    name = re.sub(r"^(down_\d+|up_\d+|mid|temb)_", r"\1/", name)
    name = re.sub(r"/(downsample|upsample)$", r"/\1/conv", name)
    name = name.replace("/shortcut", "/nin_shortcut")
    is_norm = modules[-1].startswith("norm")
    return f"{name}/{ {'scale': 'gamma', 'bias': 'beta' if is_norm else 'b', 'kernel': 'W'}[leaf] }"


def _same_layout(path: Path, value: np.ndarray) -> np.ndarray:
    return value
