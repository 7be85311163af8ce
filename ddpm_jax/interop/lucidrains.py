"""The U-Net with linear attention in the names and layouts of denoising-diffusion-pytorch.

Its author's name there is lucidrains. A `LinearUNet` is its `Unet` of version 1.9 or later, without
self-conditioning, with `init_dim` and `out_dim` at their defaults.
"""

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
    shapes_of,
)
from ddpm_jax.models.linear_unet import LinearUNet

SOURCE = "state dict of denoising-diffusion-pytorch"
POINTWISE = frozenset(("shortcut", "qkv", "proj_out", "conv_out"))  # 1x1 convolutions there
TOP = {  # ours -> theirs
    "conv_in": "init_conv",
    "temb_dense0": "time_mlp.1",
    "temb_dense1": "time_mlp.3",
    "mid_block_1": "mid_block1",
    "mid_attn": "mid_attn",
    "mid_block_2": "mid_block2",
    "last_block": "final_res_block",
    "conv_out": "final_conv",
}
IN_BLOCK = {
    "temb_proj": "mlp.1",
    "conv1": "block1.proj",
    "norm1": "block1.norm",
    "conv2": "block2.proj",
    "norm2": "block2.norm",
    "shortcut": "res_conv",
}
IN_ATTENTION = {"norm": "norm", "qkv": "to_qkv", "norm_out": "to_out.1"}
# of the learned keys and values: [2, heads, MEMORY, channels] there, where attention is linear
# [2, heads, channels, MEMORY], to ours
MEMORY_AXES = {False: (0, 2, 1, 3), True: (0, 3, 1, 2)}
_PART = re.compile(r"(?P<way>down|up)_(?P<level>\d+)_(?:block_(?P<block>\d)|(?P<kind>\w+))")


def linear_unet_params_from_lucidrains(
    state_dict: Mapping[str, np.ndarray], unet: LinearUNet
) -> dict[str, Any]:
    """Convert the state dict of a `Unet` to the parameters of a network.

    Args:
      state_dict: name -> array; convolutions [out, in, height, width], linear maps [out, in].
      unet: the network whose fields match the checkpoint.

    Returns:
      params, nested, float32: `unet.apply({"params": params}, x, t)`.

    Raises:
      UsageError: a tensor is missing, is left over, has another shape than the network's, or does
        not hold weights.
    """
    in_channels = input_channels(state_dict, "init_conv.weight", 3)
    return rename_from(
        state_dict,
        linear_unet_shapes(unet, in_channels),
        lambda path: lucidrains_name(path, unet),
        lambda path, value: _from_theirs(path, value, unet),
        SOURCE,
        network="U-Net with linear attention",
        fields="ch, ch_mult, full_attention, heads, head_channels, norm_groups",
    )


def linear_unet_params_to_lucidrains(params: Params, unet: LinearUNet) -> dict[str, np.ndarray]:
    """Convert the parameters of a network to the state dict of a `Unet`, float32."""
    return rename_to(
        params,
        lambda path: lucidrains_name(path, unet),
        lambda path, value: _to_theirs(path, value, unet),
    )


def linear_unet_shapes(unet: LinearUNet, in_channels: int) -> dict[Path, tuple[int, ...]]:
    """Return the shape of every parameter, without computing any."""
    side = 2 ** (len(unet.ch_mult) - 1)
    image = np.empty((1, side, side, in_channels), np.float32)
    return shapes_of(unet, image, np.zeros(1, np.int32))


def lucidrains_name(path: Path, unet: LinearUNet) -> str:
    """Return their name of the parameter at a path."""
    module, *inner, leaf = path
    start = _module_name(module, len(unet.ch_mult) - 1)
    if leaf == "memory":
        return f"{start}.mem_kv"
    names = IN_BLOCK
    if "attn" in module:
        names = IN_ATTENTION | {"proj_out": "to_out.0" if _is_linear(path) else "to_out"}
    end = "bias" if leaf == "bias" else "g" if _is_root_mean_square(path, unet) else "weight"
    return ".".join([start, *(names[layer] for layer in inner), end])


def _module_name(module: str, last: int) -> str:
    """Return their name of a module of the network itself; `last` is the lowest level."""
    found = _PART.fullmatch(module)
    if not found:
        return TOP[module]
    level, is_down = int(found["level"]), found["way"] == "down"
    number = level if is_down else last - level  # in the order of computation
    if found["kind"] != "out":
        return f"{found['way']}s.{number}.{found['block'] or 2}"
    changes = level != (last if is_down else 0)  # the resolution: then it is the second of two
    return f"{found['way']}s.{number}.3{'.1' if changes else ''}"


def _is_linear(path: Path) -> bool:
    return path[0].endswith("linear_attn")


def _is_root_mean_square(path: Path, unet: LinearUNet) -> bool:
    """Return whether a parameter is the scale of such a norm, [1, C, 1, 1] there."""
    of_groups = unet.norm_groups and "attn" not in path[0]
    return path[-1] == "scale" and not of_groups


def _from_theirs(path: Path, value: np.ndarray, unet: LinearUNet) -> np.ndarray:
    if path[-1] == "memory" and value.ndim == 4:
        return value.transpose(MEMORY_AXES[_is_linear(path)])
    if _is_root_mean_square(path, unet) and value.shape == (1, value.size, 1, 1):
        return value.reshape(-1)
    return from_torch(path, value)


def _to_theirs(path: Path, value: np.ndarray, unet: LinearUNet) -> np.ndarray:
    if path[-1] == "memory":
        return value.transpose(np.argsort(MEMORY_AXES[_is_linear(path)]))
    if _is_root_mean_square(path, unet):
        return value[None, :, None, None]
    # on the way down a matrix changes the channels, which is a 1x1 convolution there
    is_change = len(path) == 2 and path[0].startswith("down") and value.ndim == 2
    return to_torch(path, value, POINTWISE | {path[0]} if is_change else POINTWISE)
