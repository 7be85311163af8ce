"""The networks of a `Pipeline` and their parameters in our layout.

Parts are converted one after the other, and within a part one tensor after the other: beyond the
parameters themselves this needs the memory of one tensor.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.autoencoder_config import autoencoder_from_config
from ddpm_jax.interop.autoencoder_kl import autoencoder_params_from_diffusers
from ddpm_jax.interop.clip_text import text_encoder_from_config, text_params_from_transformers
from ddpm_jax.interop.diffusers_text_unet import text_unet_params_from_diffusers
from ddpm_jax.interop.diffusers_text_unet_config import text_unet_from_config
from ddpm_jax.interop.pipeline_parts import Pipeline
from ddpm_jax.models.autoencoder import Autoencoder, check_autoencoder
from ddpm_jax.models.text_encoder import TextEncoder
from ddpm_jax.models.text_unet import TextUNet, check_text_unet


class Networks(NamedTuple):
    """The networks that the configs of a pipeline describe, without weights."""

    unet: TextUNet
    vae: Autoencoder
    text_encoder: TextEncoder
    scaling_factor: float  # s of z = s E(x)


class PipelineParams(NamedTuple):
    """The parameters of each network, nested."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoder: dict[str, Any]


def pipeline_networks(pipeline: Pipeline) -> Networks:
    """Return the networks of a pipeline; no weights are read.

    Raises:
      UsageError: a config is damaged, or describes a network that cannot be built here, or two
        parts do not fit together.
    """
    unet = text_unet_from_config(pipeline.unet.config)
    text_encoder = text_encoder_from_config(pipeline.text_encoder.config)
    fields, scaling_factor = autoencoder_from_config(pipeline.vae.config)
    vae = Autoencoder(**fields)
    for name, check, network in (
        ("U-Net", check_text_unet, unet),
        ("VAE", check_autoencoder, vae),
    ):
        try:
            check(network, network.resolution, network.resolution)
        except UsageError as error:
            raise UsageError(f"The {name} of {pipeline.path} cannot be built. {error}") from error
    if unet.context_size != text_encoder.width:
        raise UsageError(
            f"The U-Net of {pipeline.path} looks at features of {unet.context_size} numbers, and "
            f"its text encoder gives {text_encoder.width}."
        )
    if unet.out_channels != vae.latent_channels:
        raise UsageError(
            f"The U-Net of {pipeline.path} predicts {unet.out_channels} channels, and the latents "
            f"of its VAE have {vae.latent_channels}."
        )
    if unet.low_res_channels not in (0, 1 + vae.latent_channels):
        raise UsageError(
            f"The U-Net of {pipeline.path} takes {unet.low_res_channels} channels besides the "
            f"latents: 0 are expected, or {1 + vae.latent_channels} for inpainting, a mask and "
            "the latents of the masked picture."
        )
    return Networks(unet, vae, text_encoder, scaling_factor)


def pipeline_params(
    pipeline: Pipeline,
    networks: Networks,
    *,
    dtype: DTypeLike | None = np.float32,
    average: bool = False,
    place: Callable[[np.ndarray], Any] | None = None,
) -> PipelineParams:
    """Read the weights of a pipeline.

    Args:
      pipeline: as it was read.
      networks: `pipeline_networks(pipeline)`.
      dtype: of the parameters; None: of each tensor as it is in the file.
      average: take the moving averages of the U-Net's weights.
      place: what to do with each array in turn, `jax.device_put` say; None: nothing, they are NumPy
        arrays in memory of their own.

    Raises:
      UsageError: a tensor is missing, is left over, has another shape than the network's, is not
        finite in `dtype`, or does not hold weights; there are no averages.
    """
    if average and pipeline.unet_ema is None:
        raise UsageError(f"{pipeline.path} has no moving averages of its U-Net (unet_ema).")
    unet = pipeline.unet_ema if average else pipeline.unet
    # The text encoder and the VAE first: what is read of their files makes room for the U-Net.
    text = text_params_from_transformers(
        pipeline.text_encoder.tensors, networks.text_encoder, dtype=dtype
    )
    vae = autoencoder_params_from_diffusers(pipeline.vae.tensors, networks.vae, dtype=dtype)
    parts = [placed(params, place) for params in (text, vae)]
    params = text_unet_params_from_diffusers(unet.tensors, networks.unet, dtype=dtype)
    return PipelineParams(placed(params, place), parts[1], parts[0])


def placed(params: dict[str, Any], place: Callable[[np.ndarray], Any] | None) -> dict[str, Any]:
    """Return the tree with `place` applied to each array; each is let go before the next."""
    if place is not None:
        for name, value in params.items():
            params[name] = placed(value, place) if isinstance(value, dict) else place(value)
    return params
