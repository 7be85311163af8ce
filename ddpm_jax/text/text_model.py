"""Texts to the features of a trained text encoder, read from other projects' checkpoints."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.clip_text import text_encoder_from_config, text_params_from_transformers
from ddpm_jax.interop.diffusers_directory import read_json
from ddpm_jax.interop.hub import resolve
from ddpm_jax.interop.pipeline_parts import Part
from ddpm_jax.interop.single_file import read_single_file
from ddpm_jax.interop.weight_files import find_weights
from ddpm_jax.models.text_encoder import TextEncoder, TextFeatures, check_text_encoder
from ddpm_jax.text.tokenizer import Tokenizer, clip_tokenizer
from ddpm_jax.text.tokenizer_files import read_tokenizer

CLIP = "openai/clip-vit-large-patch14"  # on the hub; the encoder of Stable Diffusion 1.x


class EncodedTexts(NamedTuple):
    """What an encoder says of B texts."""

    tokens: np.ndarray  # int32 [B, L]: start, the text, end, padding
    context: jax.Array  # [B, L, D], what a diffusion model reads
    hidden_states: tuple[jax.Array, ...]  # [B, L, D]: embeddings, then each layer's output
    pooled: jax.Array  # [B, D], of the end of the text
    projected: jax.Array | None  # [B, P], comparable with an image's; None: it has no projection
    warnings: tuple[str, ...]  # a sentence for each text that was cut


@dataclasses.dataclass(frozen=True)
class TextModel:
    """A tokenizer and a text encoder with its parameters."""

    tokenizer: Tokenizer
    encoder: TextEncoder
    params: dict[str, Any]

    def __call__(self, texts: Sequence[str]) -> EncodedTexts:
        """Encode texts as one batch.

        Raises:
          UsageError: there are none, or one is not a text.
        """
        tokens = self.tokenizer(texts)
        if not len(tokens):
            raise UsageError("There are no texts to encode: give at least one, which may be ''.")
        features = _features(self.encoder, self.params, tokens)
        return EncodedTexts(tokens, *features, tuple(self.tokenizer.cut_warnings(texts)))


def encode(
    texts: Sequence[str], checkpoint: str | os.PathLike = CLIP, **options: Any
) -> EncodedTexts:
    """Return the features of texts: `load_text_model(checkpoint, **options)(texts)`.

    The encoder is read in each call; whoever has many batches loads it once.

    Raises:
      UsageError: see there.
      FailureError: see there.
    """
    return load_text_model(checkpoint, **options)(texts)


def load_text_model(
    checkpoint: str | os.PathLike = CLIP,
    *,
    dtype: DTypeLike = jnp.float32,
    skip: int = 0,
    clean: str = "none",
) -> TextModel:
    """Read a text encoder and its tokenizer.

    Args:
      checkpoint: a directory in diffusers' layout, of which only text_encoder/ and tokenizer/ are
        read; the directory of a text encoder or of a whole CLIP; a single file of Stable Diffusion;
        or the name of one of the directories on the hub.
      dtype: of the parameters and of the computation.
      skip: layers at the end that the context leaves out ("clip skip").
      clean: as in `Tokenizer`.

    Raises:
      UsageError: there is no text encoder or no tokenizer, a file is damaged, or an option is
        invalid.
      FailureError: the hub cannot be reached.
    """
    path = resolve(checkpoint, folders=("text_encoder",))
    part, tokenizer = _open_file(path, clean) if path.is_file() else _open_folder(path, clean)
    encoder = text_encoder_from_config(part.config).clone(dtype=dtype, skip=skip)
    check_text_encoder(encoder)
    if tokenizer.vocab_size > encoder.vocab_size or tokenizer.length > encoder.context_length:
        raise UsageError(
            f"The tokenizer of {path} makes {tokenizer.length} ids up to {tokenizer.vocab_size - 1}"
            f", and its text encoder reads {encoder.context_length} below {encoder.vocab_size}: "
            "they do not belong together."
        )
    params = text_params_from_transformers(part.tensors, encoder, dtype=dtype)
    return TextModel(tokenizer, encoder, jax.tree.map(jnp.asarray, params))


@functools.partial(jax.jit, static_argnums=0)
def _features(encoder: TextEncoder, params: dict[str, Any], tokens: jax.Array) -> TextFeatures:
    return encoder.apply({"params": params}, tokens)


def _open_folder(path: pathlib.Path, clean: str) -> tuple[Part, Tokenizer]:
    folder = path / "text_encoder" if (path / "text_encoder").is_dir() else path
    if not (folder / "config.json").exists():
        raise UsageError(f"{path} has no text encoder: no text_encoder/config.json or config.json.")
    part = Part(read_json(folder / "config.json"), find_weights(folder))
    beside = folder.parent / "tokenizer"
    return part, read_tokenizer(beside if beside.is_dir() else folder, clean=clean)


def _open_file(path: pathlib.Path, clean: str) -> tuple[Part, Tokenizer]:
    pipeline = read_single_file(path)
    return pipeline.text_encoder, clip_tokenizer(pad=pipeline.pad_token, clean=clean)
