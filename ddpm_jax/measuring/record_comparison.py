"""Two result records: which settings differ, and how much of the difference each explains.

A setting is attributed by computing the first record's number again with this one setting of the
second, from the images, the reference and the weights that the records name, where these are still
there and are the same by their digests. What cannot be computed again is said to be so. Effects
need not add up: the last line has what they leave over.
"""

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.files import as_path, read_file, reporting
from ddpm_jax.measuring.evaluation_settings import Features
from ddpm_jax.measuring.feature_metrics import FEATURE_METRICS, rounded
from ddpm_jax.measuring.feature_networks import FEATURES
from ddpm_jax.measuring.image_comparison import (
    Reference,
    Samples,
    measured,
    network_of,
    open_reference,
)
from ddpm_jax.measuring.image_sets import open_images
from ddpm_jax.monitoring.results import format_table
from ddpm_jax.schema import Malformed, Number, Table, Text, Whole, differing, parse

_NUMBER = Number(null=True)
_SET = Table({"kind": Text()}, {"source": Text(), "image_size": Whole(1), "data_dir": Text()})
_KIND = Table(
    {"metric": Text()},
    {
        "value": _NUMBER,
        "results": Table(others=Table({}, {"value": _NUMBER, "error": _NUMBER})),
        "error": _NUMBER,
        "num_samples": Whole(1),
        "images": _SET,
        "reference": _SET,
        "network": Table({"name": Text(), "dims": Whole(1)}),
    },
)
_FOUND = ("metric", "value", "error", "results", "more")
# what follows from other settings, or says only where things lie
_FOLLOWS = {
    "images": ("source", "count", "images_sha256", "fingerprint", "made", "data_dir"),
    "reference": ("source", "count", "images_sha256", "fingerprint", "data_dir", "sha256"),
    "network": ("weights_file",),
}
_PLACES = ("checkpoint", "data", "wanted_reference")
_CHANGED = "other images"  # where nothing says why
_PROGRAM = ("versions", "device", "matmul_precision", "random_numbers")
_TOLERANCE = 1e-3  # relative, of a number that is computed again
_OF_NETWORK = {"network.resizer": "resizer", "network.rounding": "rounding"}


class Value(NamedTuple):
    """A number of a record; None where there is none."""

    value: float | None = None
    error: float | None = None


class Difference(NamedTuple):
    """Settings that differ and can only be changed together, and what that does."""

    settings: dict[str, tuple[str, str]]  # name -> its value in either record, as text
    effects: dict[str, float] | None  # on each number of the first record; None: not known
    why: str = ""  # it is not known, half a sentence

    @property
    def effect(self) -> float | None:
        """Return the effect on the metric's own number, the first."""
        return None if self.effects is None else next(iter(self.effects.values()))


class Comparison(NamedTuple):
    """Two records of one metric."""

    numbers: dict[str, tuple[Value, Value]]  # by name; prdc has four, the others one
    differences: list[Difference]

    @property
    def text(self) -> str:
        """Return the values and a table of the differences."""
        changes, lines = {}, []
        for name, (first, second) in self.numbers.items():
            if None in (first.value, second.value):
                continue
            changes[name] = second.value - first.value
            lines.append(f"{name} {first.value:.6g} and {second.value:.6g}: {changes[name]:+.4g}")
            if None not in (first.error, second.error):
                error = rounded(math.hypot(first.error, second.error))
                lines.append(f"one standard error of that, over samples: {error}")
        if not self.differences:
            return "\n".join([*lines, "No setting differs."])
        rows = []
        several = len(self.numbers) > 1
        for settings, effects, why in self.differences:
            said = [why] * len(self.numbers)
            if effects is not None:
                said = [f"{effects[name]:+.4g}" for name in self.numbers]
            for name, (there, here) in settings.items():
                rows.append((name, there, here, *said))
                said = ["together"] * len(said) if effects is not None else said
        titles = self.numbers if several else ("effect",)
        lines.append(format_table(("setting", "first", "second", *titles), rows))
        known = [effects for _, effects, _ in self.differences if effects is not None]
        for name, change in changes.items() if known else ():
            left = change - sum(effects[name] for effects in known)
            of = f" of {name}" if several else ""
            lines.append(f"not explained{of} by these effects: {left:+.4g}")
        return "\n".join(lines)


class _Protocol(NamedTuple):
    """What a number of features is computed from."""

    images: Mapping[str, Any]
    num_samples: int
    reference: Mapping[str, Any] | None
    num_reference: int | None
    network: Mapping[str, Any]


