"""Metrics of sets in features, by name: what each wants of a set, and what it computes.

The mathematics is in `evaluation`; images become features in `feature_sets`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import host_memory
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.evaluation.features import FeatureNetwork
from ddpm_jax.evaluation.frechet import (
    check_sets,
    frechet_distance,
    frechet_distance_of_sets,
    prefers_elements,
)
from ddpm_jax.evaluation.frechet_errors import (
    expected_by_class,
    expected_distance,
    frechet_by_class,
    frechet_with_error,
)
from ddpm_jax.evaluation.frechet_errors import frechet_infinity as infinity
from ddpm_jax.evaluation.inception_score import inception_score
from ddpm_jax.evaluation.kernel_distance import (
    clip_mmd,
    kernel_inception_distance,
    kernel_inception_distance_of_subsets,
)
from ddpm_jax.evaluation.neighbours import (
    DENSITY_NEIGHBOURS,
    PRECISION_NEIGHBOURS,
    neighbour_measures,
)
from ddpm_jax.measuring.feature_sets import FeatureSet, Needs

WIDE = 4096  # features, of more of which no covariance is made for the error of a distance
PARTS = 5  # the most of fid_infinity
SUBSET = 1000  # elements of the subsets of the field's KID
SPLITS = 10  # of the Inception Score
_LOGITS = ("inception", "digits")  # networks that classify


class Numbers(NamedTuple):
    """A result: its numbers by name, the metric's own first, and settings of the metric."""

    values: dict[str, tuple[float, float | None]]  # name -> (value, standard error or None)
    protocol: dict[str, Any]
    more: Mapping[str, Any] = {}  # that has no error: tables


class FeatureMetric(NamedTuple):
    """A metric of two sets, or of the samples alone."""

    # (samples, reference) -> result; the reference is None for a metric of the samples alone
    compute: Callable[[FeatureSet, FeatureSet | None], Numbers]
    needs: Needs  # of the samples
    of_reference: Needs | None  # None: no reference
    smallest: int  # elements of a set
    by_class: bool = False
    # its value alone, where that is much cheaper
    value: Callable[[FeatureSet, FeatureSet | None], float] | None = None
    is_better_low: bool = True
    parts: tuple[str, ...] = ()  # its numbers, where it is none of its own


def fid(samples: FeatureSet, reference: FeatureSet) -> Numbers:
    """Return the Frechet distance, by elements where that is cheaper.

    Statistics that were published of a reference come before those of its images.
    """
    if samples.dims > WIDE:
        return Numbers({"fid": (fid_alone(samples, reference), None)}, {})
    found = frechet_with_error(samples.features, *reference.statistics())
    return Numbers({"fid": tuple(found)}, {}, {"expected": bias(samples.count, reference)})


def fid_alone(samples: FeatureSet, reference: FeatureSet) -> float:
    """Return the distance without its error."""
    if reference.features is not None and reference.gaussian is None:
        return frechet_distance_of_sets(samples.features, reference.features)
    return frechet_distance(*samples.statistics(), *reference.statistics())


def bias(num_samples: int, reference: FeatureSet) -> dict[str, float]:
    """Return the distance to expect of so many samples of a perfect model, with its error."""
    found = expected_distance(
        reference.statistics()[1],
        num_samples,
        reference.count,
        estimated_from=reference.count,
    )
    return found._asdict()


def fid_infinity(samples: FeatureSet, reference: FeatureSet) -> Numbers:
    """Return the Frechet distance extrapolated to infinitely many samples."""
    found = infinity(samples.features, *reference.statistics(), parts=PARTS)
    line = {"slope": found.slope, "sizes": found.sizes.tolist()}
    return Numbers({"fid_infinity": found[:2]}, {"parts": PARTS, "seed": 0}, line)


def fid_by_class(samples: FeatureSet, reference: FeatureSet) -> Numbers:
    """Return the mean over classes of their Frechet distances, and each of these.

    With at most `WIDE` features also what a perfect model would have.
    """
    found = frechet_by_class(samples.features, samples.labels, reference.features, reference.labels)
    of_class = zip(found.classes.tolist(), found.distances, strict=True)
    each = {f"fid_of_class_{label}": tuple(distance) for label, distance in of_class}
    values = {"fid_by_class": tuple(found.mean), **each}
    if samples.dims > WIDE:
        return Numbers(values, {})
    perfect = expected_by_class(samples.labels, reference.features, reference.labels)
    of_classes = {
        name: expected._asdict() for name, expected in zip(each, perfect.distances, strict=True)
    }
    more = {"expected": perfect.mean._asdict(), "expected_of_classes": of_classes}
    return Numbers(values, {}, more)


