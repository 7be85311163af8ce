"""Parameters that only training uses, in a state beside those of the model.

They are a discriminator's and those of a learned weighting of levels, each a subtree by its name.
"""

from typing import Any

import jax
from ml_collections import ConfigDict

from ddpm_jax.experiments.perceptual import with_discriminator
from ddpm_jax.models.discriminator import without_discriminator
from ddpm_jax.models.uncertainty import with_uncertainty, without_uncertainty


def with_training_params(config: ConfigDict, params: Any, key: jax.Array) -> Any:
    """Add to the parameters of a model those that its config's objective needs besides."""
    params = with_discriminator(config, params, key)
    return with_uncertainty(params) if config.diffusion.weighting == "learned" else params


def without_training_params(params: Any) -> Any:
    """Return the parameters of the model alone."""
    return without_uncertainty(without_discriminator(params))
