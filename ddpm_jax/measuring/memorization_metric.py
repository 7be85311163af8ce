"""The metric memorization: whether samples of a model are copies of its training images."""

import pathlib

import numpy as np

from ddpm_jax import host_memory
from ddpm_jax.data.in_memory import ArraySource, in_memory
from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation.memorization import (
    FEWEST_TRAIN,
    LikelihoodGap,
    MemorizationAudit,
    Pair,
    audit,
    likelihood_gap,
)
from ddpm_jax.experiments.models import DiffusionModel
from ddpm_jax.experiments.run_settings import frozen_first_stage
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.measuring.bits_per_dim import bits_per_dim
from ddpm_jax.measuring.evaluation_settings import EvaluatedImages, Memorization
from ddpm_jax.measuring.image_comparison import short_digest
from ddpm_jax.measuring.image_sets import of_arrays, of_source
from ddpm_jax.measuring.kept_samples import kept_samples, saying_what_is_kept
from ddpm_jax.measuring.measured_samples import MeasuredSamples, open_samples
from ddpm_jax.measuring.measurement import Measurement
from ddpm_jax.measuring.memorization_distances import distances_of
from ddpm_jax.plotting.grids import grid, save_png, with_labels

SHOWN = 12  # pairs in the picture and in the record
ROWS = 50  # timesteps of the bound, or a few more


def memorization(
    trained: TrainedModel,
    images: EvaluatedImages,
    settings: Memorization,
    directory: pathlib.Path | None = None,
) -> Measurement:
    """Audit samples of a model: nearest training images, and the bound on those and on others.

    Distances are of pixels, or of the features that `settings` name. Where the model was trained on
    mirrored images too, those of pixels are to the nearer of both.

    Raises:
      UsageError: nothing held out, fewer than 100 training images, sets too large; what
        `open_samples` and `load_features` raise.
      FailureError: a file that cannot be read or written.
      Stopped: by a signal or a time limit; samples in `directory` stay.
    """
    distances = distances_of(trained, settings)
    mark = "" if settings.distances == "pixels" else f"_{short_digest(distances.record)}"
    decides = {"distances": distances.record}
    found = open_samples(
        "memorization", trained, images, settings, directory, decides=decides, mark=mark
    )
    _check(found, settings)
    train, held_out = in_memory(found.train), in_memory(found.held_out)
    samples = kept_samples(found.generator, settings, directory)
    with saying_what_is_kept(found.generator, settings, directory):
        outcome = audit(
            distances.rows(of_arrays(samples), False),
            *(distances.rows(of_source(each), True) for each in (train, held_out)),
            mirror=distances.mirror,
            seed=settings.seed,
        )
        gap, note = _gap(trained, train, held_out, settings)
    numbers = outcome._asdict() | {
        "pairs": outcome.pairs[:SHOWN],
        "num_train": len(train),
        "num_held_out": len(held_out),
        "bits_gap": gap or note,
    }
    return Measurement(
        found.record | numbers,
        _text(outcome, gap, note),
        found.suffix,
        lambda path: save_png(path, _picture(outcome.pairs, samples, train, held_out)),
    )


def _check(found: MeasuredSamples, settings: Memorization) -> None:
    """Refuse sets that cannot be audited, before an image is made.

    Raises:
      UsageError: nothing held out, too few training images, or too little memory.
    """
    if found.held_out is found.train:
        raise UsageError(
            "memorization compares with images that were not trained on: name a split of them, or "
            "hold some out."
        )
    if len(found.train) < FEWEST_TRAIN or len(found.held_out) < 2:
        raise UsageError(
            f"memorization of {len(found.train)} training and {len(found.held_out)} held-out "
            f"images: it takes at least {FEWEST_TRAIN} and 2."
        )
    count = len(found.train) + len(found.held_out) + 2 * settings.num_samples
    host_memory.check(
        2 * count * int(np.prod(found.train.image_shape)),
        what=f"The memorization of {count:,} images in memory",
        remedy="lower num_samples",
    )


def _gap(
    trained: TrainedModel, train: ArraySource, held_out: ArraySource, settings: Memorization
) -> tuple[LikelihoodGap | None, str]:
    """Return how many bits/dim fewer training images take, or None and why there is no such number.

    Of as many images as there are samples, spread evenly, at about `ROWS` timesteps each.
    """
    model = trained.model
    if not isinstance(model, DiffusionModel) or frozen_first_stage(model) is not None:
        return None, "a model of latents has no bound on images"
    if model.conditioning.has_text:
        return None, "the bound of a model that reads texts is given a text"
    count = min(settings.num_samples, len(train), len(held_out))
    stride = max(1, model.schedule.num_timesteps // ROWS)
    bits = []
    for source in (train, held_out):
        rows = np.linspace(0, len(source) - 1, count).round().astype(int)
        labels = source.labels[rows].tolist() if model.conditioning.num_classes else None
        try:
            found = bits_per_dim(
                trained,
                source.images[rows],
                labels=labels,
                timestep_stride=stride,
                batch_size=settings.batch_size,
                seed=settings.seed,
            )
        except UsageError as error:  # a process without a finite bound
            return None, str(error)
        bits.append(found.values)
    return likelihood_gap(*bits), ""


def _text(outcome: MemorizationAudit, gap: LikelihoodGap | None, note: str) -> str:
    of_samples, of_train, of_held_out = outcome.median_distances
    first = outcome.pairs[0]
    bits = note
    if gap is not None:
        bits = f"{gap.value:.4f} ± {gap.standard_error:.4f}, p = {gap.p_value:.2g}"
    return "\n".join(
        [
            outcome.verdict,
            f"copies                    {len(outcome.copies)} of {len(outcome.pairs)}, "
            f"p = {outcome.copy_p_value:.2g}, by ranks alone {outcome.rank_p_value:.2g}",
            f"nearest to training       {outcome.share_nearest_train:.3f}, by chance "
            f"{outcome.expected_share:.3f}, p = {outcome.closeness_p_value:.2g}",
            f"held-out images differ    p = {outcome.split_p_value:.2g}",
            f"median distance           {of_samples:.4g}, of training images {of_train:.4g}, of "
            f"held-out ones {of_held_out:.4g}",
            f"smallest ratio            {first.ratio:.3g}, sample {first.sample} to training image "
            f"{first.train}",
            f"bits/dim more, held out   {bits}",
        ]
    )


def _picture(
    pairs: tuple[Pair, ...], samples: np.ndarray, train: ArraySource, held_out: ArraySource
) -> np.ndarray:
    """Draw the samples of the smallest ratios over their nearest images of both sets."""
    shown = pairs[:SHOWN]
    rows = [
        samples[[pair.sample for pair in shown]],
        train.images[[pair.train for pair in shown]],
        held_out.images[[pair.held_out for pair in shown]],
    ]
    return with_labels(
        grid(np.concatenate(rows), len(shown)),
        columns=[f"{pair.ratio:.2f}" for pair in shown],
        rows=["sample", "training", "held out"],
    )
