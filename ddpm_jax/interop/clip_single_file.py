"""The text encoder within a single file of Stable Diffusion, as the original code writes it.

1.x has transformers' names below `cond_stage_model.transformer.`, 2.x OpenCLIP's below
`cond_stage_model.model.`, where q, k and v are one tensor and the projection is not transposed.
OpenCLIP's last layer is in the file, and the model does not use it. Both become transformers'
names, which `clip_text.py` reads.
"""

import re
from collections.abc import Mapping

import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.clip_text import IGNORED, PREFIX
from ddpm_jax.models.text_encoder import TextEncoder

OF_TRANSFORMERS = "cond_stage_model.transformer."
OF_OPENCLIP = "cond_stage_model.model."
HEAD = 64  # features of a head, in all CLIP of OpenAI and OpenCLIP; the files do not say

TOP = {  # OpenCLIP's -> transformers'
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.*?)[._](weight|bias)")


def text_tensors_of_single_file(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the text encoder's tensors under transformers' names, without the prefix.

    Args:
      tensors: all of a file of Stable Diffusion 1.x or 2.x; others are left alone.

    Raises:
      UsageError: there is no text encoder among them, or one of its names is not OpenCLIP's.
    """
    found = _below(tensors, OF_TRANSFORMERS)
    if found:
        names = {name: name.removeprefix(PREFIX) for name in found}
        return {new: found[name] for name, new in names.items() if not IGNORED.fullmatch(name)}
    found = _below(tensors, OF_OPENCLIP)
    if not found:
        raise UsageError(
            f"The file has no text encoder: no tensor's name begins with {OF_TRANSFORMERS} or "
            f"{OF_OPENCLIP}, as in Stable Diffusion 1.x and 2.x."
        )
    last = max((int(block[1]) for block in map(BLOCK.fullmatch, found) if block), default=0)
    named = {}
    for name, value in found.items():
        block = BLOCK.fullmatch(name)
        if (block and int(block[1]) == last) or name in ("logit_scale", "attn_mask"):
            continue
        named |= _named(name, block, value)
    return named


def text_encoder_of_single_file(tensors: Mapping[str, np.ndarray]) -> TextEncoder:
    """Return the encoder whose tensors are in a single file, computing in float32.

    Its sizes are those of the tensors, with heads of 64 features; its activation is that of
    OpenAI's CLIP in 1.x, that of OpenCLIP in 2.x.

    Args:
      tensors: as above; only their shapes are read.

    Raises:
      UsageError: as above, or there is no token embedding or layer.
    """
    named = text_tensors_of_single_file(tensors)
    layers = {int(found[1]) for found in map(LAYER.match, named) if found}
    try:
        vocab_size, width = named[TOP["token_embedding.weight"]].shape
        context_length, _ = named[TOP["positional_embedding"]].shape
        hidden, _ = named["encoder.layers.0.mlp.fc1.weight"].shape
    except (KeyError, ValueError) as error:
        raise UsageError(f"The text encoder in the file lacks tensors ({error}).") from error
    return TextEncoder(
        vocab_size=vocab_size,
        width=width,
        layers=max(layers) + 1,
        heads=max(1, width // HEAD),
        hidden=hidden,
        activation="quick_gelu" if _below(tensors, OF_TRANSFORMERS) else "gelu",
        context_length=context_length,
    )


def _below(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}


def _named(name: str, block: re.Match | None, value: np.ndarray) -> dict[str, np.ndarray]:
    """Return a tensor of OpenCLIP under transformers' names, three for that of q, k and v."""
    if name in TOP:
        return {TOP[name]: value}
    if name == "text_projection":
        return {"text_projection.weight": value.T}
    layer, end = (block[2], block[3]) if block else ("", "")
    start = f"encoder.layers.{block[1]}." if block else ""
    if layer == "attn.in_proj":
        parts = zip("qkv", np.split(value, 3), strict=True)
        return {f"{start}self_attn.{part}_proj.{end}": array for part, array in parts}
    if layer not in IN_BLOCK:
        raise UsageError(f"The text encoder in the file has the tensor {name}, which no CLIP has.")
    return {f"{start}{IN_BLOCK[layer]}.{end}": value}
