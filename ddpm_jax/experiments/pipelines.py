"""Stable Diffusion from its files as a model like any other: its config, and its weights.

`interop` reads the files and knows their names, `pipeline_configs` makes a config of ours of the
networks that they describe, and the model is what `building.build` makes of it.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UsageError, choose, say
from ddpm_jax.experiments.building import DTYPES, build
from ddpm_jax.experiments.codec import FrozenFirstStage
from ddpm_jax.experiments.config_checks import check_config
from ddpm_jax.experiments.denoising import Weights
from ddpm_jax.experiments.pipeline_configs import pipeline_config, vae_config
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.interop.autoencoder_kl import autoencoder_params_from_diffusers
from ddpm_jax.interop.clip_text import text_params_from_transformers
from ddpm_jax.interop.pipeline_params import (
    pipeline_networks,
    pipeline_params,
    placed,
)
from ddpm_jax.interop.pipeline_parts import Pipeline
from ddpm_jax.interop.renaming import OtherNetwork
from ddpm_jax.models.text_encoder import TextEncoder
from ddpm_jax.monitoring.results import weights_digest
from ddpm_jax.text.tokenizer import Tokenizer, clip_tokenizer
from ddpm_jax.text.tokenizer_files import read_tokenizer
from ddpm_jax.variational.latent_space import Frozen

DEFAULT_DTYPE = "float32"


def load_pipeline(
    pipeline: Pipeline, *, dtype: str | None = None, raw_weights: bool = False
) -> TrainedModel:
    """Read the weights of Stable Diffusion into a model.

    Args:
      pipeline: its parts, opened.
      dtype: of the parameters and the computation, a key of `DTYPES`; None for float32.
      raw_weights: leave the moving average of the U-Net's weights, where there is one.

    Raises:
      UsageError: a network, a scheduler or weights that cannot be had here.
    """
    networks = pipeline_networks(pipeline)
    tokenizer = _tokenizer(pipeline, networks.text_encoder)
    name = DEFAULT_DTYPE if dtype is None else dtype
    average = pipeline.unet_ema is not None and not raw_weights
    kept = choose("compute dtype", name, DTYPES)
    config = pipeline_config(pipeline, networks, tokenizer, name)
    first_stage_config = vae_config(networks.vae, name)
    check_config(config)
    _say_of_safety_checker(pipeline)
    with _naming(pipeline):
        params = pipeline_params(pipeline, networks, dtype=kept, average=average)
    first_stage = FrozenFirstStage(build(first_stage_config), weights_digest(params.vae))
    frozen = Frozen(params.vae, np.float32(networks.scaling_factor))
    weights = Weights(params.unet, frozen, params.text_encoder)
    sha256 = weights_digest(weights)  # of the arrays on the host, which are let go then
    for part in params:
        placed(part, jnp.asarray)
    return TrainedModel(
        build(config, first_stage),
        weights,
        step=0,
        average="ema" if average else "raw",
        sha256=sha256,
        directory=pipeline.path,
        tokenizer=tokenizer,
        raw_is_chosen=raw_weights,
    )


class TrainedEncoder(NamedTuple):
    """An encoder of texts with its weights."""

    encoder: TextEncoder
    params: Any
    tokenizer: Tokenizer


def load_text_encoder(pipeline: Pipeline) -> TrainedEncoder:
    """Read the text encoder of Stable Diffusion alone, in float32.

    Raises:
      UsageError: a network or weights that cannot be had here.
    """
    encoder = pipeline_networks(pipeline).text_encoder
    with _naming(pipeline):
        params = text_params_from_transformers(pipeline.text_encoder.tensors, encoder)
    return TrainedEncoder(encoder, params, _tokenizer(pipeline, encoder))


def load_vae(pipeline: Pipeline, *, dtype: str | None = None) -> TrainedModel:
    """Read the VAE of Stable Diffusion alone, as a first stage.

    Raises:
      UsageError: a network or weights that cannot be had here.
    """
    vae = pipeline_networks(pipeline).vae
    name = DEFAULT_DTYPE if dtype is None else dtype
    kept = choose("compute dtype", name, DTYPES)
    with _naming(pipeline):
        params = autoencoder_params_from_diffusers(pipeline.vae.tensors, vae, dtype=kept)
    sha256 = weights_digest(params)
    model = build(vae_config(vae, name))
    weights = Weights(placed(params, jnp.asarray))
    return TrainedModel(model, weights, 0, "frozen", sha256, directory=pipeline.path)


@contextlib.contextmanager
def _naming(pipeline: Pipeline) -> Iterator[None]:
    """Say in an error about the weights which files they are of."""
    try:
        yield
    except OtherNetwork as error:
        raise UsageError(
            f"{pipeline.path}: {error.what}: its files are not whole, or not of one model; fetch "
            "them again."
        ) from error
    except UsageError as error:
        raise UsageError(f"{pipeline.path}: {error}") from error


def _say_of_safety_checker(pipeline: Pipeline) -> None:
    if pipeline.has_safety_checker:
        say(
            f"note: {pipeline.path} has a safety checker, which is not run here: filtering what "
            "the model draws is up to you.",
            file=sys.stderr,
        )


def _tokenizer(pipeline: Pipeline, encoder: TextEncoder) -> Tokenizer:
    """Return the tokenizer in the files, or CLIP's own.

    Raises:
      UsageError: it has tokens that the encoder does not know.
    """
    length = encoder.context_length
    if pipeline.tokenizer:
        tokenizer = read_tokenizer(pipeline.tokenizer, length=length)
    else:
        tokenizer = clip_tokenizer(pad=pipeline.pad_token, length=length)
    if tokenizer.vocab_size > encoder.vocab_size:
        raise UsageError(
            f"The tokenizer of {pipeline.path} has {tokenizer.vocab_size} tokens, and its text "
            f"encoder knows {encoder.vocab_size}: they are not of one model."
        )
    return tokenizer
