"""Learning from a critic: the losses of an autoencoder and of the discriminator that tells its
images from photographs.

As in VQGAN (Esser, Rombach and Ommer 2021, section 3.1) and latent diffusion (Rombach et al. 2022,
appendix G), whose discriminator has the hinge loss of Lim and Ye 2017. Logits are of patches: [B,
h, w, 1], above 0 for photographs.
"""

import chex
import jax
import jax.numpy as jnp

LEAST_NORM = 1e-4  # added to the norm that the adaptive weight divides by
MOST = 1e4  # where the adaptive weight is clipped


def discriminator_loss(real: chex.Array, fake: chex.Array) -> chex.Array:
    """½ (mean max(0, 1 - D(x)) + mean max(0, 1 + D(x̂))), means over the patches: logits [B, h, w,
    1] -> [B].

    Its minimum over all functions D is 1 minus the total variation between photographs and
    reconstructions.
    """
    return 0.5 * (_over_patches(jax.nn.relu(1 - real)) + _over_patches(jax.nn.relu(1 + fake)))


def generator_loss(fake: chex.Array) -> chex.Array:
    """-mean D(x̂), over the patches: logits [B, h, w, 1] -> [B]."""
    return -_over_patches(fake)


def adaptive_weight(of_reconstruction: chex.Array, of_generator: chex.Array) -> chex.Array:
    """λ = |∇ L_rec| / (|∇ L_G| + 1e-4), clipped to [0, 1e4] (VQGAN, eq. 7; 1e-4 is their code's,
    the paper has 1e-6).

    Args:
      of_reconstruction: gradient of the mean reconstruction loss by the decoder's last layer, of
        any shape.
      of_generator: likewise of the mean `generator_loss`.

    Returns:
      A scalar: times it, the critic moves the last layer as far as the reconstruction does.
    """
    norms = (
        jnp.sqrt(jnp.sum(jnp.square(gradient))) for gradient in (of_reconstruction, of_generator)
    )
    reconstruction, generator = norms
    return jnp.clip(reconstruction / (generator + LEAST_NORM), 0.0, MOST)


def has_started(step: chex.Array, start: int) -> chex.Array:
    """1.0 from the update after `start` updates on, 0.0 before it: what both players' terms are
    multiplied with.

    A critic of images that are still grey learns nothing of use, and nothing is learned from it.
    """
    return jnp.asarray(step >= start, jnp.float32)


def _over_patches(values: chex.Array) -> chex.Array:
    return jnp.mean(values, axis=(1, 2, 3))
