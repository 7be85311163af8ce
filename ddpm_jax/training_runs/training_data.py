"""The data of a training run: its split, its batches, and whether the files are still the same."""

import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from ddpm_jax.data import listing, pipeline
from ddpm_jax.data.dataset_info import dataset_info, holds_out
from ddpm_jax.data.sources import Source
from ddpm_jax.distributed import hosts
from ddpm_jax.distributed.pmap import Parallelism
from ddpm_jax.experiments.caption_rows import caption_rows, check_captions, with_context
from ddpm_jax.experiments.datasets import check_classes, load_split
from ddpm_jax.experiments.latents import kept_latents
from ddpm_jax.experiments.models import DiffusionModel, Model
from ddpm_jax.experiments.run_settings import frozen_first_stage
from ddpm_jax.text.tokenizer import Tokenizer
from ddpm_jax.training.state import TrainState
from ddpm_jax.training_runs.reports import warn

BAD_IMAGES = "bad_images.txt"  # lists those that cannot be used


def open_split(config: ConfigDict, workdir: pathlib.Path) -> Source:
    """Open the training split.

    Raises:
      UsageError: it cannot be read, or its classes are not those of the config.
    """
    split = config.data.train_split
    report = workdir / BAD_IMAGES if hosts.is_primary() else None
    source = load_split(config.data, split, report=report)
    check_classes(source, config, split=split)
    return source


def make_batches(
    model: Model,
    state: TrainState,
    source: Source,
    position: dict[str, Any] | None,
    *,
    workdir: pathlib.Path,
    parallelism: Parallelism,
    tokenizer: Tokenizer | None = None,
) -> pipeline.TrainIterator:
    """Return this process's share of the batches, from a checkpoint's position on.

    A model that reads texts needs the tokenizer.

    Raises:
      UsageError: the images are not those that the run began with, there are no captions for a
        model that reads texts, or as `kept_latents` and `caption_rows`.
    """
    config, examples, reading = model.config, source, {}
    if isinstance(model, DiffusionModel) and (captions := check_captions(model, source)):
        params = hosts.local(parallelism.whole(model.weights((), state.frozen).text))
        rows = caption_rows(model, params, tokenizer, captions)
        reading = {"caption_dropout": config.text.dropout, "finish": with_context(rows)}
    if frozen_first_stage(model) is not None:
        frozen = model.weights((), state.frozen).frozen
        examples = kept_latents(model, frozen, source, whole=parallelism.whole)
    batches = pipeline.train_iterator(
        examples,
        batch_size=config.train.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        **reading,
    )
    if position is not None:
        fingerprint = position.get("fingerprint")
        listing.check_unchanged(workdir / listing.FILE, source, fingerprint, warn)
        batches.set_state(position)
    return batches


def keep_listing(workdir: pathlib.Path, source: Source, *, resumed: bool) -> None:
    """Write the list of training files, at the start or on a resume without a list."""
    path, files = workdir / listing.FILE, dataset_info(source).files
    if files is not None and not (resumed and path.exists()):
        listing.write_listing(path, files)


def check_held_out(config: ConfigDict, source: Source) -> None:
    """Warn if no images are left to evaluate the model on."""
    if config.data.test_split == "test" and not holds_out(source):
        warn(
            "no image is held out, so nothing can be compared with images that were not trained "
            "on: set data.holdout, say to 0.1, or give the data a test split; without one, "
            "evaluate.py takes --split train"
        )
