"""Low-rank updates of Stable Diffusion in files: those of diffusers and PEFT, and others.

They are of the U-Net, of the text encoder, or of both.

A file has two tensors for each map, A and B, in torch's layout ([r, in] and [out, r], or of a
convolution [r, in, h, w] and [out, r, 1, 1]), whose names end in one of `ENDS`, and perhaps the
number alpha; the map's weight becomes W + (alpha / r) B A. Without alpha it is r.

- PEFT, and diffusers today: `unet.down_blocks.0....attn1.to_q.lora_A.weight`; alpha, where it is
  not r, is in the metadata. With rslora the factor is alpha / √r.
- an adapter that PEFT has saved by itself, of one network: `base_model.model.down_blocks....` or
  `base_model.model.text_model.encoder....`; alpha is in `ADAPTER_CONFIG` beside it.
- diffusers before: `unet....to_q.lora.down.weight`, or `unet....attn1.processor.to_q_lora.down...`.
- kohya's scripts: `lora_unet_down_blocks_0_..._attn1_to_q.lora_down.weight`, and `....alpha`.

Other names of the text encoder begin with `text_encoder.`, in kohya's with `lora_te_`; before PEFT
diffusers called its maps `....q_proj.lora_linear_layer.down` or `....to_q_lora.down`.
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ddpm_jax.archives import BadArchive, safetensors_metadata, write_safetensors
from ddpm_jax.errors import UsageError
from ddpm_jax.files import reporting
from ddpm_jax.interop.clip_text import PREFIX, TOP, clip_name
from ddpm_jax.interop.diffusers import from_torch
from ddpm_jax.interop.diffusers_directory import read_json
from ddpm_jax.interop.diffusers_text_unet import PROJECTIONS, tensor_name
from ddpm_jax.interop.renaming import Params, Path
from ddpm_jax.interop.tensor_files import as_weight
from ddpm_jax.interop.tensor_store import open_tensors
from ddpm_jax.interop.torch_files import is_torch_file
from ddpm_jax.models.text_unet import TextUNet
from ddpm_jax.schema import Malformed, Table, parse

FILE = "pytorch_lora_weights.safetensors"  # as diffusers looks for it in a directory
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")  # as PEFT does
ADAPTER_CONFIG = "adapter_config.json"
ENDS = {
    "A": ("lora_A", "lora.down", "lora_down", "lora_linear_layer.down"),
    "B": ("lora_B", "lora.up", "lora_up", "lora_linear_layer.up"),
}
_ROLES = {end: role for role, ends in ENDS.items() for end in ends}
_ENTRY = re.compile(
    rf"(?P<module>.+?)[._](?P<end>{'|'.join(map(re.escape, _ROLES))})(?:\.default)?\.weight"
)
_PREFIXES = re.compile(r"^(?:base_model\.model\.)?(?:unet\.)?")
# maps of a text encoder by itself, of which transformers 5 leaves out "text_model."
_ALONE = re.compile(rf"^(?:{re.escape(PREFIX)})?encoder\.layers\.")
UNET, TEXT = "unet", "text_encoder"  # parts of a model, as names of tensors begin
_OF_TEXT = (TEXT, "lora_te")
_METADATA = "lora_adapter_metadata"  # JSON, of diffusers
_OBJECT = Table()
# What PEFT keeps of each network. How the weights of the network itself were changed before the
# updates were trained is a text; these change them.
_SETTINGS = ("lora_alpha", "alpha_pattern", "use_rslora", "use_dora", "init_lora_weights")
_CHANGED_FIRST = ("pissa", "olora", "corda", "loftq", "lora_ga")


class Update(NamedTuple):
    """The update of one map as a file has it."""

    a: np.ndarray  # [r, in, ...]
    b: np.ndarray  # [out, r, ...]
    scale: float  # alpha / r, or alpha / √r

    @property
    def product(self) -> np.ndarray:
        """Return scale B A in the shape of the map's weight, float32."""
        rank = len(self.a)
        flat = self.b.reshape(-1, rank) @ self.a.reshape(rank, -1)
        return (self.scale * flat).reshape(len(self.b), *self.a.shape[1:])


