"""The weights of DINOv2, from a file or a directory that the user provides.

Read are the authors' files, dinov2_vitl14_pretrain.pth and its like, and the `Dinov2Model` of
transformers. The network's fields follow from the tensors.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.diffusers_dit import patches_from_torch
from ddpm_jax.interop.published_weights import Published
from ddpm_jax.interop.renaming import Path, rename_from, shapes_of
from ddpm_jax.models.vision_transformer import VisionTransformer, check_vision_transformer

PUBLISHED = (
    Published(
        "dinov2_vitl14_pretrain.pth",
        "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
        'the backbone "ViT-L/14 distilled" of facebookresearch/dinov2 on GitHub',
    ),
)
HEAD = 64  # channels of a head in every released network
SOURCE = "state dict of DINOv2"
# the token of masked patches, which training alone has, and classifiers on top
_IGNORED = re.compile(r"(embeddings\.)?mask_token|(linear_head|classifier|head)\..*")

TOP = {  # ours -> the authors'
    "class_token": "cls_token",
    "positions": "pos_embed",
    "patch_embedding": "patch_embed.proj",
    "norm_out": "norm",
}
BLOCK = {
    "norm_1": "norm1",
    "scale_1": "ls1.gamma",
    "norm_2": "norm2",
    "scale_2": "ls2.gamma",
    "proj_out": "attn.proj",
    "mlp_dense0": "mlp.fc1",
    "mlp_dense1": "mlp.fc2",
}
GATED = {"mlp_dense0": "mlp.w12", "mlp_dense1": "mlp.w3"}
_TRANSFORMERS = (  # transformers' -> the authors', in this order
    (r"^dinov2\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^layernorm\.", "norm."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
)
_PARTS = {"q": "query", "k": "key", "v": "value"}


def dinov2_from_tensors(
    tensors: Mapping[str, np.ndarray],
    *,
    heads: int | None = None,
    offset: float = 0.1,
    source: str = "file",
) -> tuple[VisionTransformer, dict[str, Any]]:
    """Return the network and the parameters of a state dict, the authors' or transformers'.

    Args:
      tensors: name -> array; linear maps [out, in], in the authors' files q, k and v as one.
      heads: of attention; None: as many of 64 channels as there are.
      offset: as in `VisionTransformer`.
      source: where they are from, for messages.

    Returns:
      the network, and params, nested, float32: `network.apply({"params": params}, x)`.

    Raises:
      UsageError: a tensor is missing, is left over, has another shape than the network's, or does
        not hold weights.
    """
    named = _named(tensors)
    network = _network(named, heads, offset, source)
    shape = (1, network.patch_size, network.patch_size, 3)
    params = rename_from(
        named,
        shapes_of(network, jax.ShapeDtypeStruct(shape, jnp.float32)),
        lambda path: _name(path, network),
        _layout,
        f"{SOURCE} in {source}",
        network="vision transformer",
        fields="width, layers, hidden, gated",
    )
    return network, params


def _named(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors by the authors' names, with q, k and v by themselves."""
    named = {}
    for theirs in tensors:
        name = theirs
        for pattern, replacement in _TRANSFORMERS:
            name = re.sub(pattern, replacement, name)
        if _IGNORED.fullmatch(name):
            continue
        value = np.asarray(tensors[theirs])
        if ".attn.qkv." in name and value.ndim and value.shape[0] % 3 == 0:
            for part, rows in zip(_PARTS.values(), np.split(value, 3), strict=True):
                named[name.replace(".qkv.", f".{part}.")] = rows
        else:
            named[name] = value
    return named


def _network(
    named: Mapping[str, np.ndarray], heads: int | None, offset: float, source: str
) -> VisionTransformer:
    """Read the fields of the network off names and shapes.

    Raises:
      UsageError: they are not those of such a network.
    """
    gated = "blocks.0.mlp.w12.weight" in named
    first = f"blocks.0.{GATED['mlp_dense0'] if gated else BLOCK['mlp_dense0']}.weight"
    shapes = {
        name: np.shape(named[name]) if name in named else ()
        for name in ("pos_embed", "patch_embed.proj.weight", first)
    }
    lengths = {"pos_embed": 3, "patch_embed.proj.weight": 4, first: 2}
    for name, shape in shapes.items():
        if len(shape) != lengths[name] or 0 in shape:
            found = f"has the shape {list(shape)}" if shape else "is missing"
            raise UsageError(
                f"The weights in {source} are none of DINOv2, in which {name} {found}: give the "
                f"authors' file, {PUBLISHED[0].name}, or a Dinov2Model of transformers."
            )
    blocks = {name.split(".")[1] for name in named if name.startswith("blocks.")}
    width, hidden = shapes["pos_embed"][2], shapes[first][0] // (2 if gated else 1)
    network = VisionTransformer(
        width=width,
        layers=len(blocks),
        heads=max(1, width // HEAD) if heads is None else heads,
        hidden=hidden,
        gated=gated,
        patch_size=shapes["patch_embed.proj.weight"][2],
        side=math.isqrt(shapes["pos_embed"][1] - 1),
        offset=offset,
    )
    check_vision_transformer(network)
    return network


def _name(path: Path, network: VisionTransformer) -> str:
    """Return the authors' name of the parameter at a path, q, k and v by themselves."""
    first, *rest = path
    end = "" if path[-1] not in ("kernel", "scale", "bias") else _END[path[-1]]
    if first in TOP:
        return TOP[first] + end
    module = rest[0]
    names = BLOCK | (GATED if network.gated else {})
    theirs = f"attn.{_PARTS[module]}" if module in _PARTS else names[module]
    return f"blocks.{first.removeprefix('block_')}.{theirs}{end}"


_END = {"kernel": ".weight", "scale": ".weight", "bias": ".bias"}


def _layout(path: Path, value: np.ndarray) -> np.ndarray:
    if path[0] in ("class_token", "positions"):
        return value.reshape(value.shape[-1]) if path[0] == "class_token" else value[0]
    return patches_from_torch(path, value)
