"""Captions of a data set as a network is given them in training.

Every distinct caption is tokenised once. An encoder that was trained before also encodes each once,
into memory or, with `text.cache`, into a file that the next run finds.
"""

import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_jax.data.captions import Captions
from ddpm_jax.data.in_memory import captions_of
from ddpm_jax.data.sources import Source
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.models import DiffusionModel
from ddpm_jax.experiments.texts import encode_texts
from ddpm_jax.files import as_path, is_remote, reporting
from ddpm_jax.monitoring.results import weights_digest
from ddpm_jax.text.tokenizer import Tokenizer

_AT_A_TIME = 1024  # captions encoded between writes


def check_captions(model: DiffusionModel, source: Source) -> Captions | None:
    """Return the captions that a model is trained with; None for one that reads no texts.

    Raises:
      UsageError: there are none, but it reads texts.
    """
    if not model.conditioning.has_text:
        return None
    captions = captions_of(source)
    if captions is None:
        raise UsageError(
            "model.name is 'text_unet', which learns from captions, and the data has none: set "
            "data.captions to 'auto', or to the field that holds them."
        )
    return captions


def caption_rows(
    model: DiffusionModel, params: Any, tokenizer: Tokenizer, captions: Captions
) -> np.ndarray:
    """Return what a batch holds of every distinct caption, in the order of the table.

    These are tokens, int32 [M, L], for an encoder that is learned, and otherwise its features,
    float32 [M, L, D]; `params` are those of the latter, and not read for the former.

    Raises:
      UsageError: `text.cache` is in a bucket.
      FailureError: it cannot be written.
    """
    texts = captions.table.texts
    if model.learns_encoder:
        return tokenizer(texts)
    if not model.config.text.cache:
        return encode_texts(model.encoder, params, tokenizer, texts)
    directory = as_path(model.config.text.cache)
    if is_remote(directory):
        raise UsageError(
            f"text.cache is {directory}, but captions are read from a disk at every step: name a "
            "directory of this machine."
        )
    path = directory / f"captions-{_digest(params, tokenizer(texts))}.npy"
    with reporting(path):
        if not path.exists():
            _write(path, model, params, tokenizer, texts)
        return np.load(path, mmap_mode="r", allow_pickle=False)


def with_context(rows: np.ndarray) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return the function that gives a batch its "context" for the numbers of its captions."""

    def finish(batch: dict[str, Any]) -> dict[str, Any]:
        numbers = batch.pop("caption")
        return {**batch, "context": np.asarray(rows[numbers])}

    return finish


def _digest(params: Any, tokens: np.ndarray) -> str:
    return hashlib.sha256(weights_digest(params).encode() + tokens.tobytes()).hexdigest()[:16]


def _write(
    path: pathlib.Path,
    model: DiffusionModel,
    params: Any,
    tokenizer: Tokenizer,
    texts: tuple[str, ...],
) -> None:
    """Write the features of all texts, under another name until they are complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder, unfinished = model.encoder, path.with_suffix(f".{id(path):x}.part")
    shape = (len(texts), tokenizer.length, encoder.width)
    rows = np.lib.format.open_memmap(unfinished, "w+", np.float32, shape)
    for start in range(0, len(texts), _AT_A_TIME):
        part = texts[start : start + _AT_A_TIME]
        rows[start : start + len(part)] = encode_texts(encoder, params, tokenizer, part)
    rows.flush()
    unfinished.rename(path)