def compare_records(
    first: str | os.PathLike,
    second: str | os.PathLike,
    *,
    recompute: bool = True,
    feature_cache: str | None = None,
) -> Comparison:
    """Name the settings in which two result records differ, with the effect of each.

    Args:
      first, second: JSON files that `evaluate` has written, of one metric.
      recompute: whether to compute effects, which takes as long as the metric itself.
      feature_cache: as in `Features`.

    Raises:
      UsageError: a file is no such record, or they are of different metrics.
      FailureError: a file cannot be read.
    """
    one, other = read_result(first), read_result(second)
    if one["metric"] != other["metric"]:
        raise UsageError(
            f"{first} is of {one['metric']} and {second} of {other['metric']}: compare two records "
            "of one metric."
        )
    named = _named(one, other)
    protocols = [_protocol(record) for record in (one, other)]
    differences = []
    for parts, settings in _grouped(named, one, other):
        if not recompute or parts is None or None in protocols:
            why = "not computed" if recompute is False else "cannot be computed"
            differences.append(Difference(settings, None, why))
            continue
        differences.append(
            _attributed(one["metric"], (one, other), protocols, parts, settings, feature_cache)
        )
    sides = [_numbers(record) for record in (one, other)]
    return Comparison(
        {name: (found, sides[1].get(name, Value())) for name, found in sides[0].items()},
        differences,
    )


def read_result(path: str | os.PathLike) -> dict[str, Any]:
    """Return a result record.

    Raises:
      UsageError: there is no such file, or it is no record.
      FailureError: it cannot be read.
    """
    path = as_path(path)
    if not path.exists():
        raise UsageError(f"There is no {path}: name two JSON files that evaluate has written.")
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name a JSON file that evaluate has written.")
    with reporting(path, "read"):
        data = read_file(path)
    try:
        record = parse(data, _KIND)
    except Malformed as error:
        raise UsageError(
            f"{path} is no result of evaluate ({error}): name a JSON file that it has written."
        ) from None
    if record["metric"] not in FEATURE_METRICS or "value" not in record:
        lacks = " without a value" if record["metric"] in FEATURE_METRICS else ""
        raise UsageError(
            f"{path} is a result of {record['metric']}{lacks}: compare takes those of "
            f"{', '.join(FEATURE_METRICS)}."
        )
    return record


def _numbers(record: Mapping[str, Any]) -> dict[str, Value]:
    """Return the numbers of a record that are compared: the metric's own, or its parts."""
    parts = FEATURE_METRICS[record["metric"]].parts
    if not parts:
        return {record["metric"]: Value(record["value"], record.get("error"))}
    results = record.get("results", {})
    found = {name: results.get(name, {}) for name in parts}
    return {name: Value(one.get("value"), one.get("error")) for name, one in found.items()}


