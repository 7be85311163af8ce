"""The U-Net in the names and layouts of diffusers' `UNet2DModel` (google/ddpm-* checkpoints).

Those networks have `attention_head_dim: null`, `downsample_padding: 0`, `norm_eps: 1e-6`,
`flip_sin_to_cos: false` and `freq_shift: 1`, which are the defaults of our U-Net; with any other
setting the weights mean a different network. `diffusers_unet2d_config` has the fields of ours for a
config of theirs, and back.

NumPy arrays in and out, as `safetensors.numpy.load_file` and `save_file` have them. The names and
layouts of their blocks are used by `autoencoder_kl.py` too.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.interop.renaming import (
    Params,
    Path,
    input_channels,
    rename_from,
    rename_to,
    unet_shapes,
)
from ddpm_jax.interop.tensor_store import Renamed
from ddpm_jax.models.unet import UNet

SOURCE = "diffusers state dict"

MODULES = {  # ours -> theirs, for the layers within a block
    "temb_proj": "time_emb_proj",
    "shortcut": "conv_shortcut",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
# before diffusers 0.15
OLD_MODULES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
TOP = {
    "class_embedding": "class_embedding",
    "temb_dense0": "time_embedding.linear_1",
    "temb_dense1": "time_embedding.linear_2",
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
    "mid_block_1": "mid_block.resnets.0",
    "mid_attn_1": "mid_block.attentions.0",
    "mid_block_2": "mid_block.resnets.1",
}
KINDS = {"block": "resnets", "attn": "attentions"}
# our linear maps that are 1x1 convolutions there
POINTWISE = frozenset(("shortcut", "quant", "post_quant"))


def unet_params_from_diffusers(state_dict: Mapping[str, np.ndarray], unet: UNet) -> dict[str, Any]:
    """Convert a diffusers `UNet2DModel` state dict to the parameters of a network.

    Args:
      state_dict: name -> array; convolutions [out, in, height, width], linear maps [out, in].
        Attention may have its old names (query, key, value, proj_attn) or its new ones (to_q, to_k,
        to_v, to_out.0).
      unet: the network whose fields match the checkpoint.

    Returns:
      params, nested, float32: `unet.apply({"params": params}, x, t)`.

    Raises:
      UsageError: a tensor is missing, is left over, has another shape than the network's, or does
        not hold weights.
    """
    state_dict = Renamed(state_dict, new_name)
    shapes = unet_shapes(unet, input_channels(state_dict, "conv_in.weight", 3))
    return rename_from(
        state_dict, shapes, lambda path: tensor_name(path, len(unet.ch_mult)), from_torch, SOURCE
    )


def unet_params_to_diffusers(params: Params, unet: UNet) -> dict[str, np.ndarray]:
    """Convert the parameters of a network to a diffusers state dict (new names), float32."""
    return rename_to(params, lambda path: tensor_name(path, len(unet.ch_mult)), to_torch)


def tensor_name(path: Path, num_levels: int) -> str:
    """Return the diffusers name of the parameter at a path; `num_levels` as in the network."""
    *modules, leaf = path
    names = [
        block_name(modules[0], num_levels),
        *(MODULES.get(module, module) for module in modules[1:]),
    ]
    if len(modules) == 1 and modules[0].endswith("sample"):  # a convolution, not a residual block
        names.append("conv")
    return ".".join([*names, "bias" if leaf == "bias" else "weight"])


def block_name(block: str, num_levels: int) -> str:
    """Return the diffusers name of a module of the network itself, such as down_0_block_1."""
    if block in TOP:
        return TOP[block]
    direction, level, kind, *index = block.split("_")
    if direction == "up":  # theirs count in the order of computation, ours by resolution
        level = str(num_levels - 1 - int(level))
    part = f"{KINDS[kind]}.{index[0]}" if index else f"{kind}rs.0"  # downsamplers, upsamplers
    return f"{direction}_blocks.{level}.{part}"


def new_name(name: str) -> str:
    """Return the current diffusers name of a tensor of an old file; others stay unchanged."""
    return re.sub(
        r"\.(query|key|value|proj_attn)\.", lambda old: f".{OLD_MODULES[old.group(1)]}.", name
    )


def old_name(name: str) -> str:
    """Return the name of a tensor before diffusers 0.15, the inverse of `new_name`."""
    old = {f".{new}.": f".{old}." for old, new in OLD_MODULES.items()}
    return next((name.replace(new, old[new]) for new in old if new in name), name)


def from_torch(path: Path, value: np.ndarray) -> np.ndarray:
    """Convert a tensor to the layout of our parameter at `path`."""
    if path[-1] != "kernel":
        return value
    if value.ndim == 4 and value.shape[2:] == (1, 1):  # a 1x1 convolution is a linear map here
        value = value[:, :, 0, 0]
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def to_torch(path: Path, value: np.ndarray, pointwise: frozenset[str] = POINTWISE) -> np.ndarray:
    """Convert our parameter at `path` to the layout of the corresponding tensor.

    `pointwise` are our linear maps that are 1x1 convolutions there.
    """
    if path[-1] != "kernel":
        return value
    value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return value[:, :, None, None] if pointwise.intersection(path) else value
