"""Configs of ours for the networks and the scheduler that files of Stable Diffusion describe."""

from ml_collections import ConfigDict

from ddpm_jax.experiments.config import default_config
from ddpm_jax.experiments.scheduler_fields import set_scheduler
from ddpm_jax.experiments.text_networks import set_networks
from ddpm_jax.experiments.texts import PADDINGS
from ddpm_jax.interop.pipeline_params import Networks
from ddpm_jax.interop.pipeline_parts import Pipeline
from ddpm_jax.interop.schedulers import read_scheduler
from ddpm_jax.models.autoencoder import Autoencoder
from ddpm_jax.text.tokenizer import Tokenizer


def pipeline_config(
    pipeline: Pipeline, networks: Networks, tokenizer: Tokenizer, dtype: str
) -> ConfigDict:
    """Return the config whose model has these networks and the noise levels of the scheduler."""
    config = default_config()
    config.data.name, config.data.flip = "folder", False
    config.data.image_size = networks.unet.resolution * networks.vae.factor
    config.data.channels = networks.vae.image_channels
    set_scheduler(config, read_scheduler(pipeline.scheduler))
    set_networks(config, networks.unet, networks.text_encoder)
    config.model.dtype = dtype
    config.text.kind, config.text.ckpt = "clip", str(pipeline.path)
    padding = {token: name for name, token in PADDINGS.items()}
    config.text.padding = padding.get(tokenizer.special.pad, config.text.padding)
    config.first_stage.ckpt = str(pipeline.path)
    config.first_stage.latent_scale = networks.scaling_factor
    return config


def vae_config(vae: Autoencoder, dtype: str) -> ConfigDict:
    config = default_config()
    config.objective = "first_stage"
    config.data.name, config.data.flip = "folder", False
    config.data.image_size, config.data.channels = vae.resolution, vae.image_channels
    of_blocks = ("ch", "ch_mult", "num_res_blocks", "attn_resolutions", "dropout")
    for name in (*of_blocks, "norm_eps", "norm_groups"):
        config.model[name] = getattr(vae, name)
    config.model.dtype = dtype
    config.first_stage.scale = "fixed"
    config.first_stage.latent_channels = vae.latent_channels
    return config