def _named(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the settings that differ, without those that follow from others."""
    sides = [_settings(record) for record in (one, other)]
    named = differing(*sides)
    for part in ("images", "reference"):
        digests = [record.get(part, {}).get("images_sha256") for record in (one, other)]
        counts = [record.get(part, {}).get("count") for record in (one, other)]
        explained = any(_part(name) == part for name in named)
        if digests[0] != digests[1] and counts[0] == counts[1] and not explained:
            texts = tuple(
                str(record.get(part, {}).get("source", "given")) for record in (one, other)
            )
            named[f"{part} ({_CHANGED})"] = texts
    return named


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in record.items():
        if name in _FOUND or name in _PLACES:
            continue
        follows = set(_FOLLOWS.get(name, ()))
        if name == "images" and "checkpoint" not in record:
            follows.discard("made")  # which of a model stands in the record itself
        if follows and isinstance(value, Mapping):
            value = {key: item for key, item in value.items() if key not in follows}
            # which split it is matters, which folder does not
            source = str(record[name].get("source", ""))
            if record[name].get("kind") == "split":
                value["source"] = source
        found[name] = value
    return found


def _part(name: str) -> str:
    """Return what a setting is about: images, reference, network, or its own name."""
    first = name.split(".")[0].split(" ")[0]
    if first in ("reference", "network", "num_samples", "num_reference", "protocol", *_PROGRAM):
        return first
    return "images"  # all that a model, its weights and its sampler make


def _grouped(
    named: Mapping[str, tuple[str, str]], one: Mapping[str, Any], other: Mapping[str, Any]
) -> list[tuple[tuple[str, ...] | None, dict[str, tuple[str, str]]]]:
    """Return settings that change together, with the parts of a protocol that they change."""
    groups: dict[tuple[str, ...] | None, dict[str, tuple[str, str]]] = {}
    networks = [record.get("network", {}) for record in (one, other)]
    same = len({(found.get("name"), found.get("sha256")) for found in networks}) == 1
    for name, texts in named.items():
        part = _part(name)
        key: tuple[str, ...] | None = (part,)
        if part in ("protocol", *_PROGRAM):
            key = None
        elif part == "network" and same and name in _OF_NETWORK:
            key = (part, _OF_NETWORK[name])
        groups.setdefault(key, {})[name] = texts
    return sorted(groups.items(), key=lambda group: group[0] is None)


def _protocol(record: Mapping[str, Any]) -> _Protocol | None:
    if not {"images", "network"} <= set(record):
        return None
    return _Protocol(
        record["images"],
        record.get("num_samples", 0),
        record.get("reference"),
        record.get("num_reference"),
        record["network"],
    )


def _attributed(
    metric: str,
    records: tuple[Mapping[str, Any], Mapping[str, Any]],
    protocols: list[_Protocol],
    parts: tuple[str, ...],
    settings: dict[str, tuple[str, str]],
    cache: str | None,
) -> Difference:
    """Return the effect of some settings, from the first record or else from the second."""
    reasons = []
    for near, far, sign in ((0, 1, 1), (1, 0, -1)):
        changed = _changed(protocols[near], protocols[far], parts)
        try:
            values = _compute(metric, changed, cache)
            _check_repeats(metric, records[near], protocols[near], cache)
        except (UsageError, FailureError) as error:
            reasons.append(str(error))
            continue
        before = _numbers(records[near])
        if any(number.value is None for number in before.values()):
            break
        effects = {name: sign * (values[name] - found.value) for name, found in before.items()}
        return Difference(settings, effects)
    return Difference(
        settings, None, f"cannot be computed: {reasons[0] if reasons else 'no value'}"
    )


def _changed(near: _Protocol, far: _Protocol, parts: tuple[str, ...]) -> _Protocol:
    part, *field = parts
    if part != "network" or not field:
        return near._replace(**{part: getattr(far, part)})
    return near._replace(network={**near.network, field[0]: far.network.get(field[0])})


def _check_repeats(
    metric: str, record: Mapping[str, Any], protocol: _Protocol, cache: str | None
) -> None:
    """Refuse files that no longer give the number of a record."""
    values = _compute(metric, protocol, cache)
    for name, (wanted, _) in _numbers(record).items():
        found = values[name]
        if wanted is not None and not math.isclose(found, wanted, rel_tol=_TOLERANCE, abs_tol=1e-9):
            raise UsageError(f"the files give {found:.6g} now, and the record says {wanted:.6g}")


def _compute(metric: str, protocol: _Protocol, cache: str | None) -> dict[str, float]:
    """Compute the numbers of a metric again.

    Raises:
      UsageError: something is not there, or is not what it was.
      FailureError: a file cannot be read.
    """
    settings = _features(protocol.network, cache)
    images = _reopened(protocol.images, open_images)
    if len(images) < protocol.num_samples:
        raise UsageError(f"{protocol.images['source']} has {len(images)} images")
    network = network_of(settings, images)
    if network.record.get("sha256") != protocol.network.get("sha256"):
        raise UsageError(f"the weights of {network.name} are others")
    reference = None
    if protocol.reference is not None:
        reference = _reopened(
            protocol.reference, lambda place, **where: open_reference(place, network, **where)
        )
    shape, classes = images.image_shape, images.source.num_classes
    record = measured(
        (metric,),
        Samples(protocol.num_samples, shape, classes, lambda: images),
        reference or Reference(None),
        settings,
        network,
        num_reference=protocol.num_reference if reference and reference.images else None,
        warns=False,
    )[metric]
    for part, wanted in (("images", protocol.images), ("reference", protocol.reference or {})):
        found = record.get(part, {})
        comparable = found.get("count") == wanted.get("count")
        if comparable and found.get("images_sha256") != wanted.get("images_sha256"):
            raise UsageError(f"the images of {wanted.get('source')} have changed")
    return {name: found["value"] for name, found in record["results"].items()}


def _features(network: Mapping[str, Any], cache: str | None) -> Features:
    """Return the settings of a network that a record names.

    Raises:
      UsageError: it is a function of the user's: a file must not choose what is run.
    """
    if network["name"] not in FEATURES:
        raise UsageError(f"the features {network['name']} are a function, which no record may run")
    return Features(
        features=network["name"],
        feature_weights=network.get("weights_file"),
        resize=network.get("resizer"),
        rounding=network.get("rounding") if network["name"] != "pixels" else None,
        feature_cache=cache,
    )


def _reopened(record: Mapping[str, Any], open_set: Callable[..., Any]) -> Any:
    if "source" not in record or record["kind"] == "arrays":
        raise UsageError("its images were given as an array, which is not there")
    return open_set(
        record["source"],
        image_size=record.get("image_size"),
        data_dir=record.get("data_dir") or "",
    )
