"""Certificates verified: that an imported model still is what was read."""

import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.experiments.file_options import FileOptions
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.experiments.model_files import open_network
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.families.foreign import Foreign
from ddpm_jax.files import as_path, read_file, reporting
from ddpm_jax.interop.containers import is_container
from ddpm_jax.interop.renaming import OtherNetwork
from ddpm_jax.schema import SHA256, Malformed, Number, Table, Text, Whole, parse
from ddpm_jax.tasks.certificates import CERTIFICATE, check_written_back, smoke_image
from ddpm_jax.tasks.sampling_settings import MAX_SIDE

_STATISTICS = ("mean", "std", "min", "max")
_CERTIFICATE = Table(
    required={
        "family": Text(),
        "source": Table(required={"path": Text(), "kind": Text()}, optional={"hub": Text()}),
        "weights": Table(
            others=Table(required={"sha256": SHA256}, optional={"in_the_run": SHA256})
        ),
        "fields": Table(),
        "asked_for": Table(required={"fields": Table()}),
        "result": Table(required={"weights": Text("raw|ema"), "sha256": SHA256}),
    },
    optional={
        "image": Table(
            required=dict.fromkeys(_STATISTICS, Number()),
            optional=dict.fromkeys(("height", "width"), Whole(1, MAX_SIDE)),
        )
    },
)
TOLERANCE = 1e-3  # of the statistics of the image, for other devices and versions


class Check(NamedTuple):
    """One thing that was compared."""

    what: str
    outcome: str  # "equal", or what differs, or why it was not compared
    is_good: bool


def verify(run: str | os.PathLike, source: str | os.PathLike | None = None) -> list[Check]:
    """Repeat the checks of an imported model's certificate.

    Args:
      run: the directory of the imported model.
      source: the files it was read from, if they are elsewhere now.

    Raises:
      UsageError: the directory has no certificate, or no model.
      FailureError: the certificate is damaged.
    """
    directory = as_path(run)
    certificate = _read(directory / CERTIFICATE)
    trained = load_trained(directory, None)
    return [
        _compare("weights of the run", certificate["result"]["sha256"], trained.sha256),
        *_check_kinds(certificate, directory, trained),
        *_check_source(certificate, trained, source),
        _check_image(certificate.get("image"), trained),
    ]


def _read(path: pathlib.Path) -> dict[str, Any]:
    with reporting(path, "read"):
        if not path.exists():
            raise UsageError(
                f"{path.parent} has no {path.name}: it was not made by `ddpm-jax import`."
            )
        data = read_file(path)
    try:
        return parse(data, _CERTIFICATE)
    except Malformed as error:
        raise FailureError(f"{path} is damaged: {error}.") from error


def _compare(what: str, wanted: str, found: str) -> Check:
    good = wanted == found
    return Check(what, "equal" if good else f"SHA-256 {found[:12]}, was {wanted[:12]}", good)


def _check_kinds(
    certificate: dict[str, Any], directory: pathlib.Path, trained: TrainedModel
) -> list[Check]:
    """Compare the weights that images are not made with; and which kinds there are."""
    kept, first = certificate["weights"], certificate["result"]["weights"]
    checks = []
    if first not in kept:
        checks.append(Check(f"{first} weights", "the certificate has no digests of them", False))
    other = "raw" if first == "ema" else "ema"
    what = f"{other} weights of the run"
    try:
        found = load_trained(directory, None, raw_weights=other == "raw")
    except UsageError as error:
        return checks + ([Check(what, f"not read: {error}", False)] if other in kept else [])
    # without an average the weights as trained are what is read, which have been compared
    is_there = found.average == other and found.sha256 != trained.sha256
    if not is_there and other not in kept:
        return checks
    if other not in kept:
        return [*checks, Check(what, "the certificate has none", False)]
    wanted = kept[other].get("in_the_run")
    if wanted is None:
        missing = "the certificate has no digest of them, as those of old versions have none"
        return [*checks, Check(what, f"{missing}: import the files again", False)]
    return [*checks, _compare(what, wanted, found.sha256)]


def _check_source(
    certificate: dict[str, Any], trained: TrainedModel, source: str | os.PathLike | None
) -> list[Check]:
    asked, read_from = certificate["asked_for"], certificate["source"]
    if source is None and not is_container(as_path(read_from["path"])):
        name = read_from.get("hub")
        where = f"give {name} as source" if name else "say by source where"
        gone = f"not compared: the files are gone, {where}"
        return [Check(f"tensors in {read_from['path']}", gone, is_good=True)]
    source = source or read_from["path"]
    what = f"tensors in {source}"
    try:
        options = FileOptions(fields=asked["fields"], preset=asked.get("preset"))
        foreign = open_network(source, options).foreign
        checks = _check_fields(certificate["fields"], foreign, what)
        for kind, said in certificate["weights"].items():
            if kind not in foreign.weights:
                raise UsageError(f"they have no {kind} weights")
            params = foreign.read(foreign.weights[kind], trained.model.network)
            digest = check_written_back(foreign, kind, params, trained.model.network)
            name = f"{kind} weights in {source}, read and written back"
            checks.append(_compare(name, said["sha256"], digest))
    except OtherNetwork as error:
        other = f"other files: of another network than the run's. {error.what}."
        return [Check(what, other, is_good=False)]
    except UsageError as error:
        return [Check(what, f"other files: {error}", is_good=False)]
    return checks


def _check_fields(said: dict[str, Any], foreign: Foreign, what: str) -> list[Check]:
    """Return what the files say otherwise than when they were imported, of fields known to both."""
    found = json.loads(json.dumps(dict(foreign.fields)))
    differing = [
        f"{name} is {found[name]}, was {said[name]}"
        for name in sorted(found.keys() & said.keys())
        if found[name] != said[name]
    ]
    more = f", and {len(differing) - 3} more differ" if differing[3:] else ""
    outcome = f"other files: {', '.join(differing[:3])}{more}"
    return [Check(what, outcome, is_good=False)] if differing else []


def _check_image(said: dict[str, float] | None, trained: TrainedModel) -> Check:
    size = {name: said[name] for name in ("height", "width") if name in (said or {})}
    found = smoke_image(trained, size)
    if found is None:
        return Check("image", "none is made of this model", is_good=said is None)
    if said is None:
        return Check("image", "the certificate has none, and this model makes one", is_good=False)
    differing = [
        f"{name} {found[name]:.6g}, was {said[name]:.6g}"
        for name in _STATISTICS
        if not np.isclose(found[name], said[name], 0, TOLERANCE)
    ]
    return Check("image", ", ".join(differing) or "equal", not differing)
