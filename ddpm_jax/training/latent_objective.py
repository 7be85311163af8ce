"""The objective of a model over the latents of a frozen first stage.

It is that of a model over pixels, with z in place of x_0.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from ddpm_jax.data.transforms import random_flip, to_model_range
from ddpm_jax.randomness import example_keys
from ddpm_jax.training.objective import GIVEN, Objective
from ddpm_jax.variational.latent_space import Frozen, LatentSpace

# the encoder's output for an image, and for the mirrored image if a batch holds both
ENCODED = "encoded"


def over_latents(objective: Objective, space: LatentSpace, *, flip: bool) -> Objective:
    """Return `objective` over z = s E(x), drawn from the posterior in every step.

    See Rombach et al. 2022, section 3.2.

    Args:
      objective: of diffusion or of a classifier; it takes x_0 from the batch.
      space: the latents; `loss` is given their frozen parameters, `Frozen`, so that the program
        holds none of their numbers.
      flip: mirror each image with probability 1/2, before it is encoded.

    Returns:
      An `Objective` over batches {"image": uint8 [B, H, W, C], ...}, or {"encoded": float32 [B, V,
      h, w, m], ...}, the output of `LatentSpace.encoded` for an image (V = 1), or for it and its
      mirror image (V = 2); z is the same.
    """

    def latents(frozen: Frozen, batch: Any, key: chex.PRNGKey, index: chex.Array) -> chex.Array:
        flip_keys = example_keys(key, "flip", index)
        if ENCODED in batch:
            encoded = batch[ENCODED]
            version = (
                jax.vmap(jax.random.bernoulli)(flip_keys) if flip else jnp.zeros(index.shape, bool)
            )
            encoded = jnp.where(version[:, None, None, None], encoded[:, -1], encoded[:, 0])
        else:
            x = to_model_range(batch["image"])
            encoded = space.encoded(frozen.params, random_flip(x, flip_keys) if flip else x)
        return space.latent(frozen, encoded, example_keys(key, "latent", index))

    def loss(
        params: Any, frozen: Frozen, state: Any, batch: Any, key: chex.PRNGKey, index: chex.Array
    ):
        z = latents(frozen, batch, key, index)
        return objective.loss(params, (), state, {**batch, GIVEN: z}, key, index)

    return objective._replace(loss=loss)
