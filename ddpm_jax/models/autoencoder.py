"""First stages: an encoder from images to latents and a decoder back.

The networks of latent diffusion (Rombach et al. 2022, appendix G.1), made of the U-Net's blocks
without a time. Autoencoder, VAE and VQ-VAE differ in how the encoder's output is read: as a latent,
as the moments of its distribution, or as a vector to be replaced by a code. That reading is in
`variational`; the blocks and the paths down and up are in `trunk.py`.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.errors import UsageError
from ddpm_jax.models.checks import check_count
from ddpm_jax.models.layers import Conv3x3, GroupNorm, dense
from ddpm_jax.models.trunk import Pyramid, check_pyramid


class Encoder(Pyramid, kw_only=True):
    """The downward path and the middle of a pyramid, then a normalised convolution."""

    out_channels: int

    @nn.compact
    def __call__(self, x: jax.Array, dropout_keys: jax.Array | None = None) -> jax.Array:
        """Map [B, H, W, C] to [B, H / f, W / f, out_channels] float32.

        The factor f is 2**(len(ch_mult) - 1).
        """
        *_, h = self.down(x, None, dropout_keys)
        h = self.middle(h, None, dropout_keys)
        h = nn.swish(GroupNorm(self.norm_eps, groups=self.norm_groups, name="norm_out")(h))
        return Conv3x3(self.out_channels, name="conv_out")(h)


class Decoder(Pyramid, kw_only=True):
    """The middle and the upward path of a pyramid, then a normalised convolution."""

    out_channels: int

    @nn.compact
    def __call__(self, z: jax.Array, dropout_keys: jax.Array | None = None) -> jax.Array:
        """Map [B, H / f, W / f, C] to [B, H, W, out_channels] float32.

        The factor f is 2**(len(ch_mult) - 1).
        """
        _, features, _ = self.levels[-1]
        h = Conv3x3(features, dtype=self.dtype, name="conv_in")(z)
        h = self.middle(h, None, dropout_keys)
        h = self.up(h, None, dropout_keys)
        h = nn.swish(GroupNorm(self.norm_eps, groups=self.norm_groups, name="norm_out")(h))
        return Conv3x3(self.out_channels, name="conv_out")(h)


class Autoencoder(Pyramid):
    """An encoder and a decoder with a 1x1 convolution on either side of the latents.

    The defaults are Stable Diffusion's: 256x256 images to 32x32 latents of 4 channels, attention
    with one head in the middle only. Unlike the U-Net's, the last convolutions do not start at
    zero: identical latents would all be assigned the same code.

    `check_autoencoder` refuses what this class cannot build.
    """

    resolution: int = 256
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    attn_resolutions: tuple[int, ...] = ()
    dropout: float = 0.0
    image_channels: int = 3
    latent_channels: int = 4
    # whether the encoder returns the mean and log variance of a latent, not the latent itself
    moments: bool = True
    num_codes: int = 0  # K, rows of the parameter `codebook` [K, latent_channels]; 0: none
    # of the decoder; twice image_channels where it also predicts a scale for each pixel
    out_channels: int = 3
    # initial value of the parameter `log_scale`, shared by all pixels; None: no such parameter
    shared_log_scale: float | None = None

    def setup(self) -> None:
        fields = {field.name for field in dataclasses.fields(Pyramid)} - {"parent", "name"}
        shared = {name: getattr(self, name) for name in fields}
        encoded = 2 * self.latent_channels if self.moments else self.latent_channels
        self.encoder = Encoder(**shared, out_channels=encoded)
        self.quant = dense(encoded, name="quant", dtype=jnp.float32)
        self.post_quant = dense(self.latent_channels, name="post_quant", dtype=jnp.float32)
        self.decoder = Decoder(**shared, out_channels=self.out_channels)
        if self.num_codes:
            self.codebook = self.param(
                "codebook", _codebook_init, (self.num_codes, self.latent_channels)
            )
        if self.shared_log_scale is not None:
            self.log_scale = self.param(
                "log_scale", nn.initializers.constant(self.shared_log_scale), ()
            )

    @property
    def factor(self) -> int:
        """f: pixels of the image per pixel of the latents, along each axis."""
        return 2 ** (len(self.ch_mult) - 1)

    def encode(self, x: jax.Array, dropout_keys: jax.Array | None = None) -> jax.Array:
        """Apply the encoder.

        Args:
          x: [B, H, W, image_channels] float32; H and W divisible by `factor`.
          dropout_keys: [B] typed keys, one per example, already folded with the step and the
            example's global index; None for no dropout.

        Returns:
          [B, H / f, W / f, latent_channels] float32; with `moments` twice the channels, the means
          first.
        """
        return self.quant(self.encoder(x, dropout_keys))

    def decode(self, z: jax.Array, dropout_keys: jax.Array | None = None) -> jax.Array:
        """Apply the decoder.

        Args:
          z: [B, h, w, latent_channels] float32.
          dropout_keys: as in `encode`.

        Returns:
          [B, f h, f w, out_channels] float32.
        """
        return self.decoder(self.post_quant(z), dropout_keys)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Encode and decode images, without a codebook: only to initialise the parameters.

        Of moments, the means are decoded.
        """
        return self.decode(self.encode(x)[..., : self.latent_channels])


def _codebook_init(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Draw K codes from U(-1/K, 1/K)."""
    return jax.random.uniform(key, shape, jnp.float32, -1 / shape[0], 1 / shape[0])


def check_autoencoder(model: Autoencoder, height: int, width: int) -> None:
    """Check, before anything compiles, that a first stage can run on images of one size.

    Args:
      model: the network, not yet initialised: its fields are all that is read.
      height: of the images, in pixels.
      width: of the images, in pixels.

    Raises:
      UsageError: a field or the size is wrong; the sentence names the value, what was expected and
        what to do.
    """
    for name in ("image_channels", "latent_channels"):
        check_count(name, getattr(model, name))
    check_count("num_codes", model.num_codes, or_none=True)
    if model.num_codes == 1:
        raise UsageError(
            "A codebook of 1 code says nothing of an image: make num_codes 2 or more, or 0 for "
            "none."
        )
    if model.num_codes and model.moments:
        raise UsageError(
            f"A codebook of {model.num_codes} codes replaces vectors, but with moments the encoder "
            "gives distributions: set moments to False, or num_codes to 0."
        )
    channels = model.image_channels
    if model.out_channels not in (channels, 2 * channels):
        raise UsageError(
            f"out_channels is {model.out_channels}: give the {channels} of the image, or "
            f"{2 * channels} where the decoder also predicts a scale for each."
        )
    if model.shared_log_scale is not None:
        if not math.isfinite(model.shared_log_scale):
            raise UsageError(
                f"shared_log_scale is {model.shared_log_scale}: give a finite number, or None for "
                "none."
            )
        if model.out_channels != channels:
            raise UsageError(
                "shared_log_scale is one scale for all pixels, but a decoder of "
                f"{model.out_channels} channels predicts one for each: set it to None, or "
                f"out_channels to {channels}."
            )
    check_pyramid(model, height, width)
