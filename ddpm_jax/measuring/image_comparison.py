"""Two sets of images compared in features: `ddpm_jax.compare_images`, and what `evaluate` shares.

Each set is read once for all metrics. A result is a record that says all that decides its numbers.
"""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.distributed import hosts
from ddpm_jax.errors import UsageError, say
from ddpm_jax.evaluation.features import FeatureNetwork
from ddpm_jax.experiments.identity import versions
from ddpm_jax.files import absolute, as_path, is_remote
from ddpm_jax.measuring.evaluation_settings import Features, ImageComparison
from ddpm_jax.measuring.feature_cache import open_cache
from ddpm_jax.measuring.feature_metrics import (
    FEATURE_METRICS,
    WIDE,
    Numbers,
    Plan,
    as_record,
    bias,
    make_plan,
    measure,
    parse_metrics,
)
from ddpm_jax.measuring.feature_networks import load_features
from ddpm_jax.measuring.feature_sets import FeatureSet, compute_features, read_statistics
from ddpm_jax.measuring.image_sets import (
    ImageSet,
    has_images,
    of_arrays,
    open_images,
    shrunk,
    spread,
)
from ddpm_jax.monitoring.results import machine
from ddpm_jax.settings import check_names, field_names

READ = 8  # batches of the network that are read at once, so that it does not wait for each
FEW = 10  # samples to a feature, below which the bias of a Frechet distance is warned of
ROUNDING = 1e-12  # a distance as small as this is an error of computation
LENGTH = 1e-2  # by which that of an embedding may differ from 1 for cmmd
Place = str | os.PathLike | np.ndarray | ImageSet


def compare_images(
    images: Place,
    reference: Place | None = None,
    metrics: str | Sequence[str] = "fid",
    **settings: Any,
) -> dict[str, dict[str, Any]]:
    """Compare a set of images with another one, without a model.

        found = ddpm_jax.compare_images("samples.npz", "photos", "fid,kid", features="inception",
                                        feature_weights="pt_inception-2015-12-05.pth")
        found["fid"]["value"], found["fid"]["error"]

    Args:
      images: a folder of pictures, shards of `sample.py`, an NPZ file, a split as in
        "cifar10:train" (`image_sets.open_images`), or an array uint8 [N, H, W, C].
      reference: likewise, or an NPZ file of published statistics; None for metrics of the images
        alone.
      metrics: keys of `feature_metrics.FEATURE_METRICS`, as a list or with commas between them.
      settings: fields of `ImageComparison` and `Features`: num_images, num_reference, image_size,
        data_dir; features (also a function of uint8 [N, H, W, C] that returns numbers [N, D]),
        feature_weights, resize, rounding, feature_batch_size, feature_cache.

    Returns:
      Metric -> its record: value, error, results, and the settings that they depend on.

    Raises:
      UsageError: sets, a network or metrics that do not fit one another, found before anything is
        computed.
      FailureError: an image that cannot be read.
    """
    own = [name for name in field_names(ImageComparison) if name != "compared"]
    known = own + field_names(Features)
    check_names(known, settings, "There is no setting")
    of_features = {name: value for name, value in settings.items() if name not in own}
    given = {name: value for name, value in settings.items() if name in own}
    chosen = ImageComparison(**given, compared=Features(**of_features))
    return compare_sets(images, reference, parse_metrics(metrics), chosen)


