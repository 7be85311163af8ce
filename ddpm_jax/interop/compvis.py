"""The U-Net of Stable Diffusion in the names of its authors' code, in one file with all else.

They are those of Improved DDPM's code, `input_blocks.i.j` and so on, below
`model.diffusion_model.`; the moving averages are below `model_ema.`, their names without dots.
Layouts are diffusers', so only names are converted: `unet_names_from_compvis`.
"""

import re
from collections.abc import Iterable

PREFIX, EMA_PREFIX = "model.diffusion_model.", "model_ema."
TOP = {  # theirs -> diffusers
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
IN_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def unet_names_from_compvis(names: Iterable[str], *, average: bool = False) -> dict[str, str]:
    """Return what the tensors of the U-Net are called in diffusers' `UNet2DConditionModel`.

    Args:
      names: of all tensors of a file of the whole model, of which those of the U-Net are below
        `model.diffusion_model.`; or of a U-Net alone, without that prefix.
      average: take the moving averages, which a file of training has besides the weights.

    Returns:
      Name in the file -> name in diffusers, for the tensors of the U-Net. A name that is not
      understood is not changed, and an average that is absent is left out: the reader of the
      tensors reports both.
    """
    present = set(names)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in present) else ""
    inner = [name.removeprefix(prefix) for name in present if name.startswith(prefix)]
    per_level = _indices_per_level(inner)
    found = {}
    for name in inner:
        source = f"{prefix}{name}"
        if average:
            source = EMA_PREFIX + source.removeprefix("model.").replace(".", "")
        if source in present:
            found[source] = diffusers_name(name, per_level)
    return found


def diffusers_name(name: str, per_level: int) -> str:
    """Return the name in diffusers of a tensor of the U-Net, itself where there is none.

    `per_level` is the number of blocks of a level on the way up, which on the way down is that of
    the blocks and the downsampling.
    """
    for module, theirs in TOP.items():
        if name.startswith(module + "."):
            return theirs + _in_block(name.removeprefix(module))
    found = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)(\..*)", name)
    if not found:
        return name
    direction, index, part, rest = found[1], int(found[2]), int(found[3]), found[4]
    level, block = divmod(index - (direction == "input"), per_level)
    way = "down" if direction == "input" else "up"
    if rest.startswith((".op.", ".conv.")):
        return f"{way}_blocks.{level}.{way}samplers.0.conv.{rest.rpartition('.')[2]}"
    return f"{way}_blocks.{level}.{('resnets', 'attentions')[part]}.{block}{_in_block(rest)}"


def _in_block(rest: str) -> str:
    """Convert what follows the name of a block: .in_layers.0.weight -> .norm1.weight."""
    for module, theirs in IN_BLOCK.items():
        if rest.startswith(f".{module}."):
            return f".{theirs}{rest.removeprefix('.' + module)}"
    return rest


def _indices_per_level(names: list[str]) -> int:
    """Return how many indices a level has: the distance from one downsampling to the next."""
    indices = [
        int(found[1])
        for name in names
        if (found := re.match(r"input_blocks\.(\d+)\.0\.op\.", name))
    ]
    blocks = [
        int(found[1]) for name in names if (found := re.match(r"input_blocks\.(\d+)\.", name))
    ]
    return min(indices, default=max(blocks, default=0) + 1)
