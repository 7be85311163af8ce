"""Curves and a table of several training runs."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.errors import UsageError, choose, suggest
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.run_settings import DATASET, FIRST_STAGE, INIT_FROM, read_settings
from ddpm_jax.files import absolute, as_path, check_place, is_remote, reporting
from ddpm_jax.monitoring.records import RECORDS, SECONDS, Record, read
from ddpm_jax.monitoring.results import format_table
from ddpm_jax.plotting.runs import Curve, compare_runs
from ddpm_jax.schema import format_value
from ddpm_jax.settings import Settings, setting

CONFIG_FILE = "config.json"
X_AXES = {"step": "step", "seconds": "seconds of training", "images": "training images seen"}
_OF_SPEED = ("data.cache", "model.remat", "train.steps_per_call")
_NO_MATTER = set(configs.RESUMABLE) - set(_OF_SPEED)  # fields of no consequence for a curve
_IN_LEGEND = 2  # differing fields


class Run(NamedTuple):
    """A run as read from disk."""

    name: str
    records: list[Record]
    config: dict[str, Any]  # dotted names, completed by today's defaults; {} where it is missing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves(Settings):
    """Settings of the curves."""

    metrics: tuple[str, ...] = setting(
        ("loss",),
        "What to draw, a panel each; a name that does not exist lists them.",
        metavar="NAMES",
    )
    x: str = setting("step", f"Over what: {', '.join(X_AXES)}.", metavar="NAME")
    smooth: float | None = setting(
        None,
        "How slowly the weights of the smoothed line fall off from record to record, at least 0, "
        "for none, and below 1; by default over an eightieth of the longest run.",
        valid=lambda value: 0 <= value < 1,
        wanted="of at least 0 and below 1",
    )

    def __post_init__(self) -> None:
        """Check every field; of x also that there is such an axis."""
        super().__post_init__()
        choose("x axis", self.x, X_AXES)


def draw_runs(runs: Sequence[Run], settings: Curves, out: pathlib.Path) -> None:
    """Draw curves of runs into a PNG, replacing an existing one.

    Raises:
      UsageError: an unknown metric, or one without a finite value in any run. FailureError: the
        file cannot be written.
    """
    smoothing = settings.smooth
    if smoothing is None:
        smoothing = math.exp(-80 / max(len(run.records) for run in runs))
    panels = make_panels(runs, settings)
    with reporting(out):
        compare_runs(out, panels, xlabel=X_AXES[settings.x], smoothing=smoothing)


def make_panels(runs: Sequence[Run], settings: Curves) -> dict[str, list[Curve]]:
    """Return the curves of each metric, one for each run.

    Raises:
      UsageError: an unknown metric, or one of which no run has a finite value.
    """
    known = sorted({name for run in runs for record in run.records for name in record} - {"step"})
    for name in settings.metrics:
        choose("metric", name, dict.fromkeys(known))
    differing = _differing(runs)
    labels = [_label(run, differing) for run in runs]
    panels = {
        name: [
            Curve(label, x, y)
            for label, run in zip(labels, runs, strict=True)
            for x, y in [_curve(run, name, settings.x)]
            if np.any(np.isfinite(x) & np.isfinite(y))
        ]
        for name in settings.metrics
    }
    empty = [name for name, curves in panels.items() if not curves]
    if empty:
        raise UsageError(f"No run has a finite value of {empty[0]!r}: leave it out of metrics.")
    return panels


def load_runs(paths: Sequence[str]) -> list[Run]:
    """Read the records and configs of runs.

    Raises:
      UsageError: none is named, one is named twice, or has no records.
      FailureError: a file cannot be read.
    """
    if not paths:
        raise UsageError(
            "No run is named: name the directories of some, as in runs/digits runs/digits_cond."
        )
    folders = [as_path(path) for path in paths]
    for i, folder in enumerate(folders):
        if _resolved(folder) in map(_resolved, folders[:i]):
            raise UsageError(f"{folder} is named twice: name every run once.")
    lasts = [absolute(folder).name for folder in folders]
    # The last part of the path is enough where it tells the runs apart.
    names = lasts if len(set(lasts)) == len(lasts) else [str(folder) for folder in folders]
    return [_read(name, folder) for name, folder in zip(names, folders, strict=True)]


def _resolved(folder: pathlib.Path) -> pathlib.Path:
    return folder if is_remote(folder) else folder.resolve()


def _read(name: str, folder: pathlib.Path) -> Run:
    check_place(folder, flag=str(folder))
    if not folder.is_dir():
        nearby = sorted(map(str, folder.parent.glob("*/"))) if folder.parent.is_dir() else []
        raise UsageError(
            f"There is no directory {folder}.{suggest(str(folder), nearby)} Name the --workdir of "
            "a run."
        )
    records = read(folder)
    if not records:
        inside = sorted(str(path.parent) for path in folder.glob(f"*/{RECORDS}"))
        remedy = (
            f"name the runs in it, such as {inside[0]}"
            if inside
            else "name the --workdir of a run that has got as far as its first train.log_every "
            "steps"
        )
        raise UsageError(
            f"There are no records in {folder} ({RECORDS} is missing or empty): {remedy}."
        )
    return Run(name, records, _read_config(folder / CONFIG_FILE))


def _read_config(path: pathlib.Path) -> dict[str, Any]:
    theirs = read_settings(path)
    if theirs is None:
        return {}
    theirs.pop(DATASET, None)
    theirs.pop(INIT_FROM, None)
    theirs[FIRST_STAGE] = theirs.get(FIRST_STAGE, {}).get("sha256")  # without the config of it
    return dict(configs.flatten(configs.to_dict(configs.default_config()))) | dict(
        configs.flatten(theirs)
    )


def _differing(runs: Sequence[Run]) -> list[str]:
    """Return the config fields that differ between the runs that have a config."""
    configured = [run.config for run in runs if run.config]
    names = list(
        dict.fromkeys(name for config in configured for name in config if name not in _NO_MATTER)
    )
    return [
        name for name in names if any(c.get(name) != configured[0].get(name) for c in configured)
    ]


def _label(run: Run, differing: Sequence[str]) -> str:
    if not run.config or not 0 < len(differing) <= _IN_LEGEND:
        return run.name
    return f"{run.name} ({', '.join(f'{name}={run.config.get(name)}' for name in differing)})"


def _curve(run: Run, metric: str, over: str) -> tuple[np.ndarray, np.ndarray]:
    """Return x [n] and y [n] of the records that hold the metric."""
    records = [record for record in run.records if metric in record]
    y = np.array([record[metric] for record in records], np.float64)
    if over == "seconds":
        if not any(SECONDS in record for record in run.records):
            raise UsageError(
                f"The records of {run.name} are of a version that kept no seconds: use x step or "
                "images."
            )
        return np.array([record.get(SECONDS, np.nan) for record in records], np.float64), y
    scale = 1
    if over == "images":
        if not run.config:
            raise UsageError(
                f"{run.name} has no {CONFIG_FILE} to read its batch size from: use x step."
            )
        scale = run.config["train.batch_size"]
        if not isinstance(scale, int) or isinstance(scale, bool):
            raise UsageError(
                f"The batch size in {CONFIG_FILE} of {run.name} is {format_value(scale)}: "
                "use x step."
            )
    return np.array([record["step"] * scale for record in records], np.float64), y


def format_runs(runs: Sequence[Run], metrics: Sequence[str]) -> str:
    """Return a table of the last metrics and the config fields that differ, a column a run."""
    differing = _differing(runs)
    rows: list[list[Any]] = [["step", *(run.records[-1]["step"] for run in runs)]]
    if any(SECONDS in record for run in runs for record in run.records):
        rows.append([SECONDS, *(max(_values(run, SECONDS), default=math.nan) for run in runs)])
    rows += [[name, *(_last(run, name) for run in runs)] for name in metrics]
    rows += [[name, *(run.config.get(name, "-") for run in runs)] for name in differing]
    return format_table(["", *(run.name for run in runs)], rows)


def _last(run: Run, metric: str) -> float:
    values = _values(run, metric)
    return float(np.mean(values[-max(1, len(values) // 10) :])) if values else math.nan


def _values(run: Run, metric: str) -> list[float]:
    return [record[metric] for record in run.records if math.isfinite(record.get(metric, math.nan))]
