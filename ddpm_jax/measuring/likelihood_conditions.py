"""The conditions under which images have a likelihood: label, low resolution, first caption."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from ddpm_jax.data.captions import Captions
from ddpm_jax.data.sources import Source
from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation.batches import ImageBatch
from ddpm_jax.experiments.caption_rows import check_captions
from ddpm_jax.experiments.models import DiffusionModel
from ddpm_jax.experiments.texts import encode_texts
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.models.condition import Condition
from ddpm_jax.training.conditioning import make_condition


class Given(NamedTuple):
    """What the conditions of B images are made from, besides the images."""

    label: np.ndarray  # int32 [B], 0 without classes
    context: np.ndarray | None = None  # float32 [B, L, D]; None for a model that reads no texts


def condition_of(model: DiffusionModel) -> Callable[[jax.Array, Given], Condition | None]:
    """Return the function (x_0 on [-1, 1], `Given`) -> the condition of each image; traced."""

    def make(x_0: jax.Array, given: Given) -> Condition | None:
        return make_condition(model.conditioning, x_0, *given)

    return make


def batch_reader(trained: TrainedModel, source: Source) -> Callable[[ImageBatch], Given]:
    """Return the function that makes a batch's `Given`, with each image's first caption encoded.

    Raises:
      UsageError: a model that reads texts, but images without captions.
    """
    captions = check_captions(trained.model, source)
    if captions is None:
        return lambda batch: Given(batch.labels)
    return lambda batch: Given(batch.labels, _encoded(trained, captions, batch.captions))


def _encoded(trained: TrainedModel, captions: Captions, numbers: np.ndarray) -> np.ndarray:
    """Encode each text once: captions int32 [B] by number -> features float32 [B, L, D]."""
    model, (distinct, rows) = trained.model, np.unique(numbers, return_inverse=True)
    texts = [captions.table.texts[number] for number in distinct]
    params = model.text_params(trained.weights)
    return encode_texts(model.encoder, params, trained.tokenizer, texts)[rows]


def check_has_likelihood(model: DiffusionModel) -> None:
    """Refuse a likelihood of a model of few steps.

    Raises:
      UsageError: see above.
    """
    config = getattr(model, "config", None)
    if config is not None and config.mean_flow.evaluations:
        raise UsageError(
            "This model is a mean flow: its samples are made by the mean velocity over a whole "
            "step, which says nothing of the density between, and so gives no bound and no "
            "likelihood of them. Measure a flow (configs/fm_digits.py)."
        )
    if config is not None and config.distill.evaluations:
        raise UsageError(
            "This model was distilled: its output at a level is one image at the end of a path, "
            "not the mean of all that may be there, and so gives no bound and no flow. Measure "
            f"its teacher, {config.init_from}."
        )
