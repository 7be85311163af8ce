"""Networks of a first stage's perceptual and adversarial terms, built from a config.

The weights of the perceptual distance are read from the user's file once; from then on they are in
the run's checkpoints.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from ddpm_jax.distributed import hosts
from ddpm_jax.errors import UsageError
from ddpm_jax.models.discriminator import DISCRIMINATOR, Discriminator, check_discriminator
from ddpm_jax.models.lpips import Lpips, check_lpips
from ddpm_jax.monitoring.results import weights_digest
from ddpm_jax.randomness import DISCRIMINATOR_INIT


def check(config: ConfigDict) -> None:
    """Refuse images that are too small, and a discriminator that cannot be built.

    Raises:
      UsageError: with the value, what was expected and what to do.
    """
    size = config.data.image_size
    if config.sharp.perceptual_weight:
        check_lpips(Lpips(), size, size)
    if config.sharp.adversarial_weight:
        check_discriminator(make_discriminator(config), size, size)


def make_discriminator(config: ConfigDict, dtype: DTypeLike = jnp.float32) -> Discriminator:
    """Build the discriminator, computing in `dtype`."""
    return Discriminator(config.sharp.discriminator_ch, config.sharp.discriminator_layers, dtype)


def with_discriminator(config: ConfigDict, params: Any, key: jax.Array) -> Any:
    """Add the parameters of a discriminator to `params`, if the config asks for one."""
    if not config.sharp.adversarial_weight:
        return params
    image = jnp.zeros((1, config.data.image_size, config.data.image_size, config.data.channels))
    drawn = make_discriminator(config).init(jax.random.fold_in(key, DISCRIMINATOR_INIT), image)[
        "params"
    ]
    return {**params, DISCRIMINATOR: drawn}


def make_distance() -> Callable[[Any, jax.Array, jax.Array], jax.Array]:
    """Return (weights, x, y [B, H, W, C]) -> the perceptual distance [B], computed in float32."""
    lpips = Lpips()
    return lambda frozen, x, y: lpips.apply({"params": frozen}, x, y)


def frozen_shapes(config: ConfigDict) -> Any:
    """Return the weights of the distance as shapes; () if the config asks for none."""
    if not config.sharp.perceptual_weight:
        return ()
    from ddpm_jax.interop.lpips_weights import lpips_shapes

    shapes = lpips_shapes(Lpips())
    return unflatten_dict(
        {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    )


def read_frozen(config: ConfigDict) -> Any:
    """Read the weights of the distance from the user's file; () if the config asks for none.

    All processes call it together.

    Raises:
      UsageError: no file is named; as `interop.lpips_weights.read_lpips`; or the processes have
        different files.
    """
    if not config.sharp.perceptual_weight:
        return ()
    if not config.sharp.perceptual_file:
        raise UsageError(
            "sharp.perceptual_weight is set, but not the file with the weights of the distance: "
            'give --config.sharp.perceptual_file=FILE (docs/first_stages.md, "Sharp '
            'reconstructions", says how to make it), or '
            "--config.sharp.perceptual_weight=0 to train without it."
        )
    from ddpm_jax.interop.lpips_weights import read_lpips

    weights = read_lpips(config.sharp.perceptual_file, Lpips())
    hosts.check_equal({"what is in sharp.perceptual_file": weights_digest(weights)})
    return weights
