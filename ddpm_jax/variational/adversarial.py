"""Adversarial losses of an autoencoder and of the discriminator of its reconstructions.

As in VQGAN (Esser, Rombach and Ommer 2021, section 3.1) and latent diffusion (Rombach et al. 2022,
appendix G), whose discriminator has the hinge loss of Lim and Ye (2017). Logits are of patches: [B,
h, w, 1], positive for real images.
"""

import chex
import jax
import jax.numpy as jnp

NORM_EPSILON = 1e-4  # added to the norm that the adaptive weight divides by
MAX_WEIGHT = 1e4  # the adaptive weight is clipped here


def discriminator_loss(real: chex.Array, fake: chex.Array) -> chex.Array:
    """½ (mean max(0, 1 - D(x)) + mean max(0, 1 + D(x̂))), logits [B, h, w, 1] twice -> [B].

    The means are over the patches. The minimum over all functions D is 1 minus the total variation
    distance between real images and reconstructions.
    """
    return 0.5 * (_patch_mean(jax.nn.relu(1 - real)) + _patch_mean(jax.nn.relu(1 + fake)))


def generator_loss(fake: chex.Array) -> chex.Array:
    """-mean D(x̂) over the patches: logits [B, h, w, 1] -> [B]."""
    return -_patch_mean(fake)


def adaptive_weight(
    reconstruction_gradient: chex.Array, generator_gradient: chex.Array
) -> chex.Array:
    """λ = |∇ L_rec| / (|∇ L_G| + 1e-4), clipped to [0, 1e4] (VQGAN, eq. 7).

    1e-4 is that of the authors' code; the paper has 1e-6.

    Args:
      reconstruction_gradient: gradient of the mean reconstruction loss with respect to the last
        layer of the decoder, of any shape.
      generator_gradient: that of the mean `generator_loss`.

    Returns:
      A scalar; times λ, the adversarial gradient of the last layer is as long as the other one.
    """
    norms = (
        jnp.sqrt(jnp.sum(jnp.square(gradient)))
        for gradient in (reconstruction_gradient, generator_gradient)
    )
    reconstruction, generator = norms
    return jnp.clip(reconstruction / (generator + NORM_EPSILON), 0.0, MAX_WEIGHT)


def has_started(step: chex.Array, start: int) -> chex.Array:
    """Return 1.0 from the update after `start` updates on, 0.0 before: a factor of both losses.

    A discriminator learns nothing useful while the reconstructions are still grey.
    """
    return jnp.asarray(step >= start, jnp.float32)


def _patch_mean(values: chex.Array) -> chex.Array:
    return jnp.mean(values, axis=(1, 2, 3))
