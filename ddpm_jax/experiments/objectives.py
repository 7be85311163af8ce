"""Training objectives built from a config, and the optimisers of two players.

Nothing here is needed to load a model.
"""

import optax
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from ddpm_jax.diffusion.chain import ContinuousChain
from ddpm_jax.diffusion.level_draws import LogSigma, level_distribution
from ddpm_jax.diffusion.losses import make_loss
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.codec import PixelCodec
from ddpm_jax.experiments.first_stages import FirstStageModel
from ddpm_jax.experiments.models import DiffusionModel, Model, NoisyClassifier
from ddpm_jax.experiments.perceptual import make_discriminator, make_distance
from ddpm_jax.models.discriminator import DISCRIMINATOR
from ddpm_jax.training.classifier_objective import classifier_objective
from ddpm_jax.training.consistency_objective import Tuning, consistency_objective
from ddpm_jax.training.first_stage_objective import FirstStageOptions, first_stage_objective
from ddpm_jax.training.latent_objective import over_latents
from ddpm_jax.training.objective import Objective, diffusion_objective
from ddpm_jax.training.optimizer import for_players, make_learning_rate, make_optimizer
from ddpm_jax.training.perceptual_adversarial import PerceptualAdversarial


def make_objective(model: Model) -> Objective:
    """Return the objective that the model's config describes.

    Raises:
      UsageError: an unknown name in the config.
    """
    if isinstance(model, FirstStageModel):
        return _first_stage_objective(model)
    objective = _noisy_image_objective(model)
    if not isinstance(model.codec, PixelCodec):
        objective = over_latents(objective, model.codec.space, flip=model.config.data.flip)

    def loss(params, frozen, *inputs):
        weights = model.weights(params, frozen)
        return objective.loss(weights.params, weights.frozen, *inputs)

    return objective._replace(loss=loss)


def _noisy_image_objective(model: DiffusionModel | NoisyClassifier) -> Objective:
    config, c = model.config, model.config.diffusion

    def apply(params, *inputs):
        *inputs, dropout_keys = inputs
        keys = dropout_keys if config.model.dropout else None
        return model.network.apply({"params": params}, *inputs, dropout_keys=keys)

    if isinstance(model, NoisyClassifier):
        return classifier_objective(
            apply, model.schedule, timestep_sampling=c.timestep_sampling, flip=config.data.flip
        )
    if config.distill.evaluations:
        return consistency_objective(
            apply,
            model.process,
            _tuning(config),
            flip=config.data.flip,
            conditioning=model.conditioning,
            augment_probability=config.data.augment,
            coupling=c.coupling,
        )
    return diffusion_objective(
        apply,
        model.process,
        make_loss(c.loss, c.weighting, variance=model.process.variance, chain=model.chain),
        timestep_sampling=c.timestep_sampling,
        flip=config.data.flip,
        conditioning=model.conditioning,
        log_sigma=_level_distribution(model),
        augment_probability=config.data.augment,
        coupling=c.coupling,
    )


def _tuning(config: ConfigDict) -> Tuning:
    c = config.distill
    return Tuning(
        steps_per_stage=max(1, config.train.num_steps // c.stages),
        num_stages=c.stages,
        log_mean=c.level_mean,
        log_std=c.level_std,
        huber=c.huber,
    )


def _level_distribution(model: DiffusionModel) -> LogSigma | None:
    c = model.config.diffusion
    if not isinstance(model.chain, ContinuousChain):
        return None
    return level_distribution(
        c.levels,
        model.chain,
        log_mean=c.level_mean,
        log_std=c.level_std,
        mode_scale=c.mode_scale,
    )


def _first_stage_objective(model: FirstStageModel) -> Objective:
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
