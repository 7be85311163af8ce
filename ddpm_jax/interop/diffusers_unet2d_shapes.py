"""The config of diffusers' `UNet2DModel` as far as the names and shapes of its tensors say it.

A state dict alone does not say the width of a head, the groups and the epsilon of normalisations,
the padding of convolutions of stride 2, the form of the embedded time and the size of images.
"""

import math
from collections.abc import Mapping
from typing import Any

from ddpm_jax.interop.diffusers import new_name
from ddpm_jax.interop.diffusers_options import LEVELS
from ddpm_jax.interop.diffusers_unet2d_config import BLOCK_TYPES, DEFAULTS

Shapes = Mapping[str, tuple[int, ...]]
# what tells this network from the others of diffusers, and from those of other projects
SIGNS = (
    "conv_in.weight",
    "time_embedding.linear_1.weight",
    "down_blocks.0.resnets.0.conv1.weight",
    "down_blocks.0.resnets.0.time_emb_proj.weight",
    "conv_norm_out.weight",
    "conv_out.weight",
)
OF_TEXT = ".transformer_blocks."  # in the names of `UNet2DConditionModel`
OF_GOOGLE = {  # google/ddpm-*, whose attention has the names of before diffusers 0.15
    "attention_head_dim": None,
    "downsample_padding": 0,
    "dropout": 0.0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "sample_size": 16,  # where there is attention
}


def is_unet2d(names: Mapping[str, Any]) -> bool:
    """Return whether tensors of these names are those of such a network."""
    return all(sign in names for sign in SIGNS) and not any(OF_TEXT in name for name in names)


def options_from_shapes(shapes: Shapes) -> dict[str, Any]:
    """Return the options that names and shapes of tensors decide.

    What is left out is in `unsaid_options`, or is at its default.

    Args:
      shapes: of all tensors of a state dict for which `is_unet2d` is true, in its layout.
    """

    def has(start: str) -> bool:
        return any(name.startswith(start) for name in shapes)

    def count(pattern: str) -> int:
        return next(i for i in range(len(shapes) + 1) if pattern.format(i) not in shapes)

    def size(name: str, axis: int) -> int:
        return (*shapes.get(name, ()), 0, 0)[axis]

    levels = count("down_blocks.{}.resnets.0.conv1.weight")
    widths = [size(f"down_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(levels)]
    features = size("time_embedding.linear_1.weight", 0)
    blocks, ends = {}, {}
    for way in ("down", "up"):
        attends = [has(f"{way}_blocks.{i}.attentions.0.") for i in range(levels)]
        by_block = [has(f"{way}_blocks.{i}.{way}samplers.0.conv1.") for i in range(levels)]
        blocks[way] = [
            BLOCK_TYPES[way][attending, is_block and not attending]
            for attending, is_block in zip(attends, by_block, strict=True)
        ]
        is_resnet = any(a and b for a, b in zip(attends, by_block, strict=True))
        ends[way] = "resnet" if is_resnet else "conv"
    scale_shift = size("down_blocks.0.resnets.0.time_emb_proj.weight", 0) == 2 * widths[0]
    has_mid_norm = has("mid_block.attentions.0.group_norm.")
    return {
        "add_attention": has("mid_block.attentions.0."),
        "attn_norm_num_groups": groups(shapes) if scale_shift and has_mid_norm else None,
        "block_out_channels": widths,
        "class_embed_type": "timestep" if has("class_embedding.linear_1.") else None,
        "down_block_types": blocks["down"],
        "downsample_type": ends["down"],
        "in_channels": size("conv_in.weight", 1),
        "layers_per_block": count("down_blocks.0.resnets.{}.conv1.weight"),
        "mid_block_type": "UNetMidBlock2D" if has("mid_block.resnets.0.") else None,
        "num_class_embeds": size("class_embedding.weight", 0) or None,
        "out_channels": size("conv_out.weight", 0),
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        "time_embedding_dim": features,
        "time_embedding_type": "fourier" if has("time_proj.") else "positional",
        "up_block_types": blocks["up"],
        "upsample_type": ends["up"],
    }


def unsaid_options(shapes: Shapes) -> tuple[dict[str, Any], str]:
    """Return (the likely values of the options that shapes do not decide, whose they are)."""
    if any(new_name(name) != name for name in shapes):
        level = next(
            (i for i in range(LEVELS) if f"down_blocks.{i}.attentions.0.query.weight" in shapes), 0
        )
        size = OF_GOOGLE["sample_size"] << level
        return OF_GOOGLE | {
            "sample_size": size
        }, "google/ddpm-*, whose names of attention these are"
    usual = {name: DEFAULTS[name] for name in OF_GOOGLE}
    usual["norm_num_groups"] = groups(shapes)
    attending = {
        shape[0] for name, shape in shapes.items() if name.endswith(".to_q.weight") and shape
    }
    if any(width % usual["attention_head_dim"] for width in attending):
        usual["attention_head_dim"] = None
    return usual, "UNet2DModel by default"


def groups(shapes: Shapes) -> int:
    """Return the most groups, up to the usual ones, that all normalised channels have."""
    widths = [shape[0] for name, shape in shapes.items() if ".norm" in name and shape]
    return math.gcd(DEFAULTS["norm_num_groups"], *widths)
