"""Config -> what makes reconstructions of a first stage sharp: perceptual distance, discriminator,
its optimiser.

The distance's weights come from a file of the user's, once: then they are in the run's checkpoints.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import unflatten_dict
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from ddpm_jax.distributed import hosts
from ddpm_jax.errors import UsageError
from ddpm_jax.interop.lpips import lpips_shapes, read_lpips
from ddpm_jax.models.discriminator import Discriminator, check_discriminator
from ddpm_jax.models.lpips import Lpips, check_lpips
from ddpm_jax.monitoring.results import weights_digest
from ddpm_jax.randomness import DISCRIMINATOR_INIT
from ddpm_jax.training.optimizer import for_players, make_learning_rate, make_optimizer
from ddpm_jax.training.sharpness import DISCRIMINATOR, Sharpness


def check(config: ConfigDict) -> None:
    """Refuses images that are too small, and a discriminator that cannot be built.

    Raises:
      UsageError: with the value, what was expected and what to do.
    """
    size = config.data.image_size
    if config.sharp.perceptual_weight:
        check_lpips(Lpips(), size, size)
    if config.sharp.adversarial_weight:
        check_discriminator(_discriminator(config), size, size)


def make_sharpness(config: ConfigDict, dtype: DTypeLike) -> Sharpness:
    """The terms that the config asks for; the discriminator computes in `dtype`, the distance in
    float32."""
    lpips, discriminator = Lpips(), _discriminator(config, dtype)
    return Sharpness(
        perceptual_weight=config.sharp.perceptual_weight,
        distance=lambda frozen, x, y: lpips.apply({"params": frozen}, x, y),
        adversarial_weight=config.sharp.adversarial_weight,
        discriminate=lambda params, x: discriminator.apply({"params": params}, x),
        start_step=config.sharp.start_step,
    )


def _discriminator(config: ConfigDict, dtype: DTypeLike = jnp.float32) -> Discriminator:
    return Discriminator(config.sharp.discriminator_ch, config.sharp.discriminator_layers, dtype)


def with_discriminator(config: ConfigDict, params: Any, key: jax.Array) -> Any:
    """What is trained: `params`, and beside them those of the discriminator, if the config asks for
    one."""
    if not config.sharp.adversarial_weight:
        return params
    image = jnp.zeros((1, config.data.image_size, config.data.image_size, config.data.channels))
    drawn = _discriminator(config).init(jax.random.fold_in(key, DISCRIMINATOR_INIT), image)[
        "params"
    ]
    return {**params, DISCRIMINATOR: drawn}


def frozen_shapes(config: ConfigDict) -> Any:
    """Return the weights of the distance as shapes; () if the config asks for none."""
    if not config.sharp.perceptual_weight:
        return ()
    shapes = lpips_shapes(Lpips())
    return unflatten_dict(
        {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    )


def read_frozen(config: ConfigDict) -> Any:
    """Read the weights of the distance from the user's file; () if the config asks for none.

    All processes call it together.

    Raises:
      UsageError: no file is named, or as `interop.lpips.read_lpips`, or the processes' files
        differ.
    """
    if not config.sharp.perceptual_weight:
        return ()
    if not config.sharp.perceptual_file:
        raise UsageError(
            "sharp.perceptual_weight is set, but not the file with the weights of the distance: "
            "give "
            '--config.sharp.perceptual_file=FILE (docs/first_stages.md, "Sharp reconstructions", says how to make it), '
            "or --config.sharp.perceptual_weight=0 to train without it."
        )
    weights = read_lpips(config.sharp.perceptual_file, Lpips())
    hosts.check_equal({"what is in sharp.perceptual_file": weights_digest(weights)})
    return weights


def make_players(
    config: ConfigDict, optimizer: optax.GradientTransformation
) -> optax.GradientTransformation:
    """The optimiser of autoencoder and discriminator, each with its own; `optimizer` if there is no
    discriminator.

    The discriminator's is Adam, with the warm-up and the decay of the autoencoder's.

    Raises:
      UsageError: gradients are to be clipped device by device.
    """
    c, o = config.sharp, config.optimizer
    if not c.adversarial_weight:
        return optimizer
    if o.clip_norm and o.clip_scope == "replica":
        raise UsageError(
            "optimizer.clip_scope is 'replica', which clips the gradient of both players by one "
            "norm on each device: with sharp.adversarial_weight set optimizer.clip_scope=average, "
            "which clips each player's by its own, or optimizer.clip_norm=0 for no clipping."
        )
    rate = make_learning_rate(
        c.discriminator_learning_rate,
        warmup_steps=o.warmup_steps,
        decay=o.decay,
        num_steps=config.train.num_steps,
    )
    critic = make_optimizer("adam", rate, b1=c.discriminator_b1, b2=c.discriminator_b2, eps=o.eps)
    return for_players({DISCRIMINATOR: critic}, optimizer, clip_norm=o.clip_norm)
