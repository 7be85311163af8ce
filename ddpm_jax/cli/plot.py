"""`python -m ddpm_jax.cli.plot RUN ...`: training runs beside each other, as one PNG and a table.

    python -m ddpm_jax.cli.plot runs/digits runs/digits_cond
    python -m ddpm_jax.cli.plot runs/* --metrics loss,loss_q1,grad_norm --x seconds --smooth 0.95
    --out curves.png

A RUN is the --workdir of a train.py. Beside its name in the legend stand the config fields that
differ between the runs where they are one or two. The table has all, and the mean of each metric
over the last tenth of the run's records.
"""

import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.cli.command import Parser, run
from ddpm_jax.errors import UsageError, choose, say, suggest
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.run_settings import DATASET, FIRST_STAGE, INIT_FROM, read_settings
from ddpm_jax.files import absolute, as_path, check_place, is_remote, reporting
from ddpm_jax.monitoring.records import RECORDS, SECONDS, Record, read
from ddpm_jax.monitoring.results import format_table
from ddpm_jax.plotting.runs import Curve, compare_runs
from ddpm_jax.schema import shown

CONFIG_FILE = "config.json"
X_AXES = {"step": "step", "seconds": "seconds of training", "images": "training images seen"}
_OF_SPEED = ("data.cache", "model.remat", "train.steps_per_call")
_NO_MATTER = set(configs.RESUMABLE) - set(_OF_SPEED)  # fields of no consequence for a curve
_IN_LEGEND = 2  # differing fields


class Run(NamedTuple):
    """What is on disk of a run."""

    name: str
    records: list[Record]
    config: dict[str, Any]  # dotted names, completed by today's defaults; {} where it is missing


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code; see `command.run` for the errors."""
    parser = Parser(__doc__, arguments=True, computes=False)
    parser.string(
        "metrics",
        "loss",
        "What to draw, a panel each; a name that does not exist lists them.",
        metavar="NAMES",
    )
    parser.string("x", "step", f"Over what: {', '.join(X_AXES)}.", metavar="NAME")
    parser.number(
        "smooth",
        None,
        "How slowly the weights of the smoothed line fall off from record to record, at least 0, "
        "for none, and below 1; by default over an eightieth of the longest run.",
        valid=lambda value: 0 <= value < 1,
        wanted="of at least 0 and below 1",
    )
    parser.path(
        "out", "plot.png", "The picture; one that is there is replaced.", metavar="FILE.png"
    )
    flags = parser.parse(argv)
    smoothing, out = flags.smooth, _picture(flags.out)
    choose("x axis", flags.x, X_AXES)
    runs = _load(parser.arguments)
    if smoothing is None:
        smoothing = math.exp(-80 / max(len(run.records) for run in runs))
    names = flags.metrics.split(",")
    known = sorted({name for run in runs for record in run.records for name in record} - {"step"})
    for name in names:
        choose("metric", name, dict.fromkeys(known))
    differing = _differing(runs)
    labels = [_label(run, differing) for run in runs]
    panels = {
        name: [
            Curve(label, x, y)
            for label, run in zip(labels, runs, strict=True)
            for x, y in [_curve(run, name, flags.x)]
            if np.any(np.isfinite(x) & np.isfinite(y))
        ]
        for name in names
    }
    empty = [name for name, curves in panels.items() if not curves]
    if empty:
        raise UsageError(f"No run has a finite value of {empty[0]!r}: leave it out of --metrics.")
    with reporting(out):
        compare_runs(out, panels, xlabel=X_AXES[flags.x], smoothing=smoothing)
    say(_table(runs, names, differing))
    say(f"wrote {out}")
    return 0


def _picture(text: str) -> pathlib.Path:
    out = as_path(text)
    if out.suffix.lower() != ".png" or out.is_dir():
        raise UsageError(f"--out {text} is not the name of a PNG: choose one that ends in .png.")
    return out


def _load(paths: Sequence[str]) -> list[Run]:
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
        beside = sorted(map(str, folder.parent.glob("*/"))) if folder.parent.is_dir() else []
        raise UsageError(
            f"There is no directory {folder}.{suggest(str(folder), beside)} Name the --workdir of "
            "a run."
        )
    records = read(folder)
    if not records:
        inside = sorted(str(path.parent) for path in folder.glob(f"*/{RECORDS}"))
        remedy = (
            f"name the runs in it, such as {inside[0]}"
            if inside
            else "name the --workdir of a run that has got as far as its first train.log_every steps"
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
    """The config fields that are not the same in all runs that have a config."""
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
    """Returns x [n] and y [n] of the records that hold the metric."""
    records = [record for record in run.records if metric in record]
    y = np.array([record[metric] for record in records], np.float64)
    if over == "seconds":
        if not any(SECONDS in record for record in run.records):
            raise UsageError(
                f"The records of {run.name} are of a version that kept no seconds: use --x step or "
                "images."
            )
        return np.array([record.get(SECONDS, np.nan) for record in records], np.float64), y
    scale = 1
    if over == "images":
        if not run.config:
            raise UsageError(
                f"{run.name} has no {CONFIG_FILE} to read its batch size from: use --x step."
            )
        scale = run.config["train.batch_size"]
        if not isinstance(scale, int) or isinstance(scale, bool):
            raise UsageError(
                f"The batch size in {CONFIG_FILE} of {run.name} is {shown(scale)}: use --x step."
            )
    return np.array([record["step"] * scale for record in records], np.float64), y


def _table(runs: Sequence[Run], metrics: Sequence[str], differing: Sequence[str]) -> str:
    """A column for each run."""
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


if __name__ == "__main__":
    sys.exit(run(main))
