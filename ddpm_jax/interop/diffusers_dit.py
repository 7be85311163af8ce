"""The Diffusion Transformer in the names and layouts of diffusers' `DiTTransformer2DModel`.

A `DiT` with classes is their network with

- `attention_head_dim` for hidden_size / num_heads, `num_layers` for depth, and `norm_eps` 1e-6
  (theirs defaults to 1e-5);
- `num_embeds_ada_norm` for num_classes: their table of labels also has the null class as its last
  row;
- `in_channels` for those of the image, followed by those of a low-resolution image;
- `time_embedding` "cos_sin_inclusive". The published weights of the authors were trained with
  "cos_sin", which diffusers does not have: run these with "cos_sin".

In their files every block has its own layers for time and label, although the network has them
once: copies of the same weights. NumPy arrays in and out, as `safetensors.numpy.load_file` and
`save_file` have them.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.diffusers import SOURCE, from_torch, to_torch
from ddpm_jax.interop.renaming import (
    Params,
    Path,
    input_channels,
    network_shapes,
    rename_from,
    rename_to,
)
from ddpm_jax.models.dit import DiT

TOP = {  # ours -> theirs
    "patch_embedding": "pos_embed.proj",
    "temb_dense0": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1",
    "temb_dense1": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2",
    "class_embedding": "transformer_blocks.0.norm1.emb.class_embedder.embedding_table",
    "modulation_out": "proj_out_1",
    "patch_out": "proj_out_2",
}
IN_BLOCK = {
    "modulation": "norm1.linear",
    "q": "attn1.to_q",
    "k": "attn1.to_k",
    "v": "attn1.to_v",
    "proj_out": "attn1.to_out.0",
    "mlp_dense0": "ff.net.0.proj",
    "mlp_dense1": "ff.net.2",
}
EMBEDDERS = re.compile(r"transformer_blocks\.(\d+)\.norm1\.emb\.(.*)")


def dit_params_from_diffusers(state_dict: Mapping[str, np.ndarray], dit: DiT) -> dict[str, Any]:
    """Convert a diffusers `DiTTransformer2DModel` state dict to the parameters of a network.

    Args:
      state_dict: name -> array; convolutions [out, in, height, width], linear maps [out, in].
      dit: the network whose fields match the checkpoint.

    Returns:
      params, nested, float32: `dit.apply({"params": params}, x, t, condition)`.

    Raises:
      UsageError: a tensor is missing, is left over, or has another shape than the network's; the
        blocks' layers for time and label differ; the network has no classes.
    """
    _check_classes(dit)
    in_channels = input_channels(state_dict, TOP["patch_embedding"] + ".weight", 4)
    return rename_from(
        _without_copies(state_dict),
        network_shapes(dit, in_channels, side=dit.patch_size),
        _name,
        patches_from_torch,
        SOURCE,
        network="DiT",
        fields="patch_size, hidden_size, depth, num_classes, ...",
    )


def dit_params_to_diffusers(params: Params, dit: DiT) -> dict[str, np.ndarray]:
    """Convert the parameters of a network to a diffusers state dict, float32.

    Raises:
      UsageError: the network has no classes.
    """
    _check_classes(dit)
    theirs = rename_to(
        params, _name, lambda path, value: patches_to_torch(path, value, dit.patch_size)
    )
    for name, value in list(theirs.items()):
        if found := EMBEDDERS.fullmatch(name):
            copies = (f"transformer_blocks.{i}.norm1.emb.{found[2]}" for i in range(dit.depth))
            theirs |= {copy: value for copy in copies}
    return theirs


def _check_classes(dit: DiT) -> None:
    if not dit.num_classes:
        raise UsageError(
            "diffusers has no DiT without classes: choose a network with num_classes, the null "
            "class aside."
        )


def _without_copies(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors without the copies of the first block's layers for time and label.

    Raises:
      UsageError: a copy differs from the first block's.
    """
    kept = {}
    for name, value in state_dict.items():
        found = EMBEDDERS.fullmatch(name)
        first = f"transformer_blocks.0.norm1.emb.{found[2]}" if found else name
        if name == first or first not in state_dict:
            kept[name] = value
        elif not np.array_equal(value, state_dict[first]):
            raise UsageError(
                f"{name} of the {SOURCE} is not {first}, but a DiT embeds time and label once for "
                "all blocks: it was trained with one embedding for each block, which is another "
                "network."
            )
    return kept


def _name(path: Path) -> str:
    """Return the diffusers name of the parameter at a path."""
    *modules, leaf = path
    end = "bias" if leaf == "bias" else "weight"
    if len(modules) == 1:
        return f"{TOP[modules[0]]}.{end}"
    block, layer = modules
    return f"transformer_blocks.{block.removeprefix('block_')}.{IN_BLOCK[layer]}.{end}"


def patches_from_torch(path: Path, value: np.ndarray) -> np.ndarray:
    """Convert a tensor to our layout; their convolution of patches is a linear map here."""
    if value.ndim == 4:
        out, *in_a_patch = value.shape
        return value.transpose(2, 3, 1, 0).reshape(math.prod(in_a_patch), out)
    return from_torch(path, value)


def patches_to_torch(path: Path, value: np.ndarray, patch_size: int) -> np.ndarray:
    """Convert our parameter at `path` to the layout of the corresponding tensor."""
    if path == ("patch_embedding", "kernel"):
        return value.reshape(patch_size, patch_size, -1, value.shape[-1]).transpose(3, 2, 0, 1)
    return to_torch(path, value)