def add_lora(
    path: str | os.PathLike,
    params: Mapping[str, Params],
    unet: TextUNet,
    *,
    scale: float = 1.0,
    updates: Mapping[str, Update] | None = None,
) -> dict[str, Any]:
    """Return the parameters of a model's networks with the updates of a file merged.

    Args:
      path: a safetensors file or one of PyTorch, or a directory with `FILE` or one of `ADAPTERS`.
      params: those of the U-Net as `UNET` and of the text encoder as `TEXT`, NumPy or JAX arrays.
      unet: the U-Net.
      scale: further factor of the updates.
      updates: what `read_lora` has read in it; None: it is read.

    Raises:
      UsageError: it is no such file, is damaged, or has updates of another network.
    """
    place, updates = _place(path), read_lora(path) if updates is None else updates
    flat = flatten_dict(params)
    paths = _paths(flat, unet)
    unknown = [name for name in updates if name not in paths]
    if unknown:
        part = "text encoder" if unknown[0].startswith(_OF_TEXT) else "U-Net"
        raise UsageError(
            f"{place} has an update of {unknown[0]}, which this model's {part} does not have: it "
            "belongs to another network."
        )
    for name, update in updates.items():
        where = paths[name]
        value = from_torch(where, update.product)
        if value.shape != flat[where].shape:
            raise UsageError(
                f"{place}: the update of {name} is of the shape {list(value.shape)}, and the map "
                f"of this model of {list(flat[where].shape)}: it belongs to another network."
            )
        weight = np.asarray(flat[where])
        flat[where] = (weight.astype(np.float32) + scale * value).astype(weight.dtype)
    return unflatten_dict(flat)


def _place(path: str | os.PathLike) -> pathlib.Path:
    """Return the file.

    Raises:
      UsageError: it is a directory without one.
    """
    place = pathlib.Path(path)
    if not place.is_dir():
        return place
    there = [name for name in (FILE, *ADAPTERS) if (place / name).is_file()]
    if not there:
        raise UsageError(
            f"{place} has no low-rank updates (LoRA), which are called {FILE} or {ADAPTERS[0]} in "
            "a directory: name a file."
        )
    return place / there[0]


def read_lora(path: str | os.PathLike) -> dict[str, Update]:
    """Return the updates in a file by the name of their map, one of the U-Net without "unet.".

    Args:
      path: as in `add_lora`.

    Raises:
      UsageError: it is no such file, or damaged, or has anything else in it.
    """
    path = _place(path)
    tensors = open_tensors(path)
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in tensors:
        module, role = _parse(name, path)
        found.setdefault(module, {})[role] = as_weight(name, tensors[name], str(path))
    if not found:
        raise UsageError(f"{path} has no updates: there is no tensor in it.")
    said = _said(path)
    return {module: _update(module, parts, said, path) for module, parts in found.items()}


def write_lora(
    path: str | os.PathLike, lora: Params, unet: TextUNet, *, scale: float = 1.0
) -> None:
    """Write updates as diffusers and PEFT do, float32.

    B is written times `scale`, so that every reader, which takes alpha = r where a file has none,
    gets the same map.

    Args:
      path: of the new file; by convention it is called `FILE`.
      lora: "A" and "B" of each map, of `models.lora.init_lora`.
      unet: the network.
      scale: alpha / r.

    Raises:
      FailureError: it cannot be written.
    """
    tensors = {}
    for (*module, role), value in flatten_dict(lora).items():
        kernel = (*module, "kernel")
        name = tensor_name(kernel, len(unet.ch_mult)).removesuffix(".weight")
        array = np.asarray(value, np.float32).T * (scale if role == "B" else 1.0)
        if len(kernel) == 3 and kernel[1] in PROJECTIONS and not unet.linear_projection:
            array = array[:, :, None, None]
        tensors[f"unet.{name}.lora_{role}.weight"] = np.ascontiguousarray(array, np.float32)
    with reporting(path):
        write_safetensors(pathlib.Path(path), tensors, {"format": "pt"})


def _paths(flat: Mapping[Path, Any], unet: TextUNet) -> dict[str, Path]:
    """Return the path of every kernel of `add_lora`'s `params` by its names in files."""
    paths = {}
    for path in [path for path in flat if path[-1] == "kernel"]:
        if path[0] == UNET:
            name = tensor_name(path[1:], len(unet.ch_mult)).removesuffix(".weight")
            names = [name, f"lora_unet_{name.replace('.', '_')}"]
        else:
            name = clip_name(path[1:], TOP).removesuffix(".weight")
            names = [f"{TEXT}.{PREFIX}{name}", f"{TEXT}.{name}"]
            names.append(f"lora_te_{(PREFIX + name).replace('.', '_')}")
        paths |= dict.fromkeys(names, path)
    return paths


