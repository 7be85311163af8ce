"""A small model that reads texts, with random weights, and the digits with their captions."""

import jax
import numpy as np
import pytest

from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.config import default_config
from ddpm_jax.experiments.denoising import Weights
from ddpm_jax.experiments.texts import make_tokenizer
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.monitoring.results import weights_digest


def text_config(data_dir):
    config = default_config()
    config.data.name, config.data.captions, config.data.data_dir = "digits", "auto", data_dir
    config.data.image_size, config.data.channels, config.data.flip = 8, 1, False
    config.diffusion.num_timesteps = config.train.sample_steps = 20
    config.model.name = "text_unet"
    config.model.ch, config.model.ch_mult, config.model.num_res_blocks = 32, (1,), 1
    config.model.attn_resolutions, config.model.num_heads = (8,), 2
    config.text.vocab_size, config.text.length = 1000, 16
    config.text.width, config.text.layers, config.text.heads, config.text.hidden = 16, 1, 2, 32
    return config


@pytest.fixture(scope="session")
def reads_texts(data_dir):
    """A text model of the digits; its weights are random, also those that training begins at 0."""
    model = build(text_config(data_dir))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(scale=0.2, size=leaf.shape).astype(np.float32),
        model.params_shapes(),
    )
    weights = Weights(params)
    return TrainedModel(
        model,
        weights,
        step=0,
        average="ema",
        sha256=weights_digest(weights),
        tokenizer=make_tokenizer(model.config),
    )
