"""The tokenizer that a config names, and texts as its network reads them."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.errors import UsageError, choose
from ddpm_jax.models.text_encoder import TextEncoder
from ddpm_jax.text.tokenizer import Tokenizer, clip_tokenizer
from ddpm_jax.text.vocabulary import END

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
