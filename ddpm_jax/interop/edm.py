"""EDM's networks in the names of NVlabs/edm: `SongUNet` and `DhariwalUNet`.

Their state dicts have `map_noise`, `map_label`, `map_augment`, `map_layer0` and `map_layer1` for
the embeddings, and `enc.32x32_block0`, `dec.16x16_up` and so on for the pyramid, by the resolution
of the images that the network was built for. Attention is in the block that it follows, and q, k
and v are one map there, in which the three follow each other for every channel. The filters that
change the resolution are tensors too, `resample_filter`: here they are a field of the network.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.diffusers import from_torch, to_torch
from ddpm_jax.interop.openai import PART, Parts, joined
from ddpm_jax.interop.renaming import (
    Params,
    Path,
    input_channels,
    rename_from,
    rename_to,
    shapes_of,
)
from ddpm_jax.interop.tensor_store import Renamed
from ddpm_jax.models.condition import null_condition
from ddpm_jax.models.edm_unets import EDMUNet, SongUNet

SOURCE = "state dict of EDM's code"
FIELDS = "ch, ch_mult, num_res_blocks, attn_resolutions, embedding, encoder, decoder, ..."
POINTWISE = frozenset(("shortcut", "q", "k", "v", "proj_out"))  # 1x1 convolutions there
FILTER = "resample_filter"
TOP = {  # ours -> theirs
    "temb_dense0": "map_layer0",
    "temb_dense1": "map_layer1",
    "class_embedding": "map_label",
    "augment_embedding": "map_augment",
}
MIDDLE = {"mid_block_1": "in0", "mid_attn_1": "in0", "mid_block_2": "in1"}
OUT = {"norm_out": "norm", "conv_out": "conv"}
IN_BLOCK = {
    "norm1": "norm0",
    "conv1": "conv0",
    "temb_proj": "affine",
    "norm2": "norm1",
    "conv2": "conv1",
    "shortcut": "skip",
}
IN_ATTENTION = {"norm": "norm2", "proj_out": "proj"} | {x: f"qkv ({x})" for x in "qkv"}


def edm_params_from_state_dict(
    state_dict: Mapping[str, np.ndarray], unet: EDMUNet
) -> dict[str, Any]:
    """Convert the state dict of a network of EDM to the parameters of ours.

    Args:
      state_dict: name -> array; convolutions [out, in, height, width], linear maps [out, in].
      unet: the network whose fields match the checkpoint.

    Returns:
      params, nested, float32: `unet.apply({"params": params}, x, t)`.

    Raises:
      UsageError: a tensor is missing, is left over, has another shape than the network's, or does
        not hold weights; the filter is another one.
    """
    shapes = edm_shapes(unet, input_channels(state_dict, edm_name(("conv_in", "kernel"), unet), 3))
    names = {path: edm_name(path, unet) for path in shapes}
    filters = edm_filters(unet)
    for name, taps in filters.items():
        if name not in state_dict or not np.array_equal(state_dict[name], taps):
            raise UsageError(
                f"{name} of the {SOURCE} is not the filter {tuple(unet.resample_filter)}: give the "
                "network the resample_filter that it was trained with."
            )
    weights = Renamed(state_dict, str, [name for name in state_dict if name not in filters])
    return rename_from(
        Parts(weights, _channels(names, weights)),
        shapes,
        names.__getitem__,
        from_torch,
        SOURCE,
        network="network of EDM",
        fields=FIELDS,
    )


def edm_params_to_state_dict(params: Params, unet: EDMUNet) -> dict[str, np.ndarray]:
    """Convert the parameters of a network of ours to a state dict of EDM's code, float32."""
    parts = rename_to(params, lambda path: edm_name(path, unet), _to_torch)
    groups = {
        found["module"]: len(value)
        for name, value in parts.items()
        if (found := PART.fullmatch(name))
    }
    return joined(parts, groups) | edm_filters(unet)


