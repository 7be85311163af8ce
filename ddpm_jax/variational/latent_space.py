"""The latent space of a frozen first stage, where diffusion takes the place of the prior: z = s
E(x) (Rombach 2022).

What diffuses is the encoder's output times a scale that makes its standard deviation 1, as the
noise has. Training over it is `training.latent_diffusion`; the first stage itself is `first_stage`.
"""

import math
from typing import Any, NamedTuple

import chex
import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.randomness import normal
from ddpm_jax.variational.first_stage import FirstStage
from ddpm_jax.variational.posterior import from_moments, reparameterize


class Frozen(NamedTuple):
    """What no step changes; a pytree."""

    params: Any  # of the first stage
    scale: chex.Array  # s, float32 scalar


class LatentSpace(NamedTuple):
    """Where z lies, as pure functions of the frozen parameters.

    z is of a VAE a draw from its posterior, of an AE what its encoder gives, and of a VQ-VAE that
    too: the decoder looks the codes up, so that what diffuses is continuous (Rombach et al. 2022,
    section 3.1).
    """

    stage: FirstStage
    shape: tuple[int, int, int]  # (h, w, c) of z

    def encoded(self, params: Any, x: chex.Array) -> chex.Array:
        """What the encoder says of images x [B, H, W, C] in [-1, 1]: [B, h, w, c], of a VAE the
        moments [B, h, w, 2 c].

        It is the same each time, and can be kept; `latent` is what is drawn from it.
        """
        return self.stage.encode(params, x, None)

    def latent(
        self, frozen: Frozen, encoded: chex.Array, keys: chex.PRNGKey | None = None
    ) -> chex.Array:
        """z [B, h, w, c] of what `encoded` gave; of a VAE drawn with keys [B], or without any the
        mean."""
        if self.stage.kind != "vae":
            return frozen.scale * encoded
        posterior = from_moments(encoded)
        if keys is None:
            return frozen.scale * posterior.mean
        return frozen.scale * reparameterize(posterior, normal(keys, posterior.mean.shape[1:]))

    def encode(self, frozen: Frozen, x: chex.Array, keys: chex.PRNGKey | None = None) -> chex.Array:
        """z [B, h, w, c] of images x [B, H, W, C] in [-1, 1]; keys as in `latent`."""
        return self.latent(frozen, self.encoded(frozen.params, x), keys)

    def decode(self, frozen: Frozen, z: chex.Array) -> chex.Array:
        """The images that are shown for z [B, h, w, c]: [B, H, W, C] in [-1, 1]."""
        z = self.stage.snapped(frozen.params, z / frozen.scale)
        return self.stage.image(self.stage.decoded(frozen.params, z))


def scale_of(sums: np.ndarray, squares: np.ndarray, size: int) -> float:
    """One over the standard deviation of all numbers of N latents (Rombach et al. 2022, appendix
    G).

    Args:
      sums: [N], of the numbers of each latent.
      squares: [N], of their squares.
      size: numbers in a latent.

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
