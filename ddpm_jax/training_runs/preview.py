"""Conditions and layout of the samples that training draws."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from ddpm_jax.data import pipeline
from ddpm_jax.data.transforms import to_model_range, to_uint8
from ddpm_jax.errors import visible
from ddpm_jax.experiments.caption_rows import check_captions
from ddpm_jax.experiments.datasets import check_classes, load_split
from ddpm_jax.experiments.models import Model
from ddpm_jax.models.condition import Condition
from ddpm_jax.plotting.grids import grid, with_labels
from ddpm_jax.text.tokenizer import Tokenizer
from ddpm_jax.training.conditioning import make_condition


class Preview(NamedTuple):
    """n samples to be drawn."""

    count: int  # n
    condition: Condition | None  # NumPy leaves [n, ...]; None for an unconditional model
    columns: int | None  # of the grid; None: a square
    # uint8 [n, H, W, C], where the samples enlarge low-resolution images of these
    originals: np.ndarray | None
    rows: tuple[str, ...] = ()  # labels of the rows, where every row is a class whose name is known

    def draw(self, samples: np.ndarray) -> np.ndarray:
        """Lay out samples uint8 [n, H, W, C] as uint8 [H', W', C].

        In super-resolution every sample is the middle of three images: its low-resolution image,
        enlarged as the network sees it, the sample, the original.
        """
        if self.originals is None:
            return with_labels(grid(samples, self.columns), rows=self.rows)
        low_res = np.asarray(to_uint8(self.condition.low_res))
        triples = np.stack([low_res, samples, self.originals], axis=1)
        picture = grid(triples.reshape(-1, *samples.shape[1:]), self.columns)
        return with_labels(picture, columns=("low-res", "sample", "original") * (self.columns // 3))


def make_preview(
    model: Model, class_names: Sequence[str] = (), tokenizer: Tokenizer | None = None
) -> Preview:
    """Return the preview of `train.num_samples` samples; a model of texts needs the tokenizer.

    An unconditional model has no conditions. A model that reads texts gets the first held-out
    captions. For a class-conditional one every row is a class, in order, as far as the number of
    samples goes, labelled if the names are known. A super-resolution model gets the first images of
    the held-out split, and their classes.

    Raises:
      UsageError: there is no such split, or its labels are not those of the model.
    """
    count, conditioning = model.config.train.num_samples, model.conditioning
    if conditioning.low_res_factor:
        return _held_out_preview(model)
    if conditioning.has_text:
        return _captioned_preview(model, tokenizer)
    if not conditioning.num_classes:
        return Preview(count, None, None, None)
    per_class = math.ceil(count / conditioning.num_classes)
    condition = Condition(label=np.arange(count, dtype=np.int32) // per_class)
    if per_class == 1:
        return Preview(count, condition, None, None)
    rows = tuple(map(visible, class_names[: math.ceil(count / per_class)]))
    return Preview(count, condition, per_class, None, rows)


def _captioned_preview(model: Model, tokenizer: Tokenizer) -> Preview:
    """Return the preview of the first distinct captions that are held out."""
    config, count = model.config, model.config.train.num_samples
    source = load_split(config.data, config.data.test_split)
    captions = check_captions(model, source)
    texts = dict.fromkeys(captions[i][0] for i in range(len(source)))
    prompts = list(itertools.islice(itertools.cycle(texts), count))
    return Preview(count, Condition(context=tokenizer(prompts)), None, None)


def _held_out_preview(model: Model) -> Preview:
    config = model.config
    split = config.data.test_split
    source = load_split(config.data, split)
    check_classes(source, config, split=split)
    count = min(config.train.num_samples, len(source))
    batch, _ = next(pipeline.eval_batches(source, batch_size=count, num_images=count))
    condition = make_condition(model.conditioning, to_model_range(batch["image"]), batch["label"])
    columns = 3 * math.ceil(math.sqrt(count / 3))
    return Preview(count, jax.tree.map(np.asarray, condition), columns, batch["image"])
