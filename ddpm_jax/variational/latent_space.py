"""The latent space of a frozen first stage, in which a diffusion model is the prior.

Diffusion runs on z = s E(x), the output of the encoder times a scale that makes its standard
deviation 1, as that of the noise (Rombach et al. 2022). Training on it is in
`training.latent_objective`, the first stage itself in `first_stage`.
"""

import math
from typing import Any, NamedTuple

import chex
import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.randomness import normal
from ddpm_jax.variational.first_stage import FirstStage
from ddpm_jax.variational.posterior import from_moments, reparameterize
from ddpm_jax.variational.tiles import decode_in_tiles


class Frozen(NamedTuple):
    """Parameters that no training step changes; a pytree."""

    params: Any  # of the first stage
    scale: chex.Array  # s, float32 scalar


class LatentSpace(NamedTuple):
    """The latents z as pure functions of the frozen parameters.

    For a VAE, z is a sample of the posterior; for an AE and a VQ-VAE it is the output of the
    encoder. The codes of a VQ-VAE are looked up in `decode`, so that diffusion is over continuous
    latents (Rombach et al. 2022, section 3.1).
    """

    stage: FirstStage
    shape: tuple[int, int, int]  # (h, w, c) of z

    def encoded(self, params: Any, x: chex.Array) -> chex.Array:
        """Return the encoder's output for images x [B, H, W, C] in [-1, 1]: [B, h, w, c].

        For a VAE these are the moments [B, h, w, 2 c]. It is deterministic and can be cached;
        `latent` samples from it.
        """
        return self.stage.encode(params, x, None)

    def latent(
        self,
        frozen: Frozen,
        encoded: chex.Array,
        keys: chex.PRNGKey | None = None,
        noise: chex.Array | None = None,
    ) -> chex.Array:
        """Return z [B, h, w, c] from the result of `encoded`.

        For a VAE z is sampled with keys [B], or with noise of the shape of z; without both it is
        the mean.
        """
        if self.stage.kind != "vae":
            return frozen.scale * encoded
        posterior = from_moments(encoded)
        if keys is not None:
            noise = normal(keys, posterior.mean.shape[1:])
        z = posterior.mean if noise is None else reparameterize(posterior, noise)
        return frozen.scale * z

    def encode(
        self,
        frozen: Frozen,
        x: chex.Array,
        keys: chex.PRNGKey | None = None,
        noise: chex.Array | None = None,
    ) -> chex.Array:
        """Return z [B, h, w, c] of images x [B, H, W, C] in [-1, 1]; the rest as in `latent`."""
        return self.latent(frozen, self.encoded(frozen.params, x), keys, noise)

    def decode(self, frozen: Frozen, z: chex.Array, tile: int | None = None) -> chex.Array:
        """Return the images of z [B, h, w, c]: [B, H, W, C] in [-1, 1].

        With `tile` they are decoded in tiles of so many latents: `tiles.decode_in_tiles`.
        """
        z = self.stage.nearest_codes(frozen.params, z / frozen.scale)

        def images(z: chex.Array) -> chex.Array:
            return self.stage.image(self.stage.decoded(frozen.params, z))

        return images(z) if tile is None else decode_in_tiles(images, z, tile)


def latent_scale(sums: np.ndarray, squares: np.ndarray, size: int) -> float:
    """Return 1 over the standard deviation of the elements of N latents.

    This is the scale of Rombach et al. (2022), appendix G.

    Args:
      sums: [N], sum over the elements of each latent.
      squares: [N], sum over their squares.
      size: number of elements of a latent.

    Raises:
      UsageError: they are not finite, or do not vary, so that there is nothing to learn: the first
        stage has collapsed.
    """
    mean, square = (float(np.mean(totals, dtype=np.float64)) / size for totals in (sums, squares))
    variance = square - mean**2
    if not math.isfinite(variance):
        raise UsageError(
            "The latents of the first stage are not finite: its weights have diverged."
        )
    if not variance > 1e-10:
        raise UsageError(
            f"The latents of the first stage vary by {math.sqrt(max(variance, 0.0)):.2g} only: it "
            "has learned nothing that diffusion could, so train it longer, or a VAE with a smaller "
            "first_stage.beta."
        )
    return 1 / math.sqrt(variance)
