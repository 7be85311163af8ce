"""The U-Net and the noisy classifier in the names of OpenAI's code.

improved-diffusion (Nichol and Dhariwal 2021) and guided-diffusion (Dhariwal and Nichol 2021), whose
state dicts have `input_blocks.i.j`, `middle_block.j`, `output_blocks.i.j` and `out.j`. Our fields
are

- `time_embedding` "cos_sin", `norm_eps` 1e-5 and `downsample_padding` "both", always;
- `resampling` "block" for `resblock_updown`, "pool" for `conv_resample` off;
- `head_channels` for `num_head_channels`, `num_heads_up` for `num_heads_upsample`;
- `qkv_order` "maps" for `use_new_attention_order`;
- `null_class` False: their classes are all that there is;
- `ch` for the channels of the first level, `model_channels` times the first of `channel_mult`, and
  `time_channels` for `model_channels` where that is another number;
- `pool` of a classifier, "mean" for `adaptive`.

There q, k and v are one map to three times the channels, in one of two orders; here they are three.
Attention that pools always has q before k before v.

NumPy arrays in and out. The names of an undivided file of Stable Diffusion are in `compvis.py`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.diffusers import from_torch, to_torch
from ddpm_jax.interop.renaming import (
    Params,
    Path,
    input_channels,
    rename_from,
    rename_to,
    shapes_of,
    unet_shapes,
)
from ddpm_jax.models.classifier import Classifier
from ddpm_jax.models.trunk import Trunk
from ddpm_jax.models.unet import UNet

SOURCE = "state dict of OpenAI's code"
FIELDS = "ch, ch_mult, num_res_blocks, attn_resolutions, resampling, ..."

TOP = {
    "temb_dense0": "time_embed.0",
    "temb_dense1": "time_embed.2",
    "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "mid_block_1": "middle_block.0",
    "mid_attn_1": "middle_block.1",
    "mid_block_2": "middle_block.2",
    "norm_out": "out.0",
    "conv_out": "out.2",
    "logits": "out.3",
    "pool": "out.2",
}
MODULES = {  # within a block
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "temb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
}
POSITIONS = "positional_embedding"
_QKV = ("q", "k", "v")
# a part of a map, as `Parts` names it
PART = re.compile(r"(?P<module>.*) \((?P<part>[qkv])\)\.(?P<leaf>weight|bias)")


def unet_params_from_openai(tensors: Mapping[str, np.ndarray], unet: UNet) -> dict[str, Any]:
    """Convert a state dict of a U-Net to the parameters of a network.

    Args:
      tensors: name -> array; convolutions [out, in, height, width], linear maps [out, in], those of
        attention [out, in, 1].
      unet: the network whose fields match the checkpoint.

    Returns:
      params, nested, float32: `unet.apply({"params": params}, x, t)`.

    Raises:
      UsageError: a tensor is missing, is left over, has another shape than the network's, or does
        not hold weights.
    """
    in_channels = input_channels(tensors, "input_blocks.0.0.weight", 3)
    return _read(tensors, unet, unet_shapes(unet, in_channels), "U-Net")


def unet_params_to_openai(params: Params, unet: UNet) -> dict[str, np.ndarray]:
    """Convert the parameters of a network to a state dict of a U-Net, float32.

    A null class is one more class there.

    Raises:
      UsageError: the network has an option that this code lacks.
    """
    return _write(params, unet)


def classifier_params_from_openai(
    tensors: Mapping[str, np.ndarray], classifier: Classifier
) -> dict[str, Any]:
    """Convert a state dict of a noisy classifier; see `unet_params_from_openai`."""
    in_channels = input_channels(tensors, "input_blocks.0.0.weight", 3)
    side = classifier.resolution
    image = jax.ShapeDtypeStruct((1, side, side, in_channels), jnp.float32)
    shapes = shapes_of(classifier, image, jax.ShapeDtypeStruct((1,), jnp.int32))
    return _read(tensors, classifier, shapes, "classifier")


def classifier_params_to_openai(params: Params, classifier: Classifier) -> dict[str, np.ndarray]:
    """Convert the parameters of a noisy classifier; see `unet_params_to_openai`."""
    return _write(params, classifier)


def check_is_openais(network: Trunk) -> None:
    """Refuse a network that OpenAI's code does not have.

    Raises:
      UsageError: naming the field.
    """
    fixed = {"time_embedding": "cos_sin", "norm_eps": 1e-5, "norm_groups": 32}
    fixed |= {"block_down": (), "block_up": ()}
    if isinstance(network, UNet):
        fixed |= {"mid_block": "attention", "fourier_features": ()}
    if network.resampling == "conv":
        fixed["downsample_padding"] = "both"
    if network.ch_mult[0] != 1:
        raise UsageError(
            f"ch_mult is {tuple(network.ch_mult)}, and in OpenAI's code the first convolution has "
            "the channels of the first level: choose another format."
        )
    for name, value in fixed.items():
        if getattr(network, name) != value:
            raise UsageError(
                f"{name} is {getattr(network, name)!r}, and in OpenAI's code it is always "
                f"{value!r}: choose another format."
            )


def constructor(network: Trunk, channels: int) -> tuple[str, dict[str, Any]]:
    """Return the class and the arguments with which that code builds a network.

    Args:
      network: a `UNet` or a `Classifier`.
      channels: of an image.

    Raises:
      UsageError: it has no such network.
    """
    check_is_openais(network)
    base = network.time_channels or network.ch
    multiples = (width / base for width in network.widths)
    arguments: dict[str, Any] = {
        "image_size": network.resolution,
        "in_channels": channels,
        "model_channels": base,
        "num_res_blocks": network.num_res_blocks,
        "attention_resolutions": tuple(2**i for i, _, attends in network.levels if attends),
        "dropout": network.dropout,
        "channel_mult": tuple(int(mult) if mult == int(mult) else mult for mult in multiples),
        "conv_resample": network.resampling == "conv",
        "num_heads": network.num_heads,
        "num_head_channels": network.head_channels or -1,
        "num_heads_upsample": network.num_heads_up or -1,
        "use_scale_shift_norm": network.scale_shift_norm,
        "resblock_updown": network.resampling == "block",
        "use_new_attention_order": network.qkv_order == "maps",
    }
    if isinstance(network, Classifier):
        pool = "adaptive" if network.pool == "mean" else network.pool
        if pool == "attention" and not network.head_channels:
            raise UsageError(
                "head_channels is 0, and OpenAI's pool by attention counts its heads by their "
                "channels: set head_channels."
            )
        return "EncoderUNetModel", arguments | {"out_channels": network.num_classes, "pool": pool}
    classes = network.num_classes + network.null_class if network.num_classes else None
    arguments |= {"out_channels": network.out_channels, "num_classes": classes}
    return "SuperResModel" if network.low_res_channels else "UNetModel", arguments


def tensor_name(path: Path, network: Trunk) -> str:
    """Return the name there of the parameter at a path; parts of one map as `Parts` has them."""
    block, *modules, leaf = path
    if leaf == "positions":
        return f"{TOP[block]}.{POSITIONS}"
    inner = (_module_name(module, block) for module in modules)
    return ".".join([_block_name(block, network), *inner, "bias" if leaf == "bias" else "weight"])


def _module_name(module: str, block: str) -> str:
    fused = "qkv_proj" if block == "pool" else "qkv"
    if module in _QKV:
        return f"{fused} ({module})"
    return "c_proj" if block == "pool" else MODULES.get(module, module)


def _block_name(block: str, network: Trunk) -> str:
    """Return the name there of a module of the network itself, such as down_0_block_1."""
    if block in TOP:
        return TOP[block]
    direction, level, kind, *index = block.split("_")
    i, blocks, levels = int(level), network.num_res_blocks, len(network.ch_mult)
    _, _, attends = network.levels[i]
    # A level has one index more than blocks: on the way down its downsampling, which is after that
    # of conv_in, on the way up the last block, and then the upsampling is in the same.
    if direction == "down":
        first = 1 + i * (blocks + 1)
        number, part = (first + int(index[0]), kind == "attn") if index else (first + blocks, 0)
        name = f"input_blocks.{number}.{int(part)}"
    else:
        first = (levels - 1 - i) * (blocks + 1)
        number, part = (
            (first + int(index[0]), kind == "attn") if index else (first + blocks, 1 + attends)
        )
        name = f"output_blocks.{number}.{int(part)}"
    if index or network.resampling == "block":
        return name
    return f"{name}.{'op' if direction == 'down' else 'conv'}"


class Parts(Mapping[str, np.ndarray]):
    """Tensors in which q, k and v of a map to all three are named "(q)", "(k)", "(v)"."""

    def __init__(self, tensors: Mapping[str, np.ndarray], groups: Mapping[str, int]) -> None:
        """Take `tensors`; `groups` is, for each map to divide, how often q, k, v follow in it."""
        self._tensors, self._groups = tensors, groups
        self._names: dict[str, tuple[str, int | None]] = {}
        for name in tensors:
            module, _, leaf = name.rpartition(".")
            if module in groups:
                parts = {f"{module} ({part}).{leaf}": i for i, part in enumerate(_QKV)}
                self._names |= {part: (name, i) for part, i in parts.items()}
            else:
                self._names[name] = name, None

    def __getitem__(self, name: str) -> np.ndarray:
        whole, part = self._names[name]
        value = self._tensors[whole]
        if part is None:
            return value
        groups = self._groups[whole.rpartition(".")[0]]
        rows = len(value) if value.ndim else 0
        if rows % (3 * groups):  # no such map: the reader reports its shape
            return value
        rows_GxPxD = value.reshape(groups, 3, rows // (3 * groups), *value.shape[1:])
        return rows_GxPxD[:, part].reshape(rows // 3, *value.shape[1:])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def joined(parts: Mapping[str, np.ndarray], groups: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return the tensors of which `Parts` makes these: its inverse."""
    tensors: dict[str, np.ndarray] = {}
    for name, value in parts.items():
        found = PART.fullmatch(name)
        if found is None:
            tensors[name] = value
        elif found["part"] == "q":
            module, leaf = found["module"], found["leaf"]
            of_heads = [
                parts[f"{module} ({part}).{leaf}"].reshape(groups[module], -1, *value.shape[1:])
                for part in _QKV
            ]
            whole = np.stack(of_heads, axis=1).reshape(3 * len(value), *value.shape[1:])
            tensors[f"{module}.{leaf}"] = whole
    return tensors


