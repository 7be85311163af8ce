"""`Model.evaluate`: metrics of samples from the arguments of a Python call."""

import os
from collections.abc import Sequence
from typing import Any

from ddpm_jax.distributed import hosts
from ddpm_jax.distributed.interrupt import Interrupt
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.files import as_path
from ddpm_jax.measuring.evaluation_settings import EvaluatedImages, FeatureQuality, Features
from ddpm_jax.measuring.feature_metrics import parse_metrics
from ddpm_jax.measuring.measurement import record_of, write_measurement
from ddpm_jax.measuring.sample_features import measure_samples
from ddpm_jax.randomness import check_settings
from ddpm_jax.settings import check_names, field_names
from ddpm_jax.tasks.call_arguments import sampling_from
from ddpm_jax.tasks.sampling_settings import Sampling

_PROMISE = "stopping, with whole batches of samples kept; Ctrl-C again leaves at once"


def evaluate_samples(
    trained: TrainedModel,
    metrics: str | Sequence[str],
    out: str | os.PathLike | None,
    **settings: Any,
) -> dict[str, dict[str, Any]]:
    """Return metric -> record of one set of samples; see `Model.evaluate`.

    Raises:
      UsageError: an unknown metric or setting; what `measure_samples` raises.
      FailureError: see `measure_samples`.
    """
    check_settings()
    names = parse_metrics(metrics)
    kinds = (EvaluatedImages, FeatureQuality, Features, Sampling)
    fields = {kind: set(field_names(kind)) for kind in kinds}
    fields[FeatureQuality] -= {"sampling", "compared"}
    check_names(sorted(set().union(*fields.values())), settings, "There is no setting")
    given = {
        kind: {name: value for name, value in settings.items() if name in fields[kind]}
        for kind in kinds
    }
    quality = FeatureQuality(
        **given[FeatureQuality],
        sampling=sampling_from(**given[Sampling]),
        compared=Features(**given[Features]),
    )
    directory = None if out is None else as_path(out)
    with Interrupt(_PROMISE):
        found = measure_samples(
            names, trained, EvaluatedImages(**given[EvaluatedImages]), quality, directory
        )
    writes = directory is not None and hosts.is_primary()
    for name, measurement in found.items() if writes else ():
        write_measurement(name, measurement, trained, seed=quality.seed, directory=directory)
    return {
        name: record_of(name, measurement, trained, seed=quality.seed)
        for name, measurement in found.items()
    }
