"""The objective of a model over the latents of a frozen first stage: that of a model over pixels,
given z for x_0."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ddpm_jax.data.transforms import random_flip, to_model_range
from ddpm_jax.randomness import example_keys
from ddpm_jax.training.objective import GIVEN, Objective
from ddpm_jax.variational.latent_space import Frozen, LatentSpace

# what the encoder said of an image, and of the image mirrored, where a batch brings both
ENCODED = "encoded"


class LatentState(NamedTuple):
    """What the objective remembers: the first stage, which is so in every checkpoint and travels
    with the model."""

    frozen: Frozen | tuple  # () until it is put there
    inner: Any  # of the objective over z


def over_latents(objective: Objective, space: LatentSpace, *, flip: bool) -> Objective:
    """`objective` over z = s E(x), drawn anew from the posterior each time (Rombach et al. 2022,
    section 3.2).

    Args:
      objective: one that takes x_0 from batches that bring it: of diffusion, or of a classifier.
      space: the latents; their frozen parameters are in the state, so the program holds none of
        their numbers.
      flip: mirror each image with probability 1/2, before it is encoded.

    Returns:
      An `Objective` over batches {"image": uint8 [B, H, W, C], ...}, or {"encoded": float32 [B, V,
      h, w, m], ...} of what `LatentSpace.encoded` gave of an image (V = 1), or of it and of it
      mirrored (V = 2); z is the same.
    """

    def latents_of(frozen: Frozen, batch: Any, key: chex.PRNGKey, index: chex.Array) -> chex.Array:
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

    def loss(params: Any, state: LatentState, batch: Any, key: chex.PRNGKey, index: chex.Array):
        z = latents_of(state.frozen, batch, key, index)
        return objective.loss(params, state.inner, {**batch, GIVEN: z}, key, index)

    return Objective(
        init=lambda params: LatentState((), objective.init(params)),
        loss=loss,
        update=lambda state, aux: state._replace(inner=objective.update(state.inner, aux)),
        metrics=objective.metrics,
        impose=lambda params, state: objective.impose(params, state.inner),
    )