def compare_sets(
    images: Place, reference: Place | None, names: Sequence[str], settings: ImageComparison
) -> dict[str, dict[str, Any]]:
    """Compare as `compare_images` does, given a record of settings."""
    where = {"image_size": settings.image_size, "data_dir": settings.data_dir or ""}
    needed = any(FEATURE_METRICS[name].of_reference is not None for name in names)
    if reference is not None and not needed:
        raise UsageError(f"{', '.join(names)} looks at the images alone: leave the reference out.")
    samples = open_place(images, **where)
    count = min(settings.num_images or len(samples), len(samples))
    if settings.num_images is not None and count < settings.num_images:
        raise UsageError(f"num_images is {settings.num_images}, and there are {count} images.")
    network = network_of(settings.compared, samples)
    other = open_reference(reference, network, **where) if reference is not None else None
    sets = [samples] + ([other.images] if other is not None and other.images is not None else [])
    _check_settings(settings, network, sets)
    return {
        name: {"metric": name, **record, **machine(), "versions": versions()}
        for name, record in measured(
            names,
            Samples(
                count,
                samples.image_shape,
                samples.source.num_classes,
                lambda: samples,
                samples.mixed,
            ),
            other,
            settings.compared,
            network,
            num_reference=settings.num_reference,
        ).items()
    }


def _check_settings(
    settings: ImageComparison, network: FeatureNetwork, sets: Sequence[ImageSet]
) -> None:
    """Refuse settings that ask for more than there is, or would change nothing.

    Args:
      settings: of the comparison.
      network: that it names.
      sets: the samples, then the reference if it has images.

    Raises:
      UsageError: see above.
    """
    wanted, there = settings.num_reference or 0, sum(map(len, sets[1:]))
    if wanted > there:
        raise UsageError(
            f"num_reference is {wanted}, and there are {there or 'no'} images to compare with."
        )
    if settings.data_dir and all(one.record["kind"] != "split" for one in sets):
        raise UsageError(
            f"data_dir is {settings.data_dir}, and no split of a dataset is compared: leave it out."
        )
    check_resizes(settings.compared, network, [one.image_shape for one in sets])


def check_resizes(
    settings: Features, network: FeatureNetwork, shapes: Sequence[tuple[int, int, int]]
) -> None:
    """Refuse a resizer or a rounding that would change nothing.

    Args:
      settings: of the features.
      network: that they name.
      shapes: (H, W, C) of all sets that are compared.

    Raises:
      UsageError: one is given, and all images have the network's size and channels.
    """
    size = network.record.get("input_size")
    # the features digits make grey of colours, which is rounded
    as_they_are = all(
        shape[:2] == (size, size) and (network.name != "digits" or shape[2] == 1)
        for shape in shapes
    )
    given = {"resize": settings.resize, "rounding": settings.rounding}
    for name, value in given.items() if as_they_are else ():
        # Inception's numbers are scaled otherwise after pytorch_bilinear
        scales = "scaling" in network.record and value == "pytorch_bilinear"
        if value is not None and not scales:
            raise UsageError(
                f"{name} is {value!r}, but images of {size}x{size} pixels are what the features "
                f"{network.name} take: leave it out."
            )


def open_place(place: Place, *, image_size: int | None = None, data_dir: str = "") -> ImageSet:
    """Return a set: one that is given, an array, or what a path names."""
    if isinstance(place, ImageSet):
        return shrunk(place, image_size)
    if isinstance(place, str | os.PathLike):
        return open_images(place, image_size=image_size, data_dir=data_dir)
    if not hasattr(place, "__array__"):
        raise UsageError(
            f"A set of images is of type {type(place).__name__}: give a folder, an NPZ file, a "
            "split as in cifar10:train, or an array uint8 [N, H, W, C]."
        )
    return shrunk(of_arrays(place), image_size)


class Reference(NamedTuple):
    """What a set is compared with: images, published statistics of it, or both."""

    images: ImageSet | None
    published: FeatureSet | None = None


def open_reference(place: Place, network: FeatureNetwork, **where: Any) -> Reference:
    """Open a set to compare with.

    Of a file with images and Inception's statistics, such as OpenAI's, the Frechet distance takes
    the statistics, as OpenAI's evaluator does: they are of more images than the file has. They are
    left out where the images are shrunk.

    Args:
      place: as in `compare_images`.
      network: whose features are compared.
      where: image_size and data_dir, as in `image_sets.open_images`.

    Raises:
      UsageError: see `image_sets.open_images` and `feature_sets.read_statistics`.
    """
    if not isinstance(place, str | os.PathLike):
        return Reference(open_place(place, **where))
    path = as_path(place)
    if is_remote(path) or path.suffix != ".npz" or not path.is_file():
        return Reference(open_place(place, **where))
    if not has_images(path):
        published = read_statistics(path, network.dims)
        return Reference(None, published) if published else Reference(open_place(place, **where))
    images = open_place(place, **where)
    are_of_these = network.name == "inception" and "crop" not in images.record
    return Reference(images, read_statistics(path, network.dims) if are_of_these else None)


