"""Named streams of random numbers. Nothing random is stored: every key follows from the seed and from counters.

    base key = key(seed), of `keys.base_key`
    a step's key = fold_in(base key, step)
    a stream's key = fold_in(step's key, its constant below)
    an example's key = fold_in(stream's key, its global index in the batch)
    the key of the initial weights = fold_in(base key, INIT)
    the key of the draws that the scale of latents is measured on = fold_in(base key, SCALE)

So the draws do not depend on the number of devices or hosts, and a resumed run needs no stored key. A constant never
changes: that would change every run.
"""

from typing import Literal

import chex
import jax

from ddpm_jax.diffusion.timesteps import fold_in_each
from ddpm_jax.keys import base_key

__all__ = ["INIT", "SCALE", "STREAMS", "Stream", "base_key", "example_keys", "init_key", "scale_key", "stream"]

STREAMS = {"t": 1, "eps": 2, "flip": 3, "dropout": 4, "label": 5, "latent": 6}
Stream = Literal["t", "eps", "flip", "dropout", "label", "latent"]
INIT = 0x696E6974  # "init": no step that a run reaches, and none of the constants that sampling folds in
SCALE = 0x7363616C  # "scal": likewise


def init_key(key: chex.PRNGKey) -> chex.PRNGKey:
    """The key that the initial weights are drawn with, from the base key."""
    return jax.random.fold_in(key, INIT)


def scale_key(key: chex.PRNGKey) -> chex.PRNGKey:
    """The key that the latents whose scale is measured are drawn with, from the base key."""
    return jax.random.fold_in(key, SCALE)


def stream(key: chex.PRNGKey, name: Stream) -> chex.PRNGKey:
    """The key of a named stream within a step's key."""
    return jax.random.fold_in(key, STREAMS[name])


def example_keys(key: chex.PRNGKey, name: Stream, index: chex.Array) -> chex.PRNGKey:
    """One key per example of the stream `name`: `index` is int [B], global; returns keys [B]."""
    return fold_in_each(stream(key, name), index)
