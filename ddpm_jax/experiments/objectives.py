"""Training objectives built from a config; those of first stages are in `first_stage_objectives`.

Nothing here is needed to load a model.
"""

from ml_collections import ConfigDict

from ddpm_jax.diffusion.chain import ContinuousChain
from ddpm_jax.diffusion.level_draws import LogSigma, level_distribution
from ddpm_jax.diffusion.losses import make_loss
from ddpm_jax.experiments.chains import has_learned_levels
from ddpm_jax.experiments.codec import PixelCodec
from ddpm_jax.experiments.few_steps import halving_levels
from ddpm_jax.experiments.first_stage_objectives import make_first_stage_objective
from ddpm_jax.experiments.first_stages import FirstStageModel
from ddpm_jax.experiments.models import DiffusionModel, Model, NoisyClassifier
from ddpm_jax.models.edm2_unet import EDM2UNet
from ddpm_jax.models.magnitude import with_unit_kernels
from ddpm_jax.training.bound_objective import bound_objective
from ddpm_jax.training.classifier_objective import classifier_objective
from ddpm_jax.training.consistency_objective import Tuning, consistency_objective
from ddpm_jax.training.latent_objective import over_latents
from ddpm_jax.training.mean_flow_objective import Learning, mean_flow_objective
from ddpm_jax.training.objective import Drawing, Objective, diffusion_objective
from ddpm_jax.training.progressive_objective import Halving, progressive_objective


def make_objective(model: Model) -> Objective:
    """Return the objective that the model's config describes.

    Raises:
      UsageError: an unknown name in the config.
    """
    if isinstance(model, FirstStageModel):
        return make_first_stage_objective(model)
    objective = _noisy_image_objective(model)
    if not isinstance(model.codec, PixelCodec):
        objective = over_latents(objective, model.codec.space, flip=model.config.data.flip)

    def loss(params, frozen, *inputs):
        weights = model.weights(params, frozen)
        return objective.loss(weights.params, weights.frozen, *inputs)

    changes = {"loss": loss}
    if isinstance(model.network, EDM2UNet):
        changes["project_params"] = lambda params, state: with_unit_kernels(params)
    return objective._replace(**changes)


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
    drawing = Drawing(config.data.flip, model.conditioning, config.data.augment, c.coupling)
    if has_learned_levels(config):
        return bound_objective(
            apply,
            model.process,
            drawing,
            # the first of T levels is the decoder's
            steps=None if c.bound == "continuous" else c.num_timesteps - 1,
            timestep_sampling=c.timestep_sampling,
            batch_size=config.train.batch_size,
        )
    if config.distill.evaluations and config.distill.method == "progressive":
        clip = model.codec.clipping
        return progressive_objective(apply, model.process, _halving(model), drawing, clip=clip)
    if config.distill.evaluations:
        return consistency_objective(apply, model.process, _tuning(config), drawing)
    if config.mean_flow.evaluations:
        learning = Learning(**{name: config.mean_flow[name] for name in Learning._fields})
        log_sigma = _level_distribution(model)
        return mean_flow_objective(apply, model.process, learning, drawing, log_sigma=log_sigma)
    return diffusion_objective(
        apply,
        model.process,
        make_loss(c.loss, c.weighting, variance=model.process.variance, chain=model.chain),
        drawing,
        timestep_sampling=c.timestep_sampling,
        log_sigma=_level_distribution(model),
        batch_size=config.train.batch_size,
    )


def _halving(model: DiffusionModel) -> Halving:
    config = model.config
    rounds = config.distill.rounds
    return Halving(halving_levels(config, model.chain), rounds, config.train.num_steps // rounds)


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