def _groups(names: Mapping[Path, str], network: Trunk) -> dict[str, int]:
    """Return, for each map to q, k and v, how often they follow each other in it."""
    found = {}
    for path, name in names.items():
        part = PART.fullmatch(name)
        if part is not None:
            by_head = network.qkv_order == "heads" and path[0] != "pool"
            found[part["module"]] = _heads(path[0], network) if by_head else 1
    return found


def _heads(block: str, network: Trunk) -> int:
    direction, level, *_ = block.split("_")
    if direction == "mid":
        return network.heads[-1]
    return (network.heads if direction == "down" else network.heads_up)[int(level)]


def _read(
    tensors: Mapping[str, np.ndarray],
    network: Trunk,
    shapes: Mapping[Path, tuple[int, ...]],
    kind: str,
) -> dict[str, Any]:
    names = {path: tensor_name(path, network) for path in shapes}
    parts = Parts(tensors, _groups(names, network))
    return rename_from(parts, shapes, names.__getitem__, from_openai, SOURCE, kind, FIELDS)


def _write(params: Params, network: Trunk) -> dict[str, np.ndarray]:
    check_is_openais(network)
    names = {path: tensor_name(path, network) for path in flatten_dict(params)}
    parts = rename_to(params, names.__getitem__, to_openai)
    return joined(parts, _groups(names, network))


def from_openai(path: Path, value: np.ndarray) -> np.ndarray:
    """Convert a tensor, or a part of one, to the layout of our parameter at `path`."""
    if path[-1] == "positions":
        return value.T
    if path[-1] == "kernel" and value.ndim == 3:  # a convolution over one pixel of a sequence
        value = value[..., 0] if value.shape[2] == 1 else value
    return from_torch(path, value)


def to_openai(path: Path, value: np.ndarray) -> np.ndarray:
    """Convert our parameter at `path` to the layout there."""
    if path[-1] == "positions":
        return value.T
    value = to_torch(path, value)
    if path[-1] != "kernel":
        return value
    if path[0] == "logits":
        return value[:, :, None, None]
    return value[:, :, None] if path[-2] in (*_QKV, "proj_out") else value