def kid(samples: FeatureSet, reference: FeatureSet) -> Numbers:
    """Return the kernel distance of all pairs, and of the field's subsets where they fit."""
    whole = kernel_inception_distance(samples.features, reference.features)
    values = {"kid": tuple(whole)}
    if min(samples.count, reference.count) >= SUBSET:
        of_subsets = kernel_inception_distance_of_subsets(samples.features, reference.features)
        values["kid_of_subsets"] = (of_subsets.value, of_subsets.deviation)
    return Numbers(values, {"kernel": "(x.y / D + 1)^3", "subsets": 100, "subset_size": SUBSET})


def inception(samples: FeatureSet, reference: None) -> Numbers:
    """Return the Inception Score of torch-fidelity's protocol."""
    found = inception_score(samples.logits, splits=SPLITS)
    return Numbers({"is": tuple(found)}, {"splits": SPLITS, "seed": 2020})


def prdc(samples: FeatureSet, reference: FeatureSet) -> Numbers:
    """Return precision, recall, density and coverage."""
    found = neighbour_measures(samples.features, reference.features)
    k = {"k": PRECISION_NEIGHBOURS, "k_density": DENSITY_NEIGHBOURS}
    return Numbers({name: tuple(share) for name, share in found._asdict().items()}, k)


def cmmd(samples: FeatureSet, reference: FeatureSet) -> Numbers:
    """Return CMMD."""
    return Numbers({"cmmd": tuple(clip_mmd(samples.features, reference.features))}, {})


_ELEMENTS = Needs(elements=True)
FEATURE_METRICS = {
    "cmmd": FeatureMetric(cmmd, _ELEMENTS, _ELEMENTS, 2),
    "fid": FeatureMetric(fid, Needs(), Needs(), 2, value=fid_alone),
    "fid_by_class": FeatureMetric(fid_by_class, _ELEMENTS, _ELEMENTS, 2, by_class=True),
    "fid_infinity": FeatureMetric(fid_infinity, _ELEMENTS, Needs(), 2),
    "is": FeatureMetric(inception, Needs(logits=True), None, SPLITS, is_better_low=False),
    "kid": FeatureMetric(kid, _ELEMENTS, _ELEMENTS, 3),
    "prdc": FeatureMetric(
        prdc,
        _ELEMENTS,
        _ELEMENTS,
        DENSITY_NEIGHBOURS + 1,
        is_better_low=False,
        parts=("precision", "recall", "density", "coverage"),
    ),
}


class Plan(NamedTuple):
    """What is kept of either set for all metrics that are asked for."""

    names: tuple[str, ...]
    of_samples: Needs
    of_reference: Needs | None  # None: no image of it is read


