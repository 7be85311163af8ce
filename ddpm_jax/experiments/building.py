"""The model that a config names; errors in a config are found before compilation."""

import jax.numpy as jnp
from ml_collections import ConfigDict

from ddpm_jax.diffusion.losses import make_loss
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.experiments import first_stages
from ddpm_jax.experiments.chains import make_chain
from ddpm_jax.experiments.codec import FrozenFirstStage, make_codec
from ddpm_jax.experiments.config_checks import check_config
from ddpm_jax.experiments.few_steps import own_method
from ddpm_jax.experiments.lora_models import LoraModel
from ddpm_jax.experiments.models import DiffusionModel, Model, NoisyClassifier
from ddpm_jax.experiments.networks import make_classifier, make_network
from ddpm_jax.experiments.text_networks import make_encoder
from ddpm_jax.models.text_conditioned import TextConditioned

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build(config: ConfigDict, first_stage: FrozenFirstStage | None = None) -> Model:
    """Build the model that the config names.

    Args:
      config: every field.
      first_stage: the one that `first_stage.ckpt` names, if any.

    Raises:
      UsageError: any field of the config has a value that cannot work, alone or with the others
        or the first stage.
    """
    check_config(config)
    dtype, size = choose("compute dtype", config.model.dtype, DTYPES), config.data.image_size
    image_shape = (size, size, config.data.channels)
    clip = config.diffusion.clip
    codec = make_codec(image_shape, first_stage, config.first_stage.ckpt, clipping=clip)
    chain = make_chain(config)
    diffusion = config.diffusion
    process = make_process(
        chain,
        diffusion.parameterization,
        diffusion.variance,
        sigma_data=diffusion.sigma_data,
    )
    if not config.distill.evaluations:  # which has a loss of its own
        make_loss(diffusion.loss, diffusion.weighting, variance=process.variance, chain=chain)
    own_method(config, chain)
    if config.objective == "first_stage":
        return first_stages.FirstStageModel(
            config, first_stages.make_network(config, dtype), image_shape
        )
    try:
        if config.objective == "classifier":
            return NoisyClassifier(
                config, make_classifier(config, codec.shape[0], dtype), chain, codec
            )
        network, encoder = make_network(config, codec.shape, dtype), make_encoder(config, dtype)
        if encoder is not None and config.text.kind == "transformer":
            network = TextConditioned(network, encoder)
        kind = LoraModel if config.lora.rank else DiffusionModel
        return kind(config, network, chain, codec, encoder)
    except UsageError as error:
        if first_stage is None:
            raise
        raise UsageError(f"Over latents of {'x'.join(map(str, codec.shape))}: {error}") from error
