"""First stages built from a config: the network, and the meaning of its numbers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ddpm_jax.errors import UsageError, choose
from ddpm_jax.experiments import perceptual
from ddpm_jax.models.autoencoder import Autoencoder, check_autoencoder
from ddpm_jax.models.layers import shape_keys
from ddpm_jax.models.trunk import Pyramid
from ddpm_jax.randomness import base_key
from ddpm_jax.variational.first_stage import LOG_SCALE, SCALES, FirstStage
from ddpm_jax.variational.latent_space import LatentSpace
from ddpm_jax.variational.observation import FAMILIES

# fields of config.model that an autoencoder has: it is a U-Net without time
_FIELDS = {field.name for field in dataclasses.fields(Pyramid)} - {"name", "parent"}


@dataclasses.dataclass(frozen=True)
class FirstStageModel:
    """An autoencoder, and the meaning of its network's numbers."""

    config: ConfigDict
    network: Autoencoder
    image_shape: tuple[int, int, int]

    @property
    def stage(self) -> FirstStage:
        """Return the meaning of the network's numbers, as functions of its parameters."""
        fields, network = self.config.first_stage, self.network

        def method(function):
            return lambda params, inputs, keys: network.apply(
                {"params": params},
                inputs,
                keys if self.config.model.dropout else None,
                method=function,
            )

        return FirstStage(
            fields.kind,
            method(Autoencoder.encode),
            method(Autoencoder.decode),
            FAMILIES[fields.family],
            scale=fields.scale,
            log_scale=fields.log_scale,
            num_codes=network.num_codes,
        )

    def latent_space(self, image_shape: tuple[int, int, int]) -> LatentSpace:
        """Return the space of latents of images whose size the network's factor divides."""
        height, width, _ = image_shape
        factor = self.network.factor
        shape = (height // factor, width // factor, self.network.latent_channels)
        return LatentSpace(self.stage, shape)

    def init_params(self, key: jax.Array | dict[str, jax.Array]) -> Any:
        """Draw the initial parameters, float32; of `layers.shape_keys`, zeros."""
        return self.network.init(key, jnp.zeros((1, *self.image_shape)))["params"]

    def params_shapes(self) -> Any:
        """Return the parameter tree as shapes, nothing computed."""
        return jax.eval_shape(self.init_params, shape_keys(base_key(0)))

    def frozen_shapes(self) -> Any:
        """Return the frozen part as shapes: weights of the perceptual distance, or ()."""
        return perceptual.frozen_shapes(self.config)


def make_network(config: ConfigDict, dtype: Any) -> Autoencoder:
    """Build the network, computing in `dtype`.

    Raises:
      UsageError: a field has a value that cannot work, alone or with the others.
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
    fields = {name: value for name, value in config.model.to_dict().items() if name in _FIELDS}
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
