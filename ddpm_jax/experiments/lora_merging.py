"""A model with the low-rank updates of a file merged into its network."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.interop.lora_files import Update, add_lora
from ddpm_jax.models.text_conditioned import TextConditioned
from ddpm_jax.models.text_unet import TextUNet
from ddpm_jax.monitoring.results import weights_digest


def with_lora(
    trained: TrainedModel,
    file: str | os.PathLike,
    updates: Mapping[str, Update],
    *,
    scale: float = 1.0,
) -> TrainedModel:
    """Return a model with the low-rank updates of a file merged into its U-Net.

    Args:
      trained: the model.
      file: of the updates, for messages.
      updates: what `read_lora` has read in it.
      scale: further factor of them.

    Raises:
      UsageError: it has no U-Net that reads texts, or the file does not fit.
    """
    network, params = getattr(trained.model, "network", None), trained.params
    how: dict[str, Any] = {"scale": scale, "updates": updates}
    if isinstance(network, TextUNet):
        params = add_lora(file, params, network, **how)
    elif isinstance(network, TextConditioned):
        params = {
            **params,
            "network": add_lora(file, params["network"], network.network, **how),
        }
    else:
        raise UsageError(
            f"lora is {file}, but {trained.directory} has no U-Net that reads texts: leave it out."
        )
    weights = trained.weights._replace(params=params)
    return dataclasses.replace(trained, weights=weights, sha256=weights_digest(weights))
