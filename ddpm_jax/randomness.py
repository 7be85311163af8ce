"""Every random draw follows from a seed and from counters; nothing random is stored.

    base key = key(seed), of `base_key`
    training:
      a step's key = fold_in(base key, step)
      a stream's key = fold_in(step's key, its constant in STREAMS)
      an example's key = fold_in(stream's key, its global index in the batch)
    sampling:
      an image's key = fold_in(fold_in(base key, SAMPLING), its global index)
      its x_T = normal(fold_in(image's key, INITIAL))
      its noise at row t = normal(fold_in(image's key, t)), t = N-1 .. 0 counting down the rows
    everything else: fold_in(base key, its constant below), then an index

A draw thus depends neither on the number of devices or hosts nor on the batch of an image, and a
resumed run needs no stored key. A constant never changes: that would change every run.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ddpm_jax.errors import UsageError
from ddpm_jax.threefry import THREEFRY, folded

# Threefry whatever JAX_DEFAULT_PRNG_IMPL is, and as JAX's other settings of it are by default: a
# seed gives the same images everywhere.
IMPLEMENTATION = "threefry2x32"
# Settings of JAX that change draws, or the arithmetic after them, and their required values.
_REQUIRED_SETTINGS = {"jax_enable_x64": False}

STREAMS = {
    "t": 1,
    "eps": 2,
    "flip": 3,
    "dropout": 4,
    "label": 5,
    "latent": 6,
    "augment": 7,
    "r": 8,
    "apart": 9,
    "decoder": 10,
}
Stream = Literal[
    "t", "eps", "flip", "dropout", "label", "latent", "augment", "r", "apart", "decoder"
]

# Folded into the base key, where training folds its step: four letters each, more than any step.
INIT = 0x696E6974  # "init": the initial weights
SCALE = 0x7363616C  # "scal": the draws on which the scale of latents is measured
SAMPLING = 0x73616D70  # "samp": images
BOUND = 0x626F756E  # "boun": the noise of the variational bound
LIKELIHOOD_ODE = 0x6F64656C  # "odel": dequantization and probes of the probability flow
FIRST_STAGE = 0x66697273  # "firs": dequantization and draws of z in a first stage's bounds
ENCODING = 0x656E636F  # "enco": samples of a posterior when images are encoded
# Folded into the key of the initial weights.
DISCRIMINATOR_INIT = 0x64697363  # "disc": the weights of the discriminator
# Folded into an image's key, where a sampler folds its rows.
INITIAL = 0xFFFFFFFF  # x_T: no table has so many rows
TIMES = 0xFFFFFFFF  # the t of a draw of the bound, whose noise folds in t: likewise
# Folded into the key of one draw of a likelihood.
DEQUANTIZATION, PROBES, LATENT = 0, 1, 1

BASE_KEY_CONSTANTS = (INIT, SCALE, SAMPLING, BOUND, LIKELIHOOD_ODE, FIRST_STAGE, ENCODING)
assert len(set(BASE_KEY_CONSTANTS)) == len(BASE_KEY_CONSTANTS)
assert min(BASE_KEY_CONSTANTS) > 2**30, "training folds its step into the base key"
assert len(set(STREAMS.values())) == len(STREAMS)
assert DISCRIMINATOR_INIT not in BASE_KEY_CONSTANTS


def base_key(seed: int) -> chex.PRNGKey:
    """Return a typed key from a seed, 0 to 2**32 - 1; its draws are those of JAX's key."""
    return jax.random.wrap_key_data(np.array([0, seed], np.uint32), impl=THREEFRY)


def check_settings() -> None:
    """Refuse settings of JAX under which a seed would give different draws.

    Raises:
      UsageError: naming the environment variable of the first such setting.
    """
    for name, wanted in _REQUIRED_SETTINGS.items():
        found = getattr(jax.config, name)
        if found != wanted:
            raise UsageError(
                f"{name.upper()} is {found}, so image i of a seed would not be the one it is "
                "elsewhere, and a run would not resume on its draws: unset it, or set it to "
                f"{wanted}."
            )


def init_key(key: chex.PRNGKey) -> chex.PRNGKey:
    """Return the key of the initial weights, from the base key."""
    return fold_in(key, INIT)


def scale_key(key: chex.PRNGKey) -> chex.PRNGKey:
    """Return the key of the latents whose scale is measured, from the base key."""
    return fold_in(key, SCALE)


def stream(key: chex.PRNGKey, name: Stream) -> chex.PRNGKey:
    """Return the key of a named stream within a step's key."""
    return jax.random.fold_in(key, STREAMS[name])


def fold_in(key: chex.PRNGKey, data: int) -> chex.PRNGKey:
    """Return `jax.random.fold_in(key, data)`; where the key is known, nothing is compiled."""
    known = folded(key, data)
    return jax.random.fold_in(key, data) if known is None else known


def fold_in_each(key: chex.PRNGKey, index: chex.Array) -> chex.PRNGKey:
    """Fold each example's index, int [B], into `key`; return keys [B]."""
    known = folded(key, index)
    if known is not None:
        return known
    # as many keys as indices: so all that a program folds into keys [B] is one kernel
    return jax.vmap(jax.random.fold_in)(jnp.broadcast_to(key, (len(index), *key.shape)), index)


def example_keys(key: chex.PRNGKey, name: Stream, index: chex.Array) -> chex.PRNGKey:
    """Return one key [B] per example of the stream `name`; `index` is global, int [B]."""
    return fold_in_each(stream(key, name), index)


def image_keys(base_key: chex.PRNGKey, index: chex.Array) -> chex.PRNGKey:
    """Return one key [B] per image; `index` is its global index, int [B]."""
    return fold_in_each(fold_in(base_key, SAMPLING), index)


def row_keys(keys: chex.PRNGKey, t: chex.Array | int) -> chex.PRNGKey:
    """Return the keys of images at row `t`, an integer scalar: keys [B] -> keys [B]."""
    t = np.uint32(t) if isinstance(t, int) else t
    return jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(t, len(keys)))


def normal(keys: chex.PRNGKey, shape: tuple[int, ...], *, dtype: DTypeLike = float) -> chex.Array:
    """Draw standard normal noise [B, *shape], one `shape` from each of keys [B].

    Its dtype is float32, or float64 where JAX computes in it and none is given.

    Raises:
      UsageError: float64 is asked for, and JAX does not compute in it.
    """
    if dtype is not float:
        check_precision(dtype, "The noise")
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)


def initial_noise(
    keys: chex.PRNGKey, image_shape: tuple[int, ...], *, dtype: DTypeLike = float
) -> chex.Array:
    """Draw x_T ~ N(0, I) of each image, [B, *image_shape], from `image_keys` [B]."""
    return normal(row_keys(keys, INITIAL), image_shape, dtype=dtype)


def check_precision(dtype: DTypeLike, what: str) -> None:
    """Refuse float64 where JAX would silently compute in float32.

    Raises:
      UsageError: see above; the sentence says how to let JAX compute in float64.
    """
    if np.dtype(dtype) == np.float64 and not jax.config.jax_enable_x64:
        raise UsageError(
            f"{what} is to be float64, but JAX computes in float32 by default: set "
            "JAX_ENABLE_X64=1, or call jax.config.update('jax_enable_x64', True) first."
        )
