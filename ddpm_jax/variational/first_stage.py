"""What the numbers of an autoencoding network mean: a `FirstStage`, image -> latent -> distribution
of images.

It is made of the network's two functions in one place, whatever its kind; training, bounds,
pictures and diffusion in the latent space read only this, as samplers read only a `Denoiser`.
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
HALF_RANGE = 127.5  # levels of 0..255 in the unit of [-1, 1]
# where a decoder's log scales are clipped: on [-1, 1], a level is e^-4.8 wide
LOG_SCALE = (-7.0, 7.0)

# Both: (params, input [B, ...], dropout keys [B] or None) -> [B, ...] float32
Apply = Callable[[Any, chex.Array, chex.PRNGKey | None], chex.Array]


class Decoded(NamedTuple):
    """p(x|z), element by element; see `observation.Family`."""

    location: chex.Array  # [B, H, W, C]
    log_scale: chex.Array  # [B, H, W, C] or [1, 1, 1, 1]


class Latent(NamedTuple):
    """What became of B images."""

    z: chex.Array  # [B, h, w, c], for the decoder; the gradient goes to the encoder
    # of a VAE its posterior, else what the encoder gave, [B, h, w, c]
    encoded: DiagonalGaussian | chex.Array
    codes: Quantized | None = None  # of a VQ-VAE: differentiable in the codebook


class FirstStage(NamedTuple):
    """An autoencoder, variational or vector-quantised, as pure functions of its parameters."""

    kind: str  # a key of KINDS
    encode: Apply  # image [B, H, W, C] -> [B, h, w, c], of a VAE [B, h, w, 2 c]
    decode: Apply  # z [B, h, w, c] -> [B, H, W, C], with the scale "pixel" [B, H, W, 2 C]
    family: Family
    scale: str = "fixed"  # a key of SCALES; not read by a family without one
    log_scale: float = 0.0  # of the scale "fixed", in natural logarithms of the unit of [-1, 1]
    num_codes: int = 0  # K, of a VQ-VAE

    def latent(
        self,
        params: Any,
        x: chex.Array,
        noise_keys: chex.PRNGKey | None = None,
        dropout_keys: chex.PRNGKey | None = None,
    ) -> Latent:
        """Encode images.

        Args:
          params: of the network; of a VQ-VAE with its `codebook` [K, c].
          x: [B, H, W, C] in [-1, 1].
          noise_keys: [B], of a VAE's draws from the posterior; None for its mean.
          dropout_keys: [B]; None for no dropout.
        """
        out = self.encode(params, x, dropout_keys)
        if self.kind == "vae":
            posterior = from_moments(out)
            latent = Latent(posterior.mean, posterior)
            return latent if noise_keys is None else self.redrawn(latent, noise_keys)
        if self.kind == "vq":
            codes = quantize(out, params["codebook"])
            return Latent(straight_through(out, codes.codes), out, codes)
        return Latent(out, out)

    def redrawn(self, latent: Latent, noise_keys: chex.PRNGKey) -> Latent:
        """The latent with another draw of z, from keys [B]; of a kind without a distribution, the
        latent as it is."""
        if self.kind != "vae":
            return latent
        posterior = latent.encoded
        return latent._replace(
            z=reparameterize(posterior, normal(noise_keys, posterior.mean.shape[1:]))
        )

    def snapped(self, params: Any, z: chex.Array) -> chex.Array:
        """Any latents [..., c] as the decoder knows them: of a VQ-VAE the nearest codes, of other
        kinds as they are."""
        return quantize(z, params["codebook"]).codes if self.kind == "vq" else z

    def decoded(
        self, params: Any, z: chex.Array, dropout_keys: chex.PRNGKey | None = None
    ) -> Decoded:
        """Decode latents [B, h, w, c]; `params` has `log_scale`, a scalar, if the scale is
        "shared"."""
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
        """The image that is shown, the mean of p(x|z) as far as there are levels: [B, H, W, C] in
        [-1, 1].

        A logistic distribution over levels has its location far outside where it is sure of the
        first or the last one.
        """
        return jnp.clip(self.family.mean(decoded.location), -1.0, 1.0)

    def squared_error(self, decoded: Decoded, x: chex.Array) -> chex.Array:
        """Of the image that is shown, in squared levels of 0..255, mean over its dimensions:
        [B]."""
        return mean_over_dims(jnp.square(HALF_RANGE * (self.image(decoded) - x)))

    def kl(self, latent: Latent) -> chex.Array:
        """KL(q(z|x) || p(z)) in nats, [B, h, w, c]: of an AE, which has no prior, 0.

        Of a VQ-VAE q is certain and p uniform: log K for each code, here shared out over its c
        channels.
        """
        if self.kind == "vae":
            return kl_to_prior(latent.encoded)
        if self.kind == "vq":
            return jnp.full(latent.z.shape, math.log(self.num_codes) / latent.z.shape[-1])
        return jnp.zeros(latent.z.shape)
