"""CLIP's image encoder (Radford et al. 2021): a picture in, features comparable with a text's out.

A Vision Transformer: a linear map of patches, one more token for the whole picture, and the blocks
of `clip_layers.py` without a mask. `text_encoder.TextEncoder` with a projection encodes the texts.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ddpm_jax.errors import UsageError, choose
from ddpm_jax.models.checks import check_count, check_precision
from ddpm_jax.models.clip_layers import ACTIVATIONS, hidden_states, project
from ddpm_jax.models.dit import patchify
from ddpm_jax.models.layers import LayerNorm

# Of red, green and blue in 0..1, over the pictures that CLIP was trained on (OpenAI's code).
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class ImageFeatures(NamedTuple):
    """What an image encoder says of a batch of pictures, all in its `dtype`."""

    last_state: jax.Array  # [B, 1 + patches, D]: the last layer's output, not normalised
    pooled: jax.Array  # [B, D]: the vector of the whole picture, normalised
    projected: jax.Array | None = None  # [B, P]: its projection, comparable with a text's


class ImageEncoder(nn.Module):
    """CLIP's image encoder; the defaults are ViT-L/14's.

    `check_image_encoder` refuses what this class cannot build.
    """

    image_size: int = 224  # height and width of a picture
    patch_size: int = 14  # a divisor of image_size
    width: int = 1024  # D, features of a patch
    layers: int = 24
    heads: int = 16  # a divisor of width
    hidden: int = 4096  # width of the MLP of a layer
    activation: str = "quick_gelu"  # a key of clip_layers.ACTIVATIONS
    projection: int = 768  # P, features that text and picture share; 0: no projection
    channels: int = 3
    norm_eps: float = 1e-5
    # of the computation; parameters, normalisation statistics and softmax are float32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> ImageFeatures:
        """Encode pictures.

        Args:
          x: float [B, image_size, image_size, channels], of `normalized`.

        Raises:
          UsageError: they have another size.
        """
        size, p, dtype = self.image_size, self.patch_size, self.dtype
        if x.shape[1:] != (size, size, self.channels):
            raise UsageError(
                f"The pictures are {'x'.join(map(str, x.shape[1:]))}, and this encoder reads "
                f"{size}x{size}x{self.channels}: resize them."
            )
        new = nn.initializers.normal(self.width**-0.5)
        whole = self.param("class_embedding", new, (self.width,), jnp.float32)
        positions = self.param(
            "position_embedding", new, ((size // p) ** 2 + 1, self.width), jnp.float32
        )
        patches = nn.Dense(
            self.width, use_bias=False, kernel_init=new, dtype=dtype, name="patch_embedding"
        )(patchify(x, p))
        whole = jnp.broadcast_to(whole, (len(x), 1, self.width)).astype(dtype)
        h = jnp.concatenate([whole, patches], axis=1) + positions[None].astype(dtype)
        h = LayerNorm(self.norm_eps, dtype, name="norm_in")(h)
        h = hidden_states(h, self, causal=False)[-1]
        pooled = LayerNorm(self.norm_eps, dtype, name="norm_out")(h[:, 0])
        return ImageFeatures(h, pooled, project(pooled, self, "visual_projection"))


OPENCLIP_H = ImageEncoder(  # ViT-H/14, whose text encoder Stable Diffusion 2 has
    width=1280, layers=32, heads=16, hidden=5120, activation="gelu", projection=1024
)


def check_image_encoder(encoder: ImageEncoder) -> None:
    """Check the fields of an encoder before anything compiles.

    Raises:
      UsageError: a field is wrong; the sentence names the value and what was expected.
    """
    for name in ("image_size", "patch_size", "width", "layers", "heads", "hidden", "channels"):
        check_count(name, getattr(encoder, name))
    check_count("projection", encoder.projection, or_none=True)
    check_precision(encoder)
    choose("activation", encoder.activation, ACTIVATIONS)
    for part, whole in (("heads", "width"), ("patch_size", "image_size")):
        divisor, number = getattr(encoder, part), getattr(encoder, whole)
        if number % divisor:
            raise UsageError(
                f"{part} {divisor} does not divide {whole} {number}: choose a divisor of {number}."
            )


def normalized(images: jax.Array, size: int) -> jax.Array:
    """Return what CLIP is given of pictures: resized, cut to a square, of mean 0 and variance 1.

    Args:
      images: [B, H, W, 3] in 0..1.
      size: of the encoder's pictures; the shorter side becomes that long (bicubic), then the middle
        is kept.

    Returns:
      float32 [B, size, size, 3].
    """
    batch, height, width, channels = images.shape
    shorter = min(height, width)
    H, W = (size * side // shorter for side in (height, width))
    x = images.astype(jnp.float32)
    # one axis after the other, each in 8 bits, as the pictures of CLIP's training were made
    for shape in ((batch, height, W, channels), (batch, H, W, channels)):
        x = jax.image.resize(x, shape, "cubic", antialias=True)
        x = jnp.round(255.0 * x.clip(0.0, 1.0)) / 255.0
    top, left = (H - size) // 2, (W - size) // 2
    mean, std = (jnp.array(values)[None, None, None] for values in (MEAN, STD))
    return (x[:, top : top + size, left : left + size] - mean) / std
