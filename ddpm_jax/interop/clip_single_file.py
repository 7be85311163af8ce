"""The text encoder within a single file of Stable Diffusion, as the original code writes it.

1.x has transformers' names below `cond_stage_model.transformer.`, 2.x OpenCLIP's below
`cond_stage_model.model.`, where q, k and v are one tensor and the projection is not transposed.
OpenCLIP's last layer is in the file, and the model does not use it. Both become transformers'
names, which `clip_text.py` reads.
"""

import re
from collections.abc import Iterable, Mapping

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
      UsageError: as `text_names_of_single_file`.
    """
    named = {}
    for name, theirs in text_names_of_single_file(tensors).items():
        value = tensors[name].T if name.endswith(".text_projection") else tensors[name]
        named |= zip(theirs, np.split(value, len(theirs)), strict=True)
    return named


def text_names_of_single_file(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return what the text encoder's tensors are called in transformers, without the prefix.

    Args:
      names: of all tensors of a file of Stable Diffusion 1.x or 2.x.

    Returns:
      Name in the file -> names in transformers, for the tensors that the model uses: one name, or
      three for the thirds of a tensor along its first axis. OpenCLIP's projection is transposed.

    Raises:
      UsageError: there is no text encoder among them, or one of its names is not OpenCLIP's.
    """
    present = list(names)
    found = [name for name in present if name.startswith(OF_TRANSFORMERS)]
    if found:
        ours = {name: name.removeprefix(OF_TRANSFORMERS) for name in found}
        return {
            name: (new.removeprefix(PREFIX),)
            for name, new in ours.items()
            if not IGNORED.fullmatch(new)
        }
    found = [name for name in present if name.startswith(OF_OPENCLIP)]
    if not found:
        raise UsageError(
            f"The file has no text encoder: no tensor's name begins with {OF_TRANSFORMERS} or "
            f"{OF_OPENCLIP}, as in Stable Diffusion 1.x and 2.x."
        )
    inner = {name: name.removeprefix(OF_OPENCLIP) for name in found}
    blocks = {name: BLOCK.fullmatch(new) for name, new in inner.items()}
    last = max((int(block[1]) for block in blocks.values() if block), default=0)
    return {
        name: _of_openclip(inner[name], block)
        for name, block in blocks.items()
        if inner[name] not in ("logit_scale", "attn_mask") and not (block and int(block[1]) == last)
    }


def text_encoder_of_single_file(tensors: Mapping[str, np.ndarray]) -> TextEncoder:
    """Return the encoder whose tensors are in a single file, computing in float32.

    Its sizes are those of the tensors, with heads of 64 features; its activation is that of
    OpenAI's CLIP in 1.x, that of OpenCLIP in 2.x.

    Args:
      tensors: as above; only their shapes are read.

    Raises:
      UsageError: as above, or there is no token embedding or layer.
    """
    named = {theirs[0]: name for name, theirs in text_names_of_single_file(tensors).items()}
    is_openai = any(name.startswith(OF_TRANSFORMERS) for name in tensors)
    layers = {int(found[1]) for found in map(LAYER.match, named) if found}
    try:
        vocab_size, width = tensors[named[TOP["token_embedding.weight"]]].shape
        context_length, _ = tensors[named[TOP["positional_embedding"]]].shape
        hidden, _ = tensors[named["encoder.layers.0.mlp.fc1.weight"]].shape
    except (KeyError, ValueError) as error:
        raise UsageError(f"The text encoder in the file lacks tensors ({error}).") from error
    return TextEncoder(
        vocab_size=vocab_size,
        width=width,
        layers=max(layers) + 1,
        heads=max(1, width // HEAD),
        hidden=hidden,
        activation="quick_gelu" if is_openai else "gelu",
        context_length=context_length,
    )


def _of_openclip(name: str, block: re.Match | None) -> tuple[str, ...]:
    """Return transformers' name of a tensor of OpenCLIP, three for that of q, k and v."""
    if name in TOP:
        return (TOP[name],)
    if name == "text_projection":
        return ("text_projection.weight",)
    layer, end = (block[2], block[3]) if block else ("", "")
    start = f"encoder.layers.{block[1]}." if block else ""
    if layer == "attn.in_proj":
        return tuple(f"{start}self_attn.{part}_proj.{end}" for part in "qkv")
    if layer not in IN_BLOCK:
        raise UsageError(f"The text encoder in the file has the tensor {name}, which no CLIP has.")
    return (f"{start}{IN_BLOCK[layer]}.{end}",)
