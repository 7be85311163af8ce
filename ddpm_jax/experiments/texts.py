"""The tokenizer that a config names, and texts as its network reads them."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.errors import UsageError, choose
from ddpm_jax.files import as_path, reporting
from ddpm_jax.models.text_encoder import TextEncoder
from ddpm_jax.text.tokenizer import Tokenizer, clip_tokenizer
from ddpm_jax.text.tokenizer_files import read_tokenizer, write_tokenizer
from ddpm_jax.text.vocabulary import END

TOKENIZER = "tokenizer"  # folder of a run whose tokenizer its config does not name
PADDINGS = {"end": END, "zero": "!"}  # the token after the end of a text
AT_A_TIME = 16  # texts that a device encodes
_WITHOUT_MERGES = 514  # tokens of a vocabulary: bytes in a word and at its end, start and end


def make_tokenizer(config: ConfigDict) -> Tokenizer | None:
    """Return the tokenizer of CLIP's own vocabulary, or of its first `text.vocab_size` tokens.

    None for a network that reads no texts.

    Raises:
      UsageError: a vocabulary smaller or larger than there are tokens.
    """
    if config.model.name != "text_unet":
        return None
    text = config.text
    pad = choose("padding of texts", text.padding, PADDINGS)
    try:
        return clip_tokenizer(text.vocab_size - _WITHOUT_MERGES, pad=pad, length=text.length)
    except UsageError as error:
        raise UsageError(f"text.vocab_size is {text.vocab_size}: {error}") from error


def find_tokenizer(config: ConfigDict, workdir: str | os.PathLike) -> Tokenizer | None:
    """Return the tokenizer that a run keeps in its directory, or that of `make_tokenizer`.

    Raises:
      UsageError: its files are damaged, or as `make_tokenizer`.
    """
    folder = as_path(workdir) / TOKENIZER
    if config.model.name == "text_unet" and (folder / "merges.txt").exists():
        return read_tokenizer(folder, length=config.text.length)
    return make_tokenizer(config)


def keep_tokenizer(
    tokenizer: Tokenizer | None, config: ConfigDict, workdir: str | os.PathLike
) -> None:
    """Write a tokenizer where `find_tokenizer` finds it, unless the config names the same one.

    Raises:
      FailureError: it cannot be written.
    """
    if tokenizer is None or _is_same(tokenizer, make_tokenizer(config)):
        return
    folder = as_path(workdir) / TOKENIZER
    with reporting(folder):
        write_tokenizer(tokenizer, folder)


def _is_same(one: Tokenizer, other: Tokenizer) -> bool:
    names = ("merges", "vocabulary", "special", "length", "clean")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def encode_texts(
    encoder: TextEncoder, params: Any, tokenizer: Tokenizer, texts: Sequence[str]
) -> np.ndarray:
    """Return the features of texts, float32 [n, L, D]: the context of a network."""
    tokens = tokenizer(texts)
    parts = (tokens[i : i + AT_A_TIME] for i in range(0, len(tokens), AT_A_TIME))
    encoded = [_features(encoder, params, part) for part in parts]
    return np.concatenate([np.asarray(part, np.float32) for part in encoded])


@functools.partial(jax.jit, static_argnums=0)
def _features(encoder: TextEncoder, params: Any, tokens: jax.Array) -> jax.Array:
    return encoder.apply({"params": params}, tokens).context