def edm_shapes(unet: EDMUNet, in_channels: int) -> dict[Path, tuple[int, ...]]:
    """Return the shape of every parameter, without computing any."""
    side = 2 ** (len(unet.ch_mult) - 1)
    image = jax.ShapeDtypeStruct((1, side, side, in_channels), jnp.float32)
    time = jax.ShapeDtypeStruct((1,), jnp.float32)
    return shapes_of(unet, image, time, null_condition(unet, image))


def edm_name(path: Path, unet: EDMUNet) -> str:
    """Return the name there of the parameter at a path; parts of one map as `Parts` has them."""
    if path == ("frequencies",):
        return "map_noise.freqs"
    block, *modules, leaf = path
    inner = IN_ATTENTION if "_attn_" in block else IN_BLOCK
    end = "bias" if leaf == "bias" else "weight"
    return ".".join([_block_name(block, unet), *(inner[module] for module in modules), end])


def edm_filters(unet: EDMUNet) -> dict[str, np.ndarray]:
    """Return the filters of a network, float32 [1, 1, n, n], by their names there."""
    taps = np.asarray(unet.resample_filter, np.float32)
    taps = (np.outer(taps, taps) / np.square(taps.sum()))[None, None]
    song = _is_song(unet)
    input_filter = {"skip": "aux_down", "residual": "aux_residual"}.get(song and unet.encoder)
    modules = []
    for level in range(1, len(unet.ch_mult)):
        below, above = _side(unet, level), _side(unet, level - 1)
        blocks = f"enc.{below}_down", f"dec.{above}_up"
        modules += [f"{block}.{part}" for block in blocks for part in ("conv0", "skip")]
        modules += [f"enc.{below}_{input_filter}"] if input_filter else []
        modules += [f"dec.{above}_aux_up"] if song and unet.decoder == "skip" else []
    return {f"{module}.{FILTER}": taps for module in modules}


def _block_name(block: str, unet: EDMUNet) -> str:
    """Return the name there of a module of the network itself, such as down_0_block_1."""
    if block in TOP:
        return TOP[block]
    if block == "conv_in":
        return f"enc.{_side(unet, 0)}_conv"
    if block in MIDDLE:
        return f"dec.{_side(unet, -1)}_{MIDDLE[block]}"
    if block in OUT:
        return f"dec.{_side(unet, 0)}_aux_{OUT[block]}" if _is_song(unet) else f"out_{OUT[block]}"
    way, level, kind = block.split("_", 2)
    level = int(level)
    if kind in OUT:
        return f"dec.{_side(unet, level)}_aux_{OUT[kind]}"
    if kind == "input":
        return f"enc.{_side(unet, level)}_aux_{unet.encoder}"
    if kind == "downsample":
        return f"enc.{_side(unet, level + 1)}_down"
    if kind == "upsample":
        return f"dec.{_side(unet, level - 1)}_up"
    side = "enc" if way == "down" else "dec"
    return f"{side}.{_side(unet, level)}_block{kind.rpartition('_')[2]}"


def _side(unet: EDMUNet, level: int) -> str:
    """Return the height and width of a level, as they stand in names there."""
    side = unet.resolution >> level % len(unet.ch_mult)
    return f"{side}x{side}"


def _is_song(unet: EDMUNet) -> bool:
    return isinstance(unet, SongUNet)


def _channels(names: Mapping[Path, str], tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return the maps to q, k and v, and how often the three follow each other in them."""
    modules = {found["module"] for name in names.values() if (found := PART.fullmatch(name))}
    weights = {module: tensors.get(f"{module}.weight") for module in modules}
    return {
        module: max(1, len(weight) // 3)
        for module, weight in weights.items()
        if weight is not None and weight.ndim
    }


def _to_torch(path: Path, value: np.ndarray) -> np.ndarray:
    is_map = path[0].endswith("_input") and value.ndim == 2  # a 1x1 convolution too
    return to_torch(path, value, POINTWISE | {path[0]} if is_map else POINTWISE)
