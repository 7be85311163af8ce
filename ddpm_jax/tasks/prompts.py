"""Prompts as the network reads them."""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddpm_jax.errors import UsageError, say
from ddpm_jax.experiments.texts import encode_texts
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.tasks.sampling_settings import Conditions


class Texts(NamedTuple):
    """The features of prompts, and of what guidance leads away from."""

    context: np.ndarray  # float32 [P, L, D]: image i has row i mod P
    avoided: np.ndarray  # float32 [N, L, D]: likewise

    def of_images(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of images int [n] in both, float32 [n, L, D] each."""
        indices = np.asarray(indices)
        return tuple(rows[indices % len(rows)] for rows in self)


def read_texts(trained: TrainedModel, conditions: Conditions) -> Texts | None:
    """Return the texts that the settings name, encoded; None for a model that reads none.

    Words beyond the length that the encoder takes are cut, with a warning that names them.

    Raises:
      UsageError: a prompt for a model that reads none, or none for one that does.
    """
    given = {"prompt": conditions.prompt, "negative_prompt": conditions.negative_prompt}
    if not trained.model.conditioning.has_text:
        for name in (name for name, texts in given.items() if texts is not None):
            raise UsageError(f"{name}: this model was trained without texts, so leave it out.")
        return None
    if conditions.prompt is None:
        raise UsageError(
            "prompt is missing: this model draws what a text says, as in prompt='red heart'; '' "
            "is any image that it knows."
        )
    return Texts(*(_encoded(trained, texts or ("",)) for texts in given.values()))


def _encoded(trained: TrainedModel, texts: Sequence[str]) -> np.ndarray:
    for warning in trained.tokenizer.cut_warnings(texts):
        say(f"warning: {warning}", file=sys.stderr)
    params = trained.model.text_params(trained.weights)
    return encode_texts(trained.model.encoder, params, trained.tokenizer, texts)
