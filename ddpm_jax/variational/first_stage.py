"""`FirstStage`: image -> latent -> distribution over images, whatever the kind of autoencoder.

It interprets the outputs of the encoder and the decoder. Training, bounds, pictures and latent
diffusion use only this interface, as samplers use only a `Denoiser`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax.numpy as jnp

from ddpm_jax.diffusion.likelihood import mean_over_dims
from ddpm_jax.randomness import normal
from ddpm_jax.variational.observation import Family
from ddpm_jax.variational.posterior import (
    DiagonalGaussian,
    from_moments,
    kl_to_prior,
    reparameterize,
)
from ddpm_jax.variational.quantization import Quantized, quantize, straight_through

KINDS = {
    "ae": "z is what the encoder gives",
    "vae": "z is drawn from the Gaussian whose moments the encoder gives",
    "vq": "z are the codes of a codebook nearest to what the encoder gives",
}
SCALES = {
    "fixed": "the same for everything, a setting",
    "shared": "one number, learned",
    "pixel": "given by the decoder for each number of an image",
}
HALF_RANGE = 127.5  # levels of 0..255 per unit of [-1, 1]
# the log scales of a decoder are clipped to this: on [-1, 1], a level is e^-4.8 wide
LOG_SCALE = (-7.0, 7.0)

# Both: (params, input [B, ...], dropout keys [B] or None) -> [B, ...] float32
Apply = Callable[[Any, chex.Array, chex.PRNGKey | None], chex.Array]


class Decoded(NamedTuple):
    """Parameters of p(x|z), element by element; see `observation.Family`."""

    location: chex.Array  # [B, H, W, C]
    log_scale: chex.Array  # [B, H, W, C] or [1, 1, 1, 1]


class Latent(NamedTuple):
    """The latents of B images."""

    z: chex.Array  # [B, h, w, c], input of the decoder; its gradient reaches the encoder
    # the posterior of a VAE, else the output of the encoder, [B, h, w, c]
    encoded: DiagonalGaussian | chex.Array
    codes: Quantized | None = None  # for a VQ-VAE: differentiable in the codebook


class FirstStage(NamedTuple):
    """An autoencoder, variational or vector-quantised, as pure functions of its parameters."""

    kind: str  # a key of KINDS
    encode: Apply  # image [B, H, W, C] -> [B, h, w, c]; for a VAE [B, h, w, 2 c]
    decode: Apply  # z [B, h, w, c] -> [B, H, W, C], with the scale "pixel" [B, H, W, 2 C]
    family: Family
    scale: str = "fixed"  # a key of SCALES; ignored by a family without a scale
    log_scale: float = 0.0  # for the scale "fixed": natural logarithm, pixels in [-1, 1]
    num_codes: int = 0  # K, for a VQ-VAE

    def latent(
        self,
        params: Any,
        x: chex.Array,
        noise_keys: chex.PRNGKey | None = None,
        dropout_keys: chex.PRNGKey | None = None,
    ) -> Latent:
        """Encode images.

        Args:
          params: of the network; for a VQ-VAE with its `codebook` [K, c].
          x: [B, H, W, C] in [-1, 1].
          noise_keys: [B], for sampling the posterior of a VAE; None for its mean.
          dropout_keys: [B]; None for no dropout.
        """
        out = self.encode(params, x, dropout_keys)
        if self.kind == "vae":
            posterior = from_moments(out)
            latent = Latent(posterior.mean, posterior)
            return latent if noise_keys is None else self.resample(latent, noise_keys)
        if self.kind == "vq":
            codes = quantize(out, params["codebook"])
            return Latent(straight_through(out, codes.codes), out, codes)
        return Latent(out, out)

    def resample(self, latent: Latent, noise_keys: chex.PRNGKey) -> Latent:
        """Return the latent with a new draw of z from keys [B]; unchanged unless it is a VAE's."""
        if self.kind != "vae":
            return latent
        posterior = latent.encoded
        return latent._replace(
            z=reparameterize(posterior, normal(noise_keys, posterior.mean.shape[1:]))
        )

    def nearest_codes(self, params: Any, z: chex.Array) -> chex.Array:
        """Return the codes nearest to latents [..., c]; without a codebook, the latents."""
        return quantize(z, params["codebook"]).codes if self.kind == "vq" else z

    def decoded(
        self, params: Any, z: chex.Array, dropout_keys: chex.PRNGKey | None = None
    ) -> Decoded:
        """Decode latents [B, h, w, c] to the parameters of p(x|z).

        `params` has a scalar `log_scale` if the scale is "shared".
        """
        out = self.decode(params, z, dropout_keys)
        if not self.family.scaled or self.scale == "fixed":
            return Decoded(out, jnp.full((1, 1, 1, 1), self.log_scale))
        if self.scale == "shared":
            return Decoded(out, jnp.clip(params["log_scale"], *LOG_SCALE).reshape(1, 1, 1, 1))
        location, log_scale = jnp.split(out, 2, axis=-1)
        return Decoded(location, jnp.clip(log_scale, *LOG_SCALE))

    def log_likelihood(self, decoded: Decoded, x: chex.Array) -> chex.Array:
        """log p(x|z) in nats, [B]."""
        return jnp.sum(self.family.log_likelihood(x, *decoded), axis=(1, 2, 3))

    def image(self, decoded: Decoded) -> chex.Array:
        """Return the mean of p(x|z) in [-1, 1], the image that is shown: [B, H, W, C].

        It is clipped, since the location of a logistic distribution that is certain of the first or
        the last level lies far outside.
        """
        return jnp.clip(self.family.mean(decoded.location), -1.0, 1.0)

    def squared_error(self, decoded: Decoded, x: chex.Array) -> chex.Array:
        """Return the squared error of the image in levels of 0..255, mean over dimensions: [B]."""
        return mean_over_dims(jnp.square(HALF_RANGE * (self.image(decoded) - x)))

    def kl(self, latent: Latent) -> chex.Array:
        """KL(q(z|x) || p(z)) in nats, [B, h, w, c]; 0 for an AE, which has no prior.

        For a VQ-VAE q is deterministic and p uniform: log K for each code, here divided among its c
        channels.
        """
        if self.kind == "vae":
            return kl_to_prior(latent.encoded)
        if self.kind == "vq":
            return jnp.full(latent.z.shape, math.log(self.num_codes) / latent.z.shape[-1])
        return jnp.zeros(latent.z.shape)
