"""Random weights of small DINOv2 networks under the names of its files, drawn by a seed."""

import re
import zlib

import numpy as np

WIDTH, LAYERS, HEADS, SIDE, PATCH = 32, 2, 2, 5, 14


def random_state(gated=False):
    """Return a state dict as transformers saves it, of an MLP or of a SwiGLU."""
    width, layers, side, patch = WIDTH, LAYERS, SIDE, PATCH
    hidden = 88 if gated else 128
    shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.mask_token": (1, width),
        "embeddings.position_embeddings": (1, side**2 + 1, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    mlp = (
        {"weights_in": (2 * hidden, width), "weights_out": (width, hidden)}
        if gated
        else {"fc1": (hidden, width), "fc2": (width, hidden)}
    )
    linear = {f"mlp.{name}": shape for name, shape in mlp.items()} | {
        f"attention.{name}": (width, width)
        for name in ("attention.query", "attention.key", "attention.value", "output.dense")
    }
    for i in range(layers):
        block = f"encoder.layer.{i}"
        for name, shape in linear.items():
            shapes[f"{block}.{name}.weight"] = shape
            shapes[f"{block}.{name}.bias"] = shape[:1]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[f"{block}.{name}"] = (width,)
        for k in (1, 2):
            shapes[f"{block}.layer_scale{k}.lambda1"] = (width,)
    return {name: _draw(name, shape) for name, shape in shapes.items()}


def _draw(name, shape):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    fan_in = np.prod(shape[1:]) if len(shape) > 1 and "embeddings." not in name else 1.0
    if "patch_embeddings.projection.weight" in name:
        fan_in = np.prod(shape[1:])
    value = rng.normal(0, fan_in**-0.5, shape)
    around_one = "lambda1" in name or re.search(r"norm\d?\.weight", name)
    return (value * 0.2 + 1 if around_one else value).astype(np.float32)


def as_the_authors(state):
    """Return the state dict of the authors' file of the same network."""
    named = {}
    for name, value in state.items():
        name = re.sub(r"^encoder\.layer\.", "blocks.", name)
        name = re.sub(r"\.attention\.output\.dense", ".attn.proj", name)
        name = re.sub(r"\.layer_scale(\d)\.lambda1", r".ls\1.gamma", name)
        name = name.replace("mlp.weights_in", "mlp.w12").replace("mlp.weights_out", "mlp.w3")
        name = name.replace("embeddings.patch_embeddings.projection", "patch_embed.proj")
        name = name.replace("embeddings.position_embeddings", "pos_embed")
        named[name.replace("embeddings.", "").replace("layernorm", "norm")] = value
    for name in [name for name in named if ".attention.query." in name]:
        parts = [named.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        named[name.replace("attention.attention.query", "attn.qkv")] = np.concatenate(parts)
    return named
