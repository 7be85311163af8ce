"""The Diffusion Transformer in the names and layouts of its authors' code (facebookresearch/DiT).

A `DiT` with classes is their network with `time_embedding` "cos_sin". Their q, k and v are one
map, whose rows are those of q, then of k, then of v. The table of positions is a tensor of their
files; where it is not `models.dit.position_embedding` to the last bit, as in a moving average,
which rounds it over and over, the network needs `positions` "table".
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.diffusers_dit import patches_from_torch, patches_to_torch
from ddpm_jax.interop.renaming import (
    Params,
    Path,
    input_channels,
    network_shapes,
    rename_from,
    rename_to,
)
from ddpm_jax.models.dit import DiT, position_embedding

SOURCE = "state dict of DiT"
TABLE, POSITIONS = "position_embedding", "pos_embed"  # ours, theirs
TOP = {  # ours -> theirs
    "patch_embedding": "x_embedder.proj",
    "temb_dense0": "t_embedder.mlp.0",
    "temb_dense1": "t_embedder.mlp.2",
    "class_embedding": "y_embedder.embedding_table",
    "modulation_out": "final_layer.adaLN_modulation.1",
    "patch_out": "final_layer.linear",
}
IN_BLOCK = {
    "modulation": "adaLN_modulation.1",
    "proj_out": "attn.proj",
    "mlp_dense0": "mlp.fc1",
    "mlp_dense1": "mlp.fc2",
}
MAPS = ("q", "k", "v")  # parts of the map "attn.qkv", in its order
_ENDS = tuple(f" ({part})" for part in MAPS)
_QKV = re.compile(r"(blocks\.\d+\.attn\.)qkv(\.weight|\.bias)")


def dit_params_from_authors(state_dict: Mapping[str, np.ndarray], dit: DiT) -> dict[str, Any]:
    """Convert a state dict of the authors' code to the parameters of a network.

    Args:
      state_dict: name -> array; convolutions [out, in, height, width], linear maps [out, in], and
        `pos_embed` [1, tokens, hidden_size], a square of tokens.
      dit: the network whose fields match the checkpoint; it has classes.

    Returns:
      params, nested, float32: `dit.apply({"params": params}, x, t, condition)`.

    Raises:
      UsageError: a tensor is missing, is left over, has another shape than the network's, or does
        not hold weights; the positions are not the formula's, where the network has that.
    """
    tensors = dict(_in_three(state_dict))
    in_channels = input_channels(tensors, TOP["patch_embedding"] + ".weight", 4)
    side = tokens_a_side(state_dict) if POSITIONS in state_dict else 1
    if dit.positions == "formula" and POSITIONS in tensors:
        if not has_formula(tensors):
            raise UsageError(
                f"{POSITIONS} of the {SOURCE} is not the table of sines and cosines: give the "
                "network the positions 'table'."
            )
        del tensors[POSITIONS]
    return rename_from(
        tensors,
        network_shapes(dit, in_channels, side=dit.patch_size * side),
        _name,
        _from_theirs,
        SOURCE,
        network="DiT",
        fields="patch_size, hidden_size, depth, num_classes, ...",
    )


def dit_params_to_authors(params: Params, dit: DiT, side: int) -> dict[str, np.ndarray]:
    """Convert the parameters of a network with classes to a state dict of the authors', float32.

    `side` is the number of tokens in a row and in a column, of which their table of positions is.
    """

    def layout(path: Path, value: np.ndarray) -> np.ndarray:
        return value[None] if path == (TABLE,) else patches_to_torch(path, value, dit.patch_size)

    apart = rename_to(params, _name, layout)
    if dit.positions == "formula":
        apart[POSITIONS] = position_embedding(side, side, dit.hidden_size)[None]
    theirs = {name: value for name, value in apart.items() if not name.endswith(_ENDS)}
    for i in range(dit.depth):
        for kind in (".weight", ".bias"):
            name = f"blocks.{i}.attn.qkv{kind}"
            theirs[name] = np.concatenate([apart[_part(name, part)] for part in MAPS])
    return theirs


def tokens_a_side(state_dict: Mapping[str, np.ndarray]) -> int:
    """Return the number of tokens in a row and in a column of the square for which positions are.

    Raises:
      UsageError: they are no table of a square.
    """
    shape = np.shape(state_dict[POSITIONS])
    side = round(shape[1] ** 0.5) if len(shape) == 3 else 0
    if shape[:1] != (1,) or not side or shape[1] != side**2:
        raise UsageError(
            f"{POSITIONS} of the {SOURCE} has shape {shape}: [1, n * n, hidden_size] is expected, "
            "positions in a square."
        )
    return side


def has_formula(state_dict: Mapping[str, np.ndarray]) -> bool:
    """Return whether the table of positions is `models.dit.position_embedding` to the last bit."""
    side, table = tokens_a_side(state_dict), np.asarray(state_dict[POSITIONS])
    features = table.shape[2]
    return features % 4 == 0 and np.array_equal(table[0], position_embedding(side, side, features))


def _in_three(state_dict: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors, one with q, k and v as its three parts."""
    for name in state_dict:
        shape = np.shape(state_dict[name])
        if _QKV.fullmatch(name) and shape and shape[0] % 3 == 0:
            parts = np.split(state_dict[name], 3)
            yield from zip((_part(name, part) for part in MAPS), parts, strict=True)
        else:
            yield name, state_dict[name]


def _part(name: str, part: str) -> str:
    """ "blocks.0.attn.qkv.weight" -> "blocks.0.attn.qkv.weight (q)"."""
    return f"{name} ({part})"


def _name(path: Path) -> str:
    """Return their name of the parameter at a path."""
    if path == (TABLE,):
        return POSITIONS
    *modules, leaf = path
    end = "bias" if leaf == "bias" else "weight"
    if len(modules) == 1:
        return f"{TOP[modules[0]]}.{end}"
    block, layer = modules
    start = f"blocks.{block.removeprefix('block_')}"
    if layer in MAPS:
        return _part(f"{start}.attn.qkv.{end}", layer)
    return f"{start}.{IN_BLOCK[layer]}.{end}"


def _from_theirs(path: Path, value: np.ndarray) -> np.ndarray:
    return value[0] if path == (TABLE,) else patches_from_torch(path, value)
