"""Networks of diffusers and transformers that were saved in Flax, in their names and layouts.

`diffusion_flax_model.msgpack` and `flax_model.msgpack` have the networks of PyTorch module for
module: `UNet2DConditionModel`, `AutoencoderKL`, `CLIPTextModel`. A module of a list, "resnets.0",
is "resnets_0" there, but for the layers of CLIP; `weight` is `kernel`, `scale` or `embedding`;
convolutions are [height, width, in, out] and linear maps [in, out].
"""

import pathlib
import re

from ddpm_jax.archives import BadArchive
from ddpm_jax.errors import UsageError
from ddpm_jax.interop.flax_msgpack import read_msgpack
from ddpm_jax.interop.tensor_store import Entry, Permuted, TensorStore

LISTS = (  # of modules; "linear_1" is none
    *("down_blocks", "up_blocks", "resnets", "attentions", "transformer_blocks"),
    *("downsamplers", "upsamplers", "to_out", "net"),
)
_IN_LIST = re.compile(rf"({'|'.join(LISTS)})_(\d+)")
_WEIGHTS = {"kernel", "scale", "embedding"}
_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}  # dimensions of a kernel -> order of its axes in PyTorch


def open_flax(path: pathlib.Path) -> TensorStore:
    """Open such a file under the names and in the layouts of PyTorch; nothing is read.

    Raises:
      UsageError: there is no such file, or it is damaged.
    """
    try:
        store = read_msgpack(path).groups[""]
    except BadArchive as error:
        raise UsageError(
            f"{path} is no whole file of Flax ({error}): download it again, or name another."
        ) from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror or error}).") from error
    return TensorStore(
        {torch_name(name): _in_torch_order(name, entry) for name, entry in store.entries.items()}
    )


def torch_name(name: str) -> str:
    """Return PyTorch's name of a parameter: "a_0/conv1/kernel" -> "a.0.conv1.weight"."""
    *modules, leaf = name.split("/")
    names = [".".join(found.groups()) if (found := _IN_LIST.fullmatch(m)) else m for m in modules]
    return ".".join([*names, "weight" if leaf in _WEIGHTS else leaf])


def _in_torch_order(name: str, entry: Entry) -> Entry:
    is_kernel = name.rpartition("/")[2] == "kernel" and len(entry.shape) in _AXES
    return Permuted(entry, _AXES[len(entry.shape)]) if is_kernel else entry