def network_for(settings: Features, image_shape: tuple[int, int, int]) -> FeatureNetwork:
    """Return the network that settings name, for images [H, W, C].

    Raises:
      UsageError: as `load_features`.
    """
    return load_features(
        settings.features,
        image_shape=image_shape,
        weights=settings.feature_weights,
        resize=settings.resize,
        rounding=settings.rounding,
        batch_size=settings.feature_batch_size,
    )


def network_of(settings: Features, images: ImageSet) -> FeatureNetwork:
    """Return the network that settings name, for the images of a set.

    Raises:
      UsageError: as `load_features`; of grey pictures among others in colour it names one of each.
    """
    try:
        return network_for(settings, images.image_shape)
    except UsageError as error:
        if not images.mixed:
            raise
        raise UsageError(f"{error} {images.mixed}") from error


class Samples(NamedTuple):
    """The set that is measured, which may not be there yet."""

    count: int
    image_shape: tuple[int, int, int]
    num_classes: int
    make: Callable[[], ImageSet]  # of at least `count` images; the first of them are taken
    mixed: str = ""  # as in `ImageSet`


def measured(
    names: Sequence[str],
    samples: Samples,
    reference: Reference | None,
    settings: Features,
    network: FeatureNetwork,
    *,
    num_reference: int | None = None,
    keep_samples: bool = True,
    warns: bool = True,
) -> dict[str, dict[str, Any]]:
    """Compute all metrics of two sets, each of which is read once, the reference first.

    Args:
      names: of metrics.
      samples: what is measured.
      reference: what they are compared with, if anything.
      settings: the network.
      network: that of the settings, for the samples' shape.
      num_reference: images of the reference, spread over it; None for all.
      keep_samples: whether features of the samples are kept in the cache, too.
      warns: whether too few samples are warned of.

    Returns:
      Metric -> entries of a record.

    Raises:
      UsageError: what `feature_metrics.make_plan` and `load_features` raise.
      FailureError, Stopped: see `feature_sets.compute_features`.
    """
    reference = reference or Reference(None)
    images, published = reference
    plan = plan_for(names, network, samples, reference, num_reference)
    theirs = network
    if images is not None and images.image_shape != samples.image_shape:
        theirs = _network_of_reference(settings, network, samples, images)
    cache, at_a_time = open_cache(settings.feature_cache), READ * settings.feature_batch_size
    other = published
    if plan.of_reference is not None:
        chosen = spread(len(images), num_reference)
        other = compute_features(
            images, chosen, theirs, plan.of_reference, batch_size=at_a_time, cache=cache
        )
        if published is not None:
            record = other.record | {"statistics": published.record}
            other = dataclasses.replace(other, gaussian=published.gaussian, record=record)
    if warns and "fid" in names and samples.count < FEW * network.dims <= FEW * WIDE:
        few = f"{samples.count:,} samples are"
        _warn_of_few("fid", few, network, bias(samples.count, other)["value"])
    found = compute_features(
        samples.make(),
        np.arange(samples.count),
        network,
        plan.of_samples,
        batch_size=at_a_time,
        cache=cache if keep_samples else None,
    )
    numbers = measure(plan, found, other)
    if warns:
        _warn_of_results(network, numbers, found, other)
    return {
        name: as_record(of_metric)
        | facts_of(network, settings, found, other if FEATURE_METRICS[name].of_reference else None)
        for name, of_metric in numbers.items()
    }


