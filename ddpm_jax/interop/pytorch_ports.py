"""The U-Net in the names of the PyTorch ports of the original DDPM code.

pesser/pytorch_diffusion, and ermongroup/ddim, which took its network: the modules of the original
with dots for slashes (`original.py`), in the layouts of PyTorch. Linear maps over pixels are 1x1
convolutions there.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.interop.diffusers import from_torch, to_torch
from ddpm_jax.interop.renaming import (
    Params,
    Path,
    input_channels,
    rename_from,
    rename_to,
    unet_shapes,
)
from ddpm_jax.models.unet import UNet

SOURCE = "state dict of a PyTorch port of DDPM"
# our linear maps that are 1x1 convolutions there
POINTWISE = frozenset(("q", "k", "v", "proj_out", "shortcut"))


def unet_params_from_port(state_dict: Mapping[str, np.ndarray], unet: UNet) -> dict[str, Any]:
    """Convert the state dict of a port to the parameters of a network.

    Args:
      state_dict: name -> array, "down.0.block.0.conv1.weight" and so on; convolutions
        [out, in, height, width], linear maps [out, in].
      unet: the network whose fields match the checkpoint; it has no classes.

    Returns:
      params, nested, float32: `unet.apply({"params": params}, x, t)`.

    Raises:
      UsageError: a tensor is missing, is left over, has another shape than the network's, or does
        not hold weights.
    """
    shapes = unet_shapes(unet, input_channels(state_dict, "conv_in.weight", 3))
    return rename_from(state_dict, shapes, port_name, from_torch, SOURCE)


def unet_params_to_port(params: Params) -> dict[str, np.ndarray]:
    """Convert the parameters of a network without classes to a state dict of a port, float32."""
    return rename_to(params, port_name, functools.partial(to_torch, pointwise=POINTWISE))


def port_name(path: Path) -> str:
    """Return the name in the ports of the parameter at a path."""
    block, *modules, leaf = path
    name = re.sub(r"^(down|up)_(\d+)_(block|attn)_(\d+)$", r"\1.\2.\3.\4", block)
    name = re.sub(r"^(down|up)_(\d+)_(\w+sample)$", r"\1.\2.\3.conv", name)
    name = re.sub(r"^temb_dense(\d)$", r"temb.dense.\1", name).replace("mid_", "mid.")
    inner = ("nin_shortcut" if module == "shortcut" else module for module in modules)
    return ".".join([name, *inner, "bias" if leaf == "bias" else "weight"])
