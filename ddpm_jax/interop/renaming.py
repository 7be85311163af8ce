"""Renaming and changing the layout of parameters, shared by every format in this folder.

A format gives the name and the change of layout of each of our parameters; this file applies both
and reports what is missing, left over or of the wrong shape. The formats themselves are in the
other files of this folder.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from numpy.typing import DTypeLike

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.tensor_files import as_weight
from ddpm_jax.models.condition import null_condition
from ddpm_jax.models.dit import DiT
from ddpm_jax.models.text_unet import TextUNet
from ddpm_jax.models.unet import UNet
from ddpm_jax.randomness import base_key

Path = tuple[str, ...]  # of one of our parameters: ("down_0_block_0", "conv1", "kernel")
Params = Mapping[str, Any]


class OtherNetwork(UsageError):
    """Tensors are not those of the network that they are to be the weights of.

    Attributes:
      what: the first that do not fit, a main clause without its full stop.
    """

    def __init__(self, what: str, advice: str):
        self.what = what
        super().__init__(f"{what}: {advice}.")


def unet_shapes(unet: UNet | TextUNet, in_channels: int) -> dict[Path, tuple[int, ...]]:
    """Return the shape of every parameter of a U-Net, as `network_shapes` does."""
    return network_shapes(unet, in_channels, side=2 ** (len(unet.ch_mult) - 1))


def network_shapes(
    network: UNet | TextUNet | DiT, in_channels: int, *, side: int
) -> dict[Path, tuple[int, ...]]:
    """Return the shape of every parameter of a network, in its own order, without computing any.

    The last `low_res_channels` of the input's channels belong to the low-resolution image; `side`
    is a valid height and width.
    """
    image = jax.ShapeDtypeStruct(
        (1, side, side, in_channels - network.low_res_channels), jnp.float32
    )
    time = jax.ShapeDtypeStruct((1,), jnp.int32)
    return shapes_of(network, image, time, null_condition(network, image))


def shapes_of(network: nn.Module, *inputs: Any) -> dict[Path, tuple[int, ...]]:
    """Return the shape of every parameter of a network for such inputs, without computing any."""
    leaves, structure = jax.tree.flatten(inputs)
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    try:
        return dict(_traced_shapes(network, structure, shapes))
    except TypeError:  # a field is a list, say, so that the network cannot be looked up
        return _traced_shapes.__wrapped__(network, structure, shapes)


@functools.lru_cache(maxsize=32)
def _traced_shapes(
    network: nn.Module, structure: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]
) -> dict[Path, tuple[int, ...]]:
    """Do as `shapes_of`, once for a network, since tracing a large one takes a second."""
    inputs = jax.tree.unflatten(structure, leaves)
    variables = jax.eval_shape(network.init, base_key(0), *inputs)
    return {path: leaf.shape for path, leaf in flatten_dict(variables["params"]).items()}


def input_channels(
    tensors: Mapping[str, np.ndarray], name: str, default: int, *, axis: int = 1
) -> int:
    """Return the channels that the first convolution of a network takes.

    Args:
      tensors: of the network.
      name: of the kernel, which has 4 axes.
      default: where it is missing or of another shape, which `rename_from` reports.
      axis: of the channels; PyTorch's is 1.
    """
    shape = np.shape(tensors[name]) if name in tensors else ()
    return shape[axis] if len(shape) == 4 and shape[axis] else default


def rename_from(
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[Path, tuple[int, ...]],
    rename: Callable[[Path], str],
    layout: Callable[[Path, np.ndarray], np.ndarray],
    source: str,
    network: str = "U-Net",
    fields: str = "ch, ch_mult, num_res_blocks, attn_resolutions, ...",
    dtype: DTypeLike | None = np.float32,
) -> dict[str, Any]:
    """Build our parameters from another project's tensors.

    Args:
      tensors: theirs, by name.
      shapes: of each of our parameters.
      rename: the path of one of our parameters -> its name there.
      layout: their layout -> ours, for the parameter at a path.
      source: the kind of the tensors, for messages: "diffusers state dict".
      network: the kind of our network, for messages.
      fields: its fields that decide names and shapes, for messages.
      dtype: of the parameters; None: of each tensor as it is.

    Returns:
      The nested dictionary of arrays that `unet.apply({"params": params}, ...)` takes.

    Raises:
      OtherNetwork: a UsageError, a tensor is missing, is left over, or has another shape than the
        network's.
      UsageError: a tensor does not hold weights (`tensor_files.as_weight`).
    """
    names = {path: rename(path) for path in shapes}
    missing = [name for name in names.values() if name not in tensors]
    left_over = sorted(set(tensors) - set(names.values()))
    for problem, keys in (("lacks", missing), ("has, beyond the network's,", left_over)):
        if keys:
            shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise OtherNetwork(
                f"The {source} {problem} {shown}",
                f"give the {network} the fields ({fields}) of the network these weights were "
                "trained in",
            )
    params = {}
    for path, name in names.items():
        value = layout(path, as_weight(name, tensors[name], f"the {source}", dtype))
        if value.shape != shapes[path]:
            raise OtherNetwork(
                f"{name} of the {source} has shape {np.shape(tensors[name])}, read here as "
                f"{value.shape}, where the {network} has {shapes[path]}",
                "give it the fields of the network these weights were trained in",
            )
        params[path] = value
    return unflatten_dict(params)


def rename_to(
    params: Params, rename: Callable[[Path], str], layout: Callable[[Path, np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    """Return our parameters under another project's names, as float32 arrays.

    `layout` converts our layout to theirs.
    """
    flat = flatten_dict(params)
    return {
        rename(path): np.ascontiguousarray(layout(path, np.asarray(value)))
        for path, value in flat.items()
    }
