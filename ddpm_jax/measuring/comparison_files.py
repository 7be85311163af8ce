"""A comparison of samplers on disk: a JSON record, a picture, and the printed table."""

import pathlib
from typing import Any

import numpy as np

from ddpm_jax.experiments.identity import versions
from ddpm_jax.files import reporting
from ddpm_jax.measuring.compared_model import ComparedModel
from ddpm_jax.measuring.sampler_comparison import (
    PLANE_SAMPLES,
    Compared,
    Comparison,
    compare_samplers,
)
from ddpm_jax.monitoring.results import check_record, format_table, machine, write_record
from ddpm_jax.plotting.sampler_errors import Measure, error_against_evaluations


def write_comparison(
    settings: Comparison, model: ComparedModel | None, directory: pathlib.Path
) -> tuple[Compared, list[pathlib.Path]]:
    """Compare samplers and write the record and the picture; return these and their paths.

    Raises:
      UsageError: results with other settings exist; what `compare_samplers` raises.
      FailureError: a file cannot be written.
    """
    name = "" if model is None else model.name
    path = directory / f"samplers{name}_{settings.spacing}_seed{settings.seed}.json"
    record = _record(settings, model)
    check_record(path, record)
    found = compare_samplers(settings, model)
    write_record(path, record | {"floors": found.floors, "rows": found.rows})
    with reporting(path.with_suffix(".png")):
        error_against_evaluations(path.with_suffix(".png"), _measures(found))
    return found, [path, path.with_suffix(".png")]


def describe(found: Compared) -> str:
    """Return the table of a comparison, and the errors due to chance alone."""
    rows = [list(row.values()) for row in found.rows]
    floors = ", ".join(f"{key} {value:.4g}" for key, value in found.floors.items())
    return f"{format_table(list(found.rows[0]), rows)}\nwhat chance alone leaves: {floors}"


def _record(settings: Comparison, model: ComparedModel | None) -> dict[str, Any]:
    """Return the settings that the numbers depend on."""
    record = {
        "samplers": settings.names,
        "evaluations": settings.budgets,
        "spacing": settings.spacing,
        "seed": settings.seed,
        "mixture_samples": PLANE_SAMPLES,
    }
    return record | (model.record if model else {}) | machine() | {"versions": versions()}


def _measures(found: Compared) -> list[Measure]:
    """Return the panels of the picture, a line for each sampler."""
    panels = {
        "mixture_flow": ("mixture: distance to the flow", "RMSE", None),
        "mixture_energy": ("mixture: distance to the data", "energy distance", "exact draws"),
        "frechet": (
            "model: distance to the training images",
            "Frechet distance of pixels",
            "held-out images",
        ),
    }
    return [
        Measure(
            title,
            ylabel,
            _lines(found.rows, key),
            (floor, found.floors[key]) if key in found.floors else None,
        )
        for key, (title, ylabel, floor) in panels.items()
        if key in found.rows[0]
    ]


def _lines(rows: list[dict[str, Any]], key: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return sampler -> (evaluations, errors), without those that have none."""
    lines = {}
    for name in dict.fromkeys(row["sampler"] for row in rows):
        points = [(row["evaluations"], row[key]) for row in rows if row["sampler"] == name]
        if not all(np.isnan(value) for _, value in points):
            evaluations, errors = (np.array(column) for column in zip(*points, strict=True))
            lines[name] = evaluations, errors
    return lines
