"""The U-Net that looks at a text, in the names and layouts of diffusers' `UNet2DConditionModel`.

NumPy arrays in and out, as `safetensors.numpy.load_file` and `save_file` have them. What their
configs mean is in `diffusers_text_unet_config.py`; the names of the authors' own files in
`compvis.py`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ddpm_jax.interop import diffusers
from ddpm_jax.interop.renaming import (
    Params,
    Path,
    input_channels,
    rename_from,
    rename_to,
    unet_shapes,
)
from ddpm_jax.models.text_unet import TextUNet

IN_TRANSFORMER = {  # ours -> theirs
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "mlp_dense0": "ff.net.0.proj",
    "mlp_dense1": "ff.net.2",
}
PROJECTIONS = {"proj_in", "proj_out"}


def text_unet_params_from_diffusers(
    state_dict: Mapping[str, np.ndarray],
    unet: TextUNet,
    *,
    dtype: DTypeLike | None = np.float32,
) -> dict[str, Any]:
    """Convert a diffusers `UNet2DConditionModel` state dict to the parameters of a network.

    Args:
      state_dict: name -> array; convolutions [out, in, height, width], linear maps [out, in]. The
        first and last map of a transformer may be either.
      unet: the network whose fields match the checkpoint (`text_unet_from_config`).
      dtype: of the parameters, of which the network takes any; None: of each tensor as it is.

    Returns:
      params, nested: `unet.apply({"params": params}, x, t, condition)`.

    Raises:
      UsageError: a tensor is missing, is left over, has another shape than the network's, or does
        not hold weights.
    """
    return rename_from(
        state_dict,
        unet_shapes(unet, unet_in_channels(state_dict, unet)),
        lambda path: tensor_name(path, len(unet.ch_mult)),
        diffusers.from_torch,
        diffusers.SOURCE,
        dtype=dtype,
    )


def text_unet_params_to_diffusers(params: Params, unet: TextUNet) -> dict[str, np.ndarray]:
    """Convert the parameters of a network to a diffusers state dict, each in its own type."""

    def layout(path: Path, value: np.ndarray) -> np.ndarray:
        value = diffusers.to_torch(path, value)
        is_projection = path[-1] == "kernel" and len(path) == 3 and path[1] in PROJECTIONS
        if is_projection and not unet.linear_projection:
            value = value[:, :, None, None]
        return value

    return rename_to(params, lambda path: tensor_name(path, len(unet.ch_mult)), layout)


def unet_in_channels(state_dict: Mapping[str, np.ndarray], unet: TextUNet) -> int:
    """Return the number of channels of the first convolution of a state dict."""
    expected = unet.out_channels + unet.low_res_channels
    return input_channels(state_dict, "conv_in.weight", expected)


def tensor_name(path: Path, num_levels: int) -> str:
    """Return the diffusers name of the parameter at a path; `num_levels` as in the network."""
    if "_attn_" not in path[0]:
        return diffusers.tensor_name(path, num_levels)
    transformer, *modules, leaf = path
    names = [diffusers.block_name(transformer, num_levels), *map(_module_name, modules)]
    if modules[-1] == "proj_out" and len(modules) > 1:  # of an attention, not of the transformer
        names[-1] = "to_out.0"
    return ".".join([*names, "bias" if leaf == "bias" else "weight"])


def _module_name(module: str) -> str:
    if module.startswith("block_"):
        return f"transformer_blocks.{module.removeprefix('block_')}"
    return IN_TRANSFORMER.get(module, module)
