"""The trained encoder of texts that a new run is given by `text.ckpt`, where it has no `init_from`.

Afterwards it is in the run's checkpoints, and its files are not needed any more.
"""

import pathlib
from typing import Any

from ddpm_jax.checkpoints.reader import saved_steps
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.experiments.model_files import is_foreign, open_pipeline
from ddpm_jax.experiments.models import DiffusionModel, Model
from ddpm_jax.experiments.pipelines import load_text_encoder
from ddpm_jax.text.tokenizer import Tokenizer


def needs_encoder(model: Model, workdir: pathlib.Path) -> bool:
    """Return whether a model is to be given a trained encoder: its run has no checkpoint yet."""
    reads = isinstance(model, DiffusionModel) and model.has_trained_encoder
    return reads and not saved_steps(workdir)


def find_text_encoder(model: DiffusionModel) -> tuple[Tokenizer, Any]:
    """Return tokenizer and parameters of the encoder that `text.ckpt` names.

    Raises:
      UsageError: it names none, or another encoder than the config's.
    """
    place = model.config.text.ckpt
    if not place:
        raise UsageError(
            "text.kind is 'clip', an encoder of texts that was trained before, and text.ckpt names "
            "none: set it, or init_from, to a directory or a file of Stable Diffusion."
        )
    try:
        if is_foreign(place):
            encoder, params, tokenizer = load_text_encoder(open_pipeline(place))
        else:
            trained = load_trained(place)
            encoder, params = trained.model.encoder, trained.weights.text
            tokenizer = trained.tokenizer
    except UsageError as error:
        raise UsageError(f"text.ckpt: {error}") from error
    if encoder is None or not params:
        raise UsageError(f"text.ckpt: {place} has no encoder of texts that was trained before.")
    if encoder.clone(dtype=model.encoder.dtype) != model.encoder:
        fields = ("vocab_size", "width", "layers", "heads", "hidden", "activation")
        differing = [
            f"{name} is {getattr(encoder, name)!r} there and {getattr(model.encoder, name)!r} here"
            for name in (*fields, "context_length")
            if getattr(encoder, name) != getattr(model.encoder, name)
        ]
        raise UsageError(
            f"text.ckpt: {place} has another encoder: {(differing or ['a field differs'])[0]}."
        )
    return tokenizer, params
