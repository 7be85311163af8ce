"""Config -> the parts of a first stage: its network, what the network's numbers mean, its
objective."""

from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.errors import UsageError, choose
from ddpm_jax.experiments import perceptual
from ddpm_jax.models.autoencoder import Autoencoder, check_autoencoder
from ddpm_jax.training.first_stage_objective import FirstStageOptions, first_stage_objective
from ddpm_jax.training.objective import Objective
from ddpm_jax.variational.first_stage import LOG_SCALE, SCALES, FirstStage
from ddpm_jax.variational.latent_space import LatentSpace
from ddpm_jax.variational.observation import FAMILIES

# fields of config.model: there is no choice and no time
_NOT_OURS = ("name", "scale_shift_norm", "time_embedding")


def make_network(config: ConfigDict, dtype: Any) -> Autoencoder:
    """Builds the network, computing in `dtype`.

    Raises:
      UsageError: a field that cannot work, alone or beside the others.
    """
    stage, size, channels = config.first_stage, config.data.image_size, config.data.channels
    family = choose("family of a decoder", stage.family, FAMILIES)
    choose("scale of a decoder", stage.scale, SCALES)
    if not family.scaled and (stage.scale, stage.log_scale) != ("shared", 0.0):
        raise UsageError(
            f"first_stage.scale is {stage.scale!r} and log_scale {stage.log_scale}, but a "
            f"{stage.family} decoder has no scale: leave them as they are by default."
        )
    least, most = LOG_SCALE
    if not least < stage.log_scale < most:
        raise UsageError(
            f"first_stage.log_scale is {stage.log_scale}: it must be between {least:g} and "
            f"{most:g}, beyond which log scales are clipped."
        )
    fields = {
        name: value for name, value in config.model.to_dict().items() if name not in _NOT_OURS
    }
    network = Autoencoder(
        **fields
        | {
            "dtype": dtype,
            "resolution": size,
            "image_channels": channels,
            "latent_channels": stage.latent_channels,
            "moments": stage.kind == "vae",
            "num_codes": stage.num_codes if stage.kind == "vq" else 0,
            "out_channels": 2 * channels if family.scaled and stage.scale == "pixel" else channels,
            "shared_log_scale": stage.log_scale
            if family.scaled and stage.scale == "shared"
            else None,
        }
    )
    check_autoencoder(network, height=size, width=size)
    perceptual.check(config)
    return network


def make_first_stage(config: ConfigDict, network: Autoencoder) -> FirstStage:
    """What the network's numbers mean."""
    stage = config.first_stage

    def method(function):
        return lambda params, inputs, keys: network.apply(
            {"params": params}, inputs, keys if config.model.dropout else None, method=function
        )

    return FirstStage(
        stage.kind,
        method(Autoencoder.encode),
        method(Autoencoder.decode),
        FAMILIES[stage.family],
        scale=stage.scale,
        log_scale=stage.log_scale,
        num_codes=network.num_codes,
    )


def make_latent_space(
    stage: FirstStage, network: Autoencoder, image_shape: tuple[int, int, int]
) -> LatentSpace:
    """The latents of images of a size that `check_encodes` lets pass."""
    height, width, _ = image_shape
    return LatentSpace(
        stage, (height // network.factor, width // network.factor, network.latent_channels)
    )


def check_encodes(network: Autoencoder, image_shape: tuple[int, int, int], directory: str) -> None:
    """Refuses images that the first stage of `directory` cannot encode; they may be larger or
    smaller than its own.

    Raises:
      UsageError: another number of channels, or a size that is no multiple of its factor.
    """
    size, _, channels = image_shape
    if channels != network.image_channels:
        raise UsageError(
            f"data.channels is {channels}, but the first stage of {directory} encodes images of "
            f"{network.image_channels}: train a first stage on the same data."
        )
    if size % network.factor:
        raise UsageError(
            f"data.image_size is {size}, which the factor {network.factor} of the first stage of "
            f"{directory} does not divide: choose a multiple of {network.factor}."
        )


def make_objective(config: ConfigDict, network: Autoencoder) -> Objective:
    """The objective that the config describes.

    Raises:
      UsageError: an unknown way to learn a codebook.
    """
    options = FirstStageOptions(
        **{name: config.first_stage[name] for name in FirstStageOptions._fields}
    )
    return first_stage_objective(
        make_first_stage(config, network),
        options,
        flip=config.data.flip,
        sharpness=perceptual.make_sharpness(config, network.dtype),
    )
