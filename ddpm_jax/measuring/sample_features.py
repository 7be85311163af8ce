"""Metrics of a model's samples in features: `fid` and its kin, all of one set of samples.

Samples go to shards below the directory of results, from which a stopped command goes on.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation.features import FeatureNetwork
from ddpm_jax.experiments.identity import versions
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.files import absolute, as_path
from ddpm_jax.measuring.evaluated_split import stem
from ddpm_jax.measuring.evaluation_settings import EvaluatedImages, FeatureQuality
from ddpm_jax.measuring.feature_metrics import as_text
from ddpm_jax.measuring.image_comparison import (
    Reference,
    check_resizes,
    measured,
    network_for,
    network_record,
    open_reference,
    plan_for,
    short_digest,
)
from ddpm_jax.measuring.image_comparison import Samples as Comparable
from ddpm_jax.measuring.image_sets import ImageSet, of_arrays, of_source, open_images
from ddpm_jax.measuring.kept_samples import saying_what_is_kept, write_kept_samples
from ddpm_jax.measuring.measured_samples import MeasuredSamples, draw_samples, open_samples
from ddpm_jax.measuring.measurement import Measurement, result_path
from ddpm_jax.monitoring import results


class _Opened(NamedTuple):
    """Samples to come, what they are compared with, and how."""

    found: MeasuredSamples
    samples: Comparable
    network: FeatureNetwork
    reference: Reference


def measure_samples(
    names: Sequence[str],
    trained: TrainedModel,
    images: EvaluatedImages,
    settings: FeatureQuality,
    directory: pathlib.Path | None = None,
) -> dict[str, Measurement]:
    """Measure one set of samples by several metrics; each image is made and looked at once.

    Args:
      names: keys of `feature_metrics.FEATURE_METRICS`.
      trained: the model.
      images: the split to compare with, by default that of training; of a model that reads texts
        the held-out one, whose captions are drawn.
      settings: how samples are made, and compared.
      directory: of results, where the samples are kept; None keeps nothing.

    Raises:
      UsageError: before any sample is made: metrics that cannot be computed of such sets, results
        in `directory` that were made otherwise; what `open_samples`, `load_features` and
        `open_reference` raise.
      FailureError: a file that cannot be read or written.
      Stopped: by a signal or a time limit; samples in `directory` stay.
    """
    opened = _open(names, trained, images, settings, directory)
    found = opened.found
    with saying_what_is_kept(found.generator, settings, directory):
        records = measured(
            names,
            opened.samples,
            opened.reference,
            settings.compared,
            opened.network,
            num_reference=settings.num_reference,
            keep_samples=False,
        )
    return {
        name: Measurement(found.record | record, _text(record), found.suffix)
        for name, record in records.items()
    }


def one_metric(name: str) -> Callable[..., Measurement]:
    """Return the function that measures samples by one metric, as `measurement.Metric` has it."""

    def measure(
        trained: TrainedModel,
        images: EvaluatedImages,
        settings: FeatureQuality,
        directory: pathlib.Path | None = None,
    ) -> Measurement:
        return measure_samples((name,), trained, images, settings, directory)[name]

    return measure


def _open(
    names: Sequence[str],
    trained: TrainedModel,
    images: EvaluatedImages,
    settings: FeatureQuality,
    directory: pathlib.Path | None,
) -> _Opened:
    compared, model = settings.compared, trained.model
    height, width, channels = model.image_shape
    sampling = settings.sampling
    shape = (sampling.height or height, sampling.width or width, channels)
    network = network_for(compared, shape)
    other = None
    if settings.reference is not None:
        if images.split is not None:
            raise UsageError(
                f"reference is {settings.reference} and split {images.split}: give one of them."
            )
        where = {"image_size": height, "data_dir": images.data_dir or ""}
        other = open_reference(settings.reference, network, **where)
    decides: dict[str, Any] = {"network": network_record(network, compared)}
    if settings.num_reference is not None:
        decides["wanted_reference"] = settings.num_reference
    against = None
    if other is not None:
        against = other.images.fingerprint if other.images else other.published.record
    mark = f"_{stem(network.name)}-{short_digest({**decides, 'against': against})}"
    captions = model.conditioning.has_text and sampling.prompt is None
    split = None if captions else model.config.data.train_split
    found = open_samples(
        names[0], trained, images, settings, None, split=split, decides=decides, mark=mark
    )
    if other is None:
        split = images.split or split or model.config.data.test_split
        other = Reference(_split(found, trained, images, split))
    pictures = settings.num_samples * int(np.prod(shape))
    samples = Comparable(
        settings.num_samples,
        shape,
        0 if found.generator.labels is None else found.train.num_classes,
        lambda: _samples(found, settings, directory),
    )
    # joined batches lie in memory twice, shards one at a time
    besides = 0 if directory else 2 * pictures
    plan_for(names, network, samples, other, settings.num_reference, besides=besides)
    shapes = [shape] + ([] if other.images is None else [other.images.image_shape])
    check_resizes(compared, network, shapes)
    if directory is not None:
        wanted = found.record | results.machine() | {"versions": versions()}
        for name in names:
            path = result_path(directory, name, trained, f"{found.suffix}.json")
            results.check_record(path, wanted)
    return _Opened(found, samples, network, other)


def _split(
    found: MeasuredSamples, trained: TrainedModel, images: EvaluatedImages, split: str
) -> ImageSet:
    """Return the split of the model's data as a set to compare with."""
    data = trained.model.config.data
    record = {"source": f"{data.name}:{split}", "image_size": data.image_size}
    place = images.data_dir or data.data_dir
    return of_source(
        found.held_out, **record | ({"data_dir": str(absolute(as_path(place)))} if place else {})
    )


def _samples(
    found: MeasuredSamples, settings: FeatureQuality, directory: pathlib.Path | None
) -> ImageSet:
    """Make the samples, or read those that are there."""
    generator = found.generator
    if directory is None:
        labels = generator.labels
        if labels is not None:
            labels = labels[np.arange(settings.num_samples) % len(labels)]
        return of_arrays(draw_samples(generator, settings), labels, name="samples")
    return open_images(write_kept_samples(generator, settings, directory))


def _text(record: dict[str, Any]) -> str:
    lines = [as_text(record), f"{record['num_samples']} samples"]
    if "num_reference" in record:
        lines[-1] += f" against {record['num_reference'] or 'statistics'}"
    return "\n".join(lines)