def _parse(name: str, path: pathlib.Path) -> tuple[str, str]:
    """Return (the name of the map, "A", "B" or "alpha") of a tensor's name."""
    entry = _ENTRY.fullmatch(name)
    if entry is None and not name.endswith(".alpha"):
        raise UsageError(
            f"{path} has the tensor {name!r}, which is no part of a low-rank update (LoRA): its "
            "name should end in lora_A.weight, lora_B.weight, or alpha."
        )
    module = name.removesuffix(".alpha") if entry is None else entry["module"]
    module = _PREFIXES.sub("", module).replace(".processor.", ".")
    if _ALONE.match(module):
        module = f"{TEXT}.{module}"
    if module.startswith(TEXT):
        module = re.sub(r"\.to_(q|k|v|out)$", r".\1_proj", module)
    if module.endswith(".to_out"):
        module += ".0"
    return module, "alpha" if entry is None else _ROLES[entry["end"]]


def _update(
    module: str, parts: Mapping[str, np.ndarray], said: Mapping[str, Any], path: pathlib.Path
) -> Update:
    for role, ends in ENDS.items():
        if role not in parts:
            raise UsageError(f"{path} is not whole: it has no {ends[0]} of {module}.")
    a, b, rank = parts["A"], parts["B"], len(parts["A"])
    fits = a.ndim == b.ndim and a.ndim in (2, 4) and b.shape[1:] == (rank,) + (1,) * (b.ndim - 2)
    if not fits or not rank:
        raise UsageError(
            f"{path}: the shapes {list(a.shape)} and {list(b.shape)} of {module} are not those of "
            "a low-rank update, [r, in] and [out, r]."
        )
    alpha = parts.get("alpha")
    if alpha is not None and alpha.size != 1:
        raise UsageError(f"{path}: alpha of {module} is no single number.")
    scale = _scale(module, rank, said) if alpha is None else float(alpha) / rank
    return Update(a, b, scale)


def _scale(module: str, rank: int, said: Mapping[str, Any]) -> float:
    """Return alpha / r of a map as PEFT's settings say it, of rslora alpha / √r; 1 without them."""
    part = TEXT if module.startswith(_OF_TEXT) else UNET
    patterns = said.get(f"{part}.alpha_pattern") or {}
    own = [value for name, value in patterns.items() if re.fullmatch(rf"(.*\.)?({name})", module)]
    alpha = own[0] if own else said.get(f"{part}.lora_alpha", rank)
    return float(alpha / (np.sqrt(rank) if said.get(f"{part}.use_rslora") else rank))


def _said(path: pathlib.Path) -> Mapping[str, Any]:
    """Return what PEFT kept about the updates, as {"unet.lora_alpha": 8}; {} for most files.

    Raises:
      UsageError: it is damaged, or says of the updates what is not read here.
    """
    source = path.with_name(ADAPTER_CONFIG)
    if path.name in ADAPTERS and source.is_file():
        config = read_json(source)  # of the one network that the file is of
        said = {f"{part}.{key}": config.get(key) for part in (UNET, TEXT) for key in _SETTINGS}
        said = {key: value for key, value in said.items() if value is not None}
    elif is_torch_file(path):
        return {}
    else:
        source, said = path, _metadata(path)
    alphas = [said.get(f"{part}.lora_alpha", 1) for part in (UNET, TEXT)]
    patterns = [said.get(f"{part}.alpha_pattern") or {} for part in (UNET, TEXT)]
    are_tables = all(map(_is_table_of_patterns, patterns))
    alphas += [value for pattern in patterns if are_tables for value in pattern.values()]
    if not are_tables or not all(map(_is_number, alphas)):
        raise UsageError(
            f"{source} is damaged: its lora_alpha is no number, or its alpha_pattern no table of "
            "numbers by names of maps."
        )
    for part in (UNET, TEXT):
        start = str(said.get(f"{part}.init_lora_weights")).lower()
        if start.startswith(_CHANGED_FIRST):
            raise UsageError(
                f"{source} says init_lora_weights {start[:80]}, which changes the network's own "
                "weights too: convert the updates to plain LoRA by PEFT first."
            )
        if said.get(f"{part}.use_dora"):
            raise UsageError(f"{source} was made with use_dora, and is read without it only.")
    return said


def _is_table_of_patterns(value: Any) -> bool:
    try:
        return isinstance(value, Mapping) and all(map(re.compile, value))
    except re.error:
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)


def _metadata(path: pathlib.Path) -> dict[str, Any]:
    """Return the JSON object that diffusers keeps in the metadata of a safetensors file, else {}.

    Raises:
      UsageError: it is damaged.
    """
    try:
        return parse(safetensors_metadata(path).get(_METADATA, "{}").encode(), _OBJECT)
    except (BadArchive, Malformed, AttributeError) as error:
        raise UsageError(f"{path} is damaged: its {_METADATA} is no table ({error}).") from error
