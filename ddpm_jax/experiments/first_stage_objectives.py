"""The objective of a first stage from its config, and the optimisers of two players."""

import optax
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.first_stages import FirstStageModel
from ddpm_jax.experiments.perceptual import make_discriminator, make_distance
from ddpm_jax.models.discriminator import DISCRIMINATOR
from ddpm_jax.training.first_stage_objective import FirstStageOptions, first_stage_objective
from ddpm_jax.training.objective import Objective
from ddpm_jax.training.optimizer import for_players, make_learning_rate, make_optimizer
from ddpm_jax.training.perceptual_adversarial import PerceptualAdversarial


def make_first_stage_objective(model: FirstStageModel) -> Objective:
    """Return the objective that a first stage's config describes."""
    config = model.config
    options = FirstStageOptions(
        **{name: config.first_stage[name] for name in FirstStageOptions._fields}
    )
    terms = _perceptual_adversarial(config, model.network.dtype)
    return first_stage_objective(model.stage, options, flip=config.data.flip, terms=terms)


def _perceptual_adversarial(config: ConfigDict, dtype: DTypeLike) -> PerceptualAdversarial:
    """Return both terms; only the discriminator computes in `dtype`, the distance in float32."""
    discriminator = make_discriminator(config, dtype)
    return PerceptualAdversarial(
        perceptual_weight=config.sharp.perceptual_weight,
        distance=make_distance(),
        adversarial_weight=config.sharp.adversarial_weight,
        discriminate=lambda params, x: discriminator.apply({"params": params}, x),
        start_step=config.sharp.start_step,
    )


def make_players(
    config: ConfigDict, optimizer: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Return the optimiser, with a separate one for the discriminator, if there is one.

    `optimizer` is the first stage's. The discriminator's is Adam, with the same warm-up and decay.

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
