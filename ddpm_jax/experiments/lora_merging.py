"""A model with the low-rank updates of a file merged into its network."""

import dataclasses
import os

from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.interop.lora_files import add_lora
from ddpm_jax.models.text_conditioned import TextConditioned
from ddpm_jax.models.text_unet import TextUNet
from ddpm_jax.monitoring.results import weights_digest


def with_lora(
    trained: TrainedModel, file: str | os.PathLike, *, scale: float = 1.0
) -> TrainedModel:
    """Return a model with the low-rank updates of a file merged into its U-Net.

    Raises:
      UsageError: it has no U-Net that reads texts, or the file does not fit.
    """
    network, params = getattr(trained.model, "network", None), trained.params
    if isinstance(network, TextUNet):
        params = add_lora(file, params, network, scale=scale)
    elif isinstance(network, TextConditioned):
        params = {
            **params,
            "network": add_lora(file, params["network"], network.network, scale=scale),
        }
    else:
        raise UsageError(
            f"lora is {file}, but {trained.directory} has no U-Net that reads texts: leave it out."
        )
    weights = trained.weights._replace(params=params)
    return dataclasses.replace(trained, weights=weights, sha256=weights_digest(weights))
