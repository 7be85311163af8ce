"""Codecs between images and what a model diffuses: pixels, or latents of a frozen first stage.

Both codecs have the same members, so that no caller depends on which of them it has.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from ddpm_jax.data.transforms import to_model_range, to_uint8
from ddpm_jax.distributed.pmap import in_parts
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.first_stages import FirstStageModel
from ddpm_jax.variational.latent_space import Frozen, LatentSpace

# Latents that a device decodes at a time, and pixels of these images: features at full size take
# several kB a pixel.
DECODED, PIXELS = 8, 512 * 512


@dataclasses.dataclass(frozen=True)
class PixelCodec:
    """The images themselves, scaled to [-1, 1]."""

    image_shape: tuple[int, int, int]
    clipping: str = "static"  # what is done by default to an x_0 outside [-1, 1]
    is_exact = True  # decoding an encoded image gives it back
    unit, half_range = "grey levels", 127.5  # of errors in x_0, and how many of it make a 1
    first_stage = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (H, W, C) of x_0."""
        return self.image_shape

    def encode(self, frozen: Any, images: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        """Map images uint8 [B, H, W, C] to x_0 in [-1, 1]; `noise` is not read."""
        return to_model_range(images)

    def decode(self, frozen: Any, x: jax.Array) -> jax.Array:
        """Map x_0, or an x_t, to images uint8 [B, H, W, C]."""
        return to_uint8(x)

    def frozen_shapes(self) -> Any:
        """Return the frozen part of a checkpoint as shapes: none."""
        return ()

    def describe(self, frozen: Any) -> str:
        """Return what is diffused, in words."""
        return "pixels"


@dataclasses.dataclass(frozen=True)
class FrozenFirstStage:
    """A trained first stage whose latents another model diffuses."""

    model: FirstStageModel
    sha256: str  # of its parameters: `results.weights_digest`


@dataclasses.dataclass(frozen=True)
class LatentCodec:
    """The means of the latents of a frozen first stage, scaled to standard deviation 1."""

    image_shape: tuple[int, int, int]
    first_stage: FrozenFirstStage
    tile: int | None = None  # pixels a side of what is decoded at a time; None: whole images
    clipping = "none"  # latents have no range
    is_exact = False
    unit, half_range = "of latents", 1.0

    @property
    def space(self) -> LatentSpace:
        """Return the space of the latents."""
        return self.first_stage.model.latent_space(self.image_shape)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (h, w, c) of a latent."""
        return self.space.shape

    def encode(
        self, frozen: Frozen, images: jax.Array, noise: jax.Array | None = None
    ) -> jax.Array:
        """Map images uint8 [B, H, W, C] to the means of their latents [B, h, w, c].

        With noise of that shape, standard normal, they are samples of the posterior.
        """
        return self.space.encode(frozen, to_model_range(images), noise=noise)

    def decode(self, frozen: Frozen, x: jax.Array) -> jax.Array:
        """Map latents to images uint8 [B, H, W, C], `DECODED` or fewer at a time."""
        height, width = (min(side, self.tile or side) for side in self.image_shape[:2])
        size = max(1, min(DECODED, PIXELS // (height * width)))
        tile = self.tile and self.tile // self.first_stage.model.network.factor
        return in_parts(lambda z: to_uint8(self.space.decode(frozen, z, tile)), x, size=size)

    def frozen_shapes(self) -> Frozen:
        """Return the frozen part of a checkpoint as shapes: first stage and scale."""
        scale = jax.ShapeDtypeStruct((), np.float32)
        return Frozen(self.first_stage.model.params_shapes(), scale)

    def describe(self, frozen: Frozen) -> str:
        """Return what is diffused, in words."""
        scale = float(np.asarray(frozen.scale))
        return f"latents of the first stage {self.first_stage.sha256[:12]} times {scale:.3g}"


Codec = PixelCodec | LatentCodec


def make_codec(
    image_shape: tuple[int, int, int],
    first_stage: FrozenFirstStage | None,
    directory: str,
    *,
    clipping: str = "static",
) -> Codec:
    """Return the codec of a model over pixels, or over the latents of `first_stage`.

    Args:
      image_shape: (H, W, C) of the images, H = W.
      first_stage: None for pixels.
      directory: of the first stage, for the message.
      clipping: of a predicted x_0, over pixels.

    Raises:
      UsageError: images that the first stage cannot encode: of another number of channels, or of a
        size that is no multiple of its factor. They may be larger or smaller than its own.
        Latents, which have no range, are to be clipped.
    """
    if first_stage is None:
        return PixelCodec(image_shape, clipping)
    if clipping != "static":
        raise UsageError(
            f"diffusion.clip is {clipping!r}, but the x_0 of this model is a latent, which has no "
            "range: set it back to 'static', which is for pixels alone."
        )
    network, (size, _, channels) = first_stage.model.network, image_shape
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
    return LatentCodec(image_shape, first_stage)
