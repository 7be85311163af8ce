"""The random numbers of sampling: every image has a key of its own, which follows from the seed and its index alone.

    base key = key(seed), of `keys.base_key`
    an image's key = fold_in(fold_in(base key, SAMPLING), its global index)
    its x_T = normal(fold_in(image's key, INITIAL))
    its noise at row t = normal(fold_in(image's key, t)), t = N-1 .. 0 counting down the rows of the table

So image i depends on (seed, i): not on the batch it is made in, not on the devices, not on the images before it; and
its x_T not even on the sampler or the number of steps. A constant never changes: that would change every sample.
"""

import chex
import jax

from ddpm_jax.diffusion.timesteps import fold_in_each

# Training folds its step number into the same base key, so this must be no step that any run reaches.
SAMPLING = 0x73616D70  # "samp"
INITIAL = 0xFFFFFFFF  # no table has so many rows


def image_keys(base_key: chex.PRNGKey, index: chex.Array) -> chex.PRNGKey:
    """One key per image: `index` is its global index, int [B]; returns keys [B]."""
    return fold_in_each(jax.random.fold_in(base_key, SAMPLING), index)


def row_keys(keys: chex.PRNGKey, t: chex.Array) -> chex.PRNGKey:
    """The images' keys at row `t`, an integer scalar; keys [B] -> keys [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, t)


def normal(keys: chex.PRNGKey, shape: tuple[int, ...]) -> chex.Array:
    """Standard normal noise, float32 [B, *shape], one independent draw of `shape` from each of keys [B]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def initial_noise(keys: chex.PRNGKey, image_shape: tuple[int, ...]) -> chex.Array:
    """x_T ~ N(0, I) of each image, float32 [B, *image_shape]; `keys` [B] are those of `image_keys`."""
    return normal(row_keys(keys, INITIAL), image_shape)