def _warn_of_results(
    network: FeatureNetwork,
    numbers: Mapping[str, Numbers],
    samples: FeatureSet,
    reference: FeatureSet | None,
) -> None:
    """Say that a set is compared with itself, classes have few samples, or cmmd is of others."""
    digests = [one.record.get("images_sha256") for one in (samples, reference) if one is not None]
    if len(digests) == 2 and digests[0] == digests[1]:
        _warn(
            "images and reference are the same: a set compared with itself says nothing of a model."
        )
    if "cmmd" in numbers:
        lengths = np.linalg.norm(samples.features, axis=1)
        if np.abs(lengths - 1).max() > LENGTH:
            _warn(
                f"cmmd's kernel is made for features of length 1, and the lengths of these are "
                f"{lengths.min():.3g} to {lengths.max():.3g}: divide each by its length."
            )
    if "fid_by_class" in numbers and network.dims <= WIDE:
        fewest = np.unique(samples.labels, return_counts=True)[1].min()
        if fewest < FEW * network.dims:
            perfect = numbers["fid_by_class"].more["expected"]["value"]
            few = f"classes of as few as {fewest:,} samples are"
            _warn_of_few("fid_by_class", few, network, perfect)


def _warn_of_few(metric: str, few: str, network: FeatureNetwork, perfect: float) -> None:
    """Say what the distance of so few samples would be of a perfect model."""
    if perfect > ROUNDING:  # which it is where the reference has no variance
        _warn(
            f"{few} few for {network.dims:,} features: the {metric} of a perfect model would be "
            f"about {perfect:.3g}. Compare it with numbers of as many samples only."
        )


def _warn(text: str) -> None:
    if hosts.is_primary():
        say(f"warning: {text}", file=sys.stderr)


def plan_for(
    names: Sequence[str],
    network: FeatureNetwork,
    samples: Samples,
    reference: Reference,
    num_reference: int | None,
    *,
    besides: int = 0,
) -> Plan:
    """Return the plan of a comparison, or refuse it: see `feature_metrics.make_plan`."""
    images, published = reference
    return make_plan(
        names,
        network,
        samples.count,
        None if images is None else min(num_reference or len(images), len(images)),
        published,
        classes=(samples.num_classes, 0 if images is None else images.source.num_classes),
        besides=besides,
    )


def _network_of_reference(
    settings: Features, network: FeatureNetwork, samples: Samples, reference: ImageSet
) -> FeatureNetwork:
    """Return the network for another shape.

    Raises:
      UsageError: it has other features.
    """
    theirs = network_of(settings, reference)
    if theirs.dims != network.dims:
        sides = (samples.image_shape, reference.image_shape)
        alike = "of one size"
        if sides[0][2] != sides[1][2]:
            alike = "all grey or all in colour"
            alike += ", and of one size" if sides[0][:2] != sides[1][:2] else ""
        shapes = ["x".join(map(str, side)) for side in sides]
        mixed = samples.mixed or reference.mixed
        raise UsageError(
            f"The images are {shapes[0]} and the reference is {shapes[1]} (height, width, "
            f"channels): features {network.name} compare images {alike}."
            f"{' ' * bool(mixed)}{mixed}"
        )
    return theirs


def facts_of(
    network: FeatureNetwork, settings: Features, samples: FeatureSet, reference: FeatureSet | None
) -> dict[str, Any]:
    """Return the entries of a record about the sets and the network."""
    facts = {"num_samples": samples.count, "images": samples.record}
    if reference is not None:
        facts |= {"num_reference": reference.count, "reference": reference.record}
    return facts | {"network": network_record(network, settings)}


def network_record(network: FeatureNetwork, settings: Features) -> dict[str, Any]:
    """Return what a result says of its network, and how to load it again."""
    asked = {"name": network.name, "dims": network.dims}
    file = settings.feature_weights
    weights = {"weights_file": str(absolute(as_path(file)))} if file else {}
    return asked | weights | network.record


def short_digest(record: Mapping[str, Any]) -> str:
    """Return 8 digits that differ for different records."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:8]