def parse_metrics(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of metrics, from a text with commas or a list.

    Raises:
      UsageError: there is no metric of this name.
    """
    found = names.split(",") if isinstance(names, str) else names
    if not isinstance(found, list | tuple) or not found:
        raise UsageError(
            f"metrics is {names!r}: name some of {', '.join(FEATURE_METRICS)}, with commas between "
            "them or as a list."
        )
    for name in found:
        choose("metric of images", name, FEATURE_METRICS)
    return tuple(dict.fromkeys(found))


def make_plan(
    names: Sequence[str],
    network: FeatureNetwork,
    num_samples: int,
    num_reference: int | None = None,
    published: FeatureSet | None = None,
    *,
    classes: tuple[int, int] = (0, 0),
    besides: int = 0,
) -> Plan:
    """Decide what is kept of either set, and refuse metrics that cannot be computed.

    No image is read or made.

    Args:
      names: of metrics.
      network: what computes the features.
      num_samples: N.
      num_reference: M, the images of the reference; None if it has none.
      published: statistics of the reference that are there already.
      classes: the numbers of classes of the samples and of the reference, 0 without.
      besides: bytes that are in use by then.

    Raises:
      UsageError: too few images, no reference, statistics alone where elements are needed, no
        logits, no classes, or not enough memory.
    """
    metrics = {name: FEATURE_METRICS[name] for name in names}
    of_samples, of_reference = Needs(), None
    for name, metric in metrics.items():
        _check(name, metric, network, num_samples, num_reference, published)
        if metric.by_class and not (min(classes) and classes[0] == classes[1]):
            raise UsageError(
                f"{name}: the classes of both sets must be known, and they have "
                f"{classes[0] or 'none'} and {classes[1] or 'none'}: take fid."
            )
        if metric.by_class and num_samples < 2 * classes[0]:
            raise UsageError(
                f"{name} needs at least 2 samples of each of {classes[0]} classes, and there are "
                f"{num_samples}: take more of them."
            )
        of_samples |= metric.needs
        if metric.of_reference is not None and not _is_published(metric.of_reference, published):
            of_reference = (of_reference or Needs()) | metric.of_reference
    if "fid" in metrics and network.dims <= WIDE:
        of_samples |= _ELEMENTS  # for the error
    elif "fid" in metrics and published is None:
        if prefers_elements(num_samples, num_reference, network.dims):
            of_samples, of_reference = of_samples | _ELEMENTS, of_reference | _ELEMENTS
        check_sets(num_samples, num_reference, network.dims, besides=besides)
    kept = num_samples * network.dims * of_samples.elements
    kept += (num_reference or 0) * network.dims * (of_reference or Needs()).elements
    host_memory.check(
        4 * kept + 4 * num_samples * network.num_classes * of_samples.logits + besides,
        what=f"{', '.join(names)} of {num_samples:,} images in {network.dims:,} features",
        remedy="compare fewer images, by num_samples, num_images or num_reference",
    )
    return Plan(tuple(metrics), of_samples, of_reference)


def _is_published(needs: Needs, published: FeatureSet | None) -> bool:
    """Return whether published statistics have what a metric needs of the reference."""
    return published is not None and (published.features is not None or not needs.elements)


def _check(
    name: str,
    metric: FeatureMetric,
    network: FeatureNetwork,
    num_samples: int,
    num_reference: int | None,
    published: FeatureSet | None,
) -> None:
    """Refuse a metric of sets that are too few or too little."""
    few = num_samples
    if metric.of_reference is not None:
        if num_reference is None and published is None:
            raise UsageError(f"{name} compares two sets: give a reference.")
        if num_reference is None and not _is_published(metric.of_reference, published):
            raise UsageError(
                f"{name} needs the images of the reference, and {published.record['source']} holds "
                "mean and covariance alone: name a set of images, or take fid."
            )
        few = min(few, num_reference or (published and published.count) or few)
    if few < metric.smallest:
        raise UsageError(
            f"{name} needs at least {metric.smallest} images in a set, and there are {few}: take "
            "more of them."
        )
    if name == "fid_infinity" and num_samples <= PARTS * network.dims:
        raise UsageError(
            f"fid_infinity extrapolates from parts with more samples than the {network.dims:,} "
            f"features: take more than {PARTS * network.dims:,} samples, or fid."
        )
    if name == "cmmd" and not (network.name == "clip" or network.is_function):
        raise UsageError(
            f"cmmd is of CLIP's embeddings of length 1, which its kernel is made for, and not of "
            f"the features {network.name}: take clip, or kid."
        )
    if metric.needs.logits and not network.num_classes:
        raise UsageError(
            f"{name} needs a network that classifies, and {network.name} does not: take "
            f"{' or '.join(_LOGITS)}."
        )


def measure(plan: Plan, samples: FeatureSet, reference: FeatureSet | None) -> dict[str, Numbers]:
    """Return the results of all metrics of a plan."""
    return {name: FEATURE_METRICS[name].compute(samples, reference) for name in plan.names}


def measure_value(name: str, samples: FeatureSet, reference: FeatureSet | None) -> float:
    """Return a metric's own number alone."""
    metric = FEATURE_METRICS[name]
    if metric.value is not None:
        return metric.value(samples, reference)
    return next(iter(metric.compute(samples, reference).values.values()))[0]


def as_record(numbers: Numbers) -> dict[str, Any]:
    """Return the entries of a record: the metric's own value and error, and all of its numbers."""
    value, error = next(iter(numbers.values.values()))
    results = {
        name: {"value": found, "error": deviation}
        for name, (found, deviation) in numbers.values.items()
    }
    more = {"more": dict(numbers.more)} if numbers.more else {}
    return {"value": value, "error": error, "results": results, "protocol": numbers.protocol} | more


def with_spread(value: float, error: float | None) -> str:
    """Return a value and its error, if it has one, in one notation: 290, or 2.9e+12, of both."""
    shown = f"{value:.6g}"
    if error is None or np.isnan(error):
        return shown
    if "e" in shown:
        return f"{shown} ± {error:.1e}"
    return f"{shown} ± {rounded(error)}"


def rounded(error: float) -> str:
    """Return two digits of a number without an exponent: 290."""
    return np.format_float_positional(error, precision=2, fractional=False, trim="-")


def as_text(record: Mapping[str, Any]) -> str:
    """Return the results of a record as lines."""
    lines, more = [], record.get("more", {})
    of_classes = more.get("expected_of_classes", {})
    for name, found in record["results"].items():
        shown = with_spread(found["value"], found["error"])
        if name in of_classes:
            shown += f", of a perfect model {of_classes[name]['value']:.4g}"
        lines.append(f"{name:25} {shown}")
    if "expected" in more:
        lines.append(f"{'of a perfect model':25} {more['expected']['value']:.4g}")
    return "\n".join(lines)
