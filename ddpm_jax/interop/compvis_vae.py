"""The VAE of Stable Diffusion in the names of its authors' code; `compvis.py` has the U-Net.

They are those of pesser's DDPM, `encoder.down.i.block.j.conv1` and so on, below
`first_stage_model.`. On the way up levels count by resolution, in diffusers in the order of
computation. Attention is made of 1x1 convolutions [out, in, 1, 1], there of linear maps [out, in].
"""

import re
from collections.abc import Iterable

PREFIX = "first_stage_model."
LOSS = f"{PREFIX}loss."  # of its training, with the discriminator
TOP = {"norm_out": "conv_norm_out", "mid.attn_1": "mid_block.attentions.0"}
TOP |= {f"mid.block_{i}": f"mid_block.resnets.{i - 1}" for i in (1, 2)}
IN_BLOCK = {
    "nin_shortcut": "conv_shortcut",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
KINDS = {"block": "resnets", "attn": "attentions"}
_LEVEL = re.compile(r"(down|up)\.(\d+)\.(?:(block|attn)\.(\d+)|(down|up)sample)")
_UP = re.compile(r"decoder\.up\.(\d+)\.")
_NAME = re.compile(r"(encoder|decoder)\.(.*)\.(weight|bias)")


def vae_names_from_compvis(names: Iterable[str]) -> dict[str, str]:
    """Return what the tensors of the VAE are called in diffusers' `AutoencoderKL`.

    Args:
      names: of all tensors of a file of the whole model.

    Returns:
      Name in the file -> name in diffusers; a name that is not understood is not changed.
    """
    inner = {
        name: name.removeprefix(PREFIX)
        for name in names
        if name.startswith(PREFIX) and not name.startswith(LOSS)
    }
    ups = filter(None, map(_UP.match, inner.values()))
    lowest = max((int(found[1]) for found in ups), default=0)
    return {name: diffusers_name(new, lowest) for name, new in inner.items()}


def diffusers_name(name: str, lowest: int) -> str:
    """Return the name in diffusers of a tensor of the VAE; `lowest` is the last level's index."""
    found = _NAME.fullmatch(name)
    if not found:  # quant_conv, post_quant_conv
        return name
    side, module, end = found[1], found[2], found[3]
    level = _LEVEL.match(module)
    top = next((top for top in TOP if f"{module}.".startswith(f"{top}.")), module)
    start = _level_name(level, lowest) if level else TOP.get(top, top)
    rest = module.removeprefix(level[0] if level else top)
    inner = [IN_BLOCK.get(part, part) for part in rest.split(".") if part]
    return ".".join([side, start, *inner, end])


def _level_name(level: re.Match, lowest: int) -> str:
    way, index = level[1], int(level[2])
    start = f"{way}_blocks.{lowest - index if way == 'up' else index}"
    if level[3]:
        return f"{start}.{KINDS[level[3]]}.{level[4]}"
    return f"{start}.{way}samplers.0"
