"""A metric of a model and its result: numbers for a record, a text, a picture, their files."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.evaluation.tally import Estimate
from ddpm_jax.experiments.identity import checkpoint_record, versions
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.files import reporting
from ddpm_jax.measuring.evaluation_settings import EvaluatedImages, Evaluation
from ddpm_jax.monitoring.results import machine, write_record


class Measurement(NamedTuple):
    """The result of a metric."""

    values: dict[str, Any]  # its numbers, and the settings they depend on
    text: str  # the same in readable form
    suffix: str = ""  # of the files' names, where one checkpoint has many results of this metric
    draw: Callable[[pathlib.Path], None] | None = None  # makes the PNG


class Metric(NamedTuple):
    """A measure of the quality of a model, and the settings it takes."""

    # (model, images, settings, directory of results or None) -> `Measurement`
    measure: Callable[
        [TrainedModel, EvaluatedImages, Any, pathlib.Path | None],
        Measurement,
    ]
    settings: type[Evaluation]  # record that `measure` takes


def result_path(directory: pathlib.Path, name: str, trained: TrainedModel, suffix: str):
    """Return the path of a file about a checkpoint."""
    return directory / f"{name}_step{trained.step}_{trained.average}{suffix}"


def record_of(name: str, found: Measurement, trained: TrainedModel, *, seed: int) -> dict[str, Any]:
    """Return the record of a metric, which says how to repeat its numbers."""
    return {
        "metric": name,
        **checkpoint_record(trained),
        "seed": seed,
        **machine(),
        "versions": versions(),
        **found.values,
    }


def write_measurement(
    name: str, found: Measurement, trained: TrainedModel, *, seed: int, directory: pathlib.Path
) -> list[pathlib.Path]:
    """Write the record of a metric as JSON, and its picture, if any; return their paths.

    Raises:
      FailureError: a file cannot be written.
    """
    record = record_of(name, found, trained, seed=seed)
    path = result_path(directory, name, trained, f"{found.suffix}.json")
    write_record(path, record)
    if found.draw is None:
        return [path]
    with reporting(path.with_suffix(".png")):
        found.draw(path.with_suffix(".png"))
    return [path, path.with_suffix(".png")]


def with_error(estimate: Estimate) -> str:
    """Return an estimate and its standard error over images as text."""
    return f"{estimate.mean:.4f} ± {estimate.standard_error:.4f}"


def note_on_draws(total: Estimate) -> list[str]:
    """Return the line about the error due to the draws; none for a single draw."""
    if np.isnan(total.standard_error_draws):
        return []
    return [
        f"± {total.standard_error_draws:.2g} of the total is due to the draws: another --seed "
        "moves it by so much"
    ]
