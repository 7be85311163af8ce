"""Checkpoints of the original DDPM code (hojonathanho/diffusion): variables of TensorFlow.

One checkpoint holds the weights as trained, their moving averages under the same names with a
suffix, and the state of the optimiser.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.families.ddpm_networks import describe
from ddpm_jax.families.foreign import Foreign, Request
from ddpm_jax.interop.containers import Container
from ddpm_jax.interop.original import (
    unet_params_from_original,
    unet_params_to_original,
    variable_name,
)
from ddpm_jax.interop.tensor_store import Renamed

FAMILY = "the original DDPM code"
AVERAGE = "/ExponentialMovingAverage"
SLOTS = ("/Adam", "/Adam_1")  # of the optimiser: mean and mean square of the gradient
# what tells this network from another in TensorFlow
SIGNS = ("conv_in/W", "temb/dense0/W", "down_0/block_0/temb_proj/W", "mid/attn_1/proj_out/W")


def recognise(container: Container, request: Request) -> Foreign | None:
    """Describe a checkpoint of the original code; None if it is another's.

    Args:
      container: its variables are the group "".
      request: `preset` is a key of `ddpm_networks.RELEASED`.

    Raises:
      UsageError: as `ddpm_networks.describe`.
    """
    variables = container.groups.get("", {})
    scope = _scope(variables)
    if scope is None:
        return None
    inside = [name for name in variables if name.startswith(f"{scope}/")]
    averages = [name for name in inside if name.endswith(AVERAGE)]
    slots = [name for name in inside if name.endswith(SLOTS)]
    raw = sorted({*inside} - {*averages} - {*slots})
    weights: dict[str, Mapping[str, np.ndarray]] = {
        "raw": Renamed(variables, lambda name: name, raw),
        "ema": Renamed(variables, lambda name: name.removesuffix(AVERAGE), averages),
    }
    weights = {kind: tensors for kind, tensors in weights.items() if tensors}
    network = describe(
        {name: np.shape(value) for name, value in next(iter(weights.values())).items()},
        lambda path: f"{scope}/{variable_name(path)}",
        request,
        container.path,
    )
    others = sorted({*variables} - {*inside})
    return Foreign(
        family=FAMILY,
        fields=network.fields,
        assumed=network.assumed,
        weights=weights,
        read=functools.partial(_read, scope),
        write=functools.partial(_write, scope),
        unread=(("the state of Adam",) if slots else ()) + ((", ".join(others),) if others else ()),
        released_as=network.released_as,
    )


def _scope(variables: Mapping[str, Any]) -> str | None:
    """Return what all names of the network begin with, "model"; None without such a network."""
    for name in variables:
        scope = name.removesuffix(AVERAGE).removesuffix(f"/{SIGNS[0]}")
        if scope != name and all(
            f"{scope}/{sign}" in variables or f"{scope}/{sign}{AVERAGE}" in variables
            for sign in SIGNS
        ):
            return scope
    return None


def _read(scope: str, variables: Mapping[str, np.ndarray], unet: Any) -> dict[str, Any]:
    return unet_params_from_original(variables, unet, scope)


def _write(scope: str, params: Mapping[str, Any], unet: Any) -> dict[str, np.ndarray]:
    del unet  # the name of a variable does not depend on its fields
    return unet_params_to_original(params, scope)
