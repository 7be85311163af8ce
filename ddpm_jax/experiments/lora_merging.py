"""A model with the low-rank updates of a file merged into its networks."""

import dataclasses
import os
from collections.abc import Mapping

from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.interop.lora_files import TEXT, UNET, Update, add_lora
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
    """Return a model with the low-rank updates of a file merged into U-Net and text encoder.

    Args:
      trained: the model.
      file: of the updates, for messages.
      updates: what `read_lora` has read in it.
      scale: further factor of them.

    Raises:
      UsageError: it has no U-Net that reads texts, or the file does not fit.
    """
    network = getattr(trained.model, "network", None)
    if not isinstance(network, TextUNet | TextConditioned):
        raise UsageError(
            f"lora is {file}, but {trained.directory} has no U-Net that reads texts: leave it out."
        )
    weights, learned = trained.weights, trained.model.learns_encoder
    params = {
        UNET: weights.params["network"] if learned else weights.params,
        TEXT: trained.model.text_params(weights),
    }
    unet = network.network if learned else network
    merged = add_lora(file, params, unet, scale=scale, updates=updates)
    if learned:
        weights = weights._replace(params={"network": merged[UNET], "encoder": merged[TEXT]})
    else:
        weights = weights._replace(params=merged[UNET], text=merged[TEXT])
    return dataclasses.replace(trained, weights=weights, sha256=weights_digest(weights))
