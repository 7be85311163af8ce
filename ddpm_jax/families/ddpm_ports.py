"""Checkpoints of the PyTorch ports of DDPM: pesser/pytorch_diffusion and ermongroup/ddim.

The first saves a state dict alone, of weights as trained or averaged, which it does not tell. The
second saves a list: state dict of a `DataParallel`, optimiser, epoch, step and moving average.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.families.ddpm_networks import describe
from ddpm_jax.families.foreign import Foreign, Request
from ddpm_jax.interop.containers import Container
from ddpm_jax.interop.pytorch_ports import port_name, unet_params_from_port, unet_params_to_port
from ddpm_jax.interop.tensor_store import Renamed

FAMILY = "a PyTorch port of DDPM"
PARALLEL = "module."  # before all names in the state dict of a `DataParallel`
STATE, AVERAGE = "0", "4"  # places in the list of the second
# what tells this network from an autoencoder of the same blocks, and from diffusers'
SIGNS = (
    "conv_in.weight",
    "temb.dense.0.weight",
    "down.0.block.0.temb_proj.weight",
    "mid.attn_1.proj_out.weight",
)


def recognise(container: Container, request: Request) -> Foreign | None:
    """Describe a checkpoint of one of the ports; None if it is another's.

    Args:
      container: its state dict is the group "", or the groups are those of the list.
      request: `preset` is a key of `ddpm_networks.RELEASED`.

    Raises:
      UsageError: as `ddpm_networks.describe`.
    """
    found = {
        key: tensors
        for key, group in container.groups.items()
        if all(sign in (tensors := _without_prefix(group)) for sign in SIGNS)
    }
    if not found:
        return None
    weights = _by_kind(found, container)
    network = describe(
        {
            name: _in_our_order(np.shape(value))
            for name, value in next(iter(weights.values())).items()
        },
        port_name,
        request,
        container.path,
    )
    return Foreign(
        family=FAMILY,
        fields=network.fields,
        assumed=network.assumed,
        weights=weights,
        read=unet_params_from_port,
        write=_write,
        unread=tuple(container.unread.values()),
        released_as=network.released_as,
    )


def _by_kind(
    found: Mapping[str, Mapping[str, np.ndarray]], container: Container
) -> dict[str, Mapping[str, np.ndarray]]:
    """Return the weights as trained and their averages, of the groups with such a network.

    Raises:
      UsageError: there are several of a kind.
    """
    weights: dict[str, Mapping[str, np.ndarray]] = {}
    for key, tensors in found.items():
        is_average = key == AVERAGE if STATE in found else "ema" in key.lower()
        kind = "ema" if is_average else "raw"
        if kind in weights:
            raise UsageError(
                f"{container.path} has several networks, under the keys {', '.join(found)}: give a "
                "file of one, or of one and its moving average under a key with 'ema'."
            )
        weights[kind] = tensors
    return weights


def _without_prefix(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    return Renamed(tensors, lambda name: name.removeprefix(PARALLEL))


def _in_our_order(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[out, in, height, width] -> [height, width, in, out]."""
    return (*shape[2:], shape[1], shape[0]) if len(shape) == 4 else shape


def _write(params: Mapping[str, Any], unet: Any) -> dict[str, np.ndarray]:
    del unet  # the name of a tensor does not depend on its fields
    return unet_params_to_port(params)
