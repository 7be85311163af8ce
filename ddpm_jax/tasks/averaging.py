"""Averages of a run's weights other than the EMA, written as runs of their own."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from ddpm_jax.checkpoints import snapshots
from ddpm_jax.checkpoints.reader import find_step, read_config, read_weights, saved_steps
from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.experiments.first_stages import FirstStageModel
from ddpm_jax.experiments.model_files import is_foreign
from ddpm_jax.experiments.models import Model
from ddpm_jax.experiments.run_settings import model_from_settings
from ddpm_jax.experiments.texts import find_tokenizer, keep_tokenizer
from ddpm_jax.experiments.trainer import configured_averages, snapshot_names
from ddpm_jax.files import as_path, reporting, write_atomically
from ddpm_jax.limits import MAX_STEP
from ddpm_jax.locks import hold
from ddpm_jax.settings import Settings, setting
from ddpm_jax.training.ema_profiles import WIDEST, Fit, Profile, fit, gamma_from_sigma_rel

AVERAGES = "ema"  # where they are written, in the run's directory
RECORD = "average.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Averaging(Settings):
    """Which averages to make."""

    sigma_rel: tuple[float, ...] | None = setting(
        None,
        "Relative widths of averages to make of the snapshots.",
        metavar="X,X",
        valid=lambda value: 0 < value < WIDEST,
        wanted=f"above 0 and below {WIDEST:.4f}",
    )
    average: str | None = setting(None, "One that was kept in training, by its name.")
    step: int | None = setting(
        None,
        "The step the averages end at: a snapshot's, or a checkpoint's; by default the newest.",
        flag="ckpt_step",
        lower=1,
        upper=MAX_STEP,
    )

    def __post_init__(self) -> None:
        """Check every field, and that the averages are of one kind."""
        super().__post_init__()
        if self.sigma_rel and self.average:
            raise UsageError(
                "sigma_rel makes averages and average takes one that was kept: give one of them."
            )


class Run(NamedTuple):
    """A run as read from disk."""

    workdir: pathlib.Path
    model: Model
    saved_config: dict[str, Any]
    step: int  # of the newest checkpoint, or of the one asked for
    snapshots: list[int]  # steps, up to `step`


class Average(NamedTuple):
    """An average that was written."""

    directory: pathlib.Path
    description: str  # in words


def open_run(workdir: pathlib.Path, averaging: Averaging) -> Run:
    """Read the config and the steps of a run from disk.

    Raises:
      UsageError: no such checkpoint, or not one of this package.
      FailureError: its files are damaged.
    """
    if is_foreign(workdir):
        raise UsageError(
            f"{workdir} holds the weights of Stable Diffusion alone, and averages are made of "
            "what a training run keeps: name the directory of a run."
        )
    step = find_step(workdir, averaging.step if averaging.average else None)
    saved = read_config(workdir, step)
    model = model_from_settings(saved, source=f"the config of {workdir}, step {step}")
    return Run(as_path(workdir), model, saved, step, snapshots.saved_steps(workdir))


def make_averages(run: Run, averaging: Averaging, out: pathlib.Path) -> Iterator[Average]:
    """Write the averages asked for into directories of their own in `out`; yield each.

    Raises:
      UsageError: there are no snapshots or averages, or not these; one is there already.
      FailureError: a file is damaged or cannot be written.
    """
    if averaging.average:
        yield _export(run, averaging.average, out)
    if averaging.sigma_rel:
        steps = _steps_until(run, averaging.step)
        for width in averaging.sigma_rel:
            yield _reconstruct(run, width, steps, out)


def describe(run: Run) -> str:
    """Return which averages and snapshots a run has, in three lines."""
    config = run.model.config
    kept = ", ".join(configured_averages(config)) or "none besides the one that is sampled from"
    if not run.snapshots:
        saved = "none"
    else:
        ends = f"from step {run.snapshots[0]} to {run.snapshots[-1]}"
        saved = f"{len(run.snapshots)}, {ends}, of {' and '.join(snapshot_names(config))}"
    made = sorted(path.parent.name for path in (run.workdir / AVERAGES).glob(f"*/{RECORD}"))
    return (
        f"averages kept, at step {run.step}: {kept}\nsnapshots: {saved}\n"
        f"made: {', '.join(made) or 'none'}"
    )


def _steps_until(run: Run, last: int | None) -> list[int]:
    """Return the steps of the snapshots up to `last`, which must have one."""
    if not run.snapshots:
        raise UsageError(
            f"{run.workdir} has no snapshots of averages: train with "
            "--config.ema.sigma_rels=0.05,0.10 and --config.ema.snapshot_every=STEPS to have some."
        )
    if last is not None and last not in run.snapshots:
        near = min(run.snapshots, key=lambda step: abs(step - last))
        raise UsageError(
            f"{run.workdir} has no snapshot of step {last}: the nearest is that of step {near}."
        )
    return [step for step in run.snapshots if last is None or step <= last]


def _reconstruct(run: Run, width: float, steps: Sequence[int], out: pathlib.Path) -> Average:
    """Compute the average of a width at the last of the snapshots in `steps`."""
    directory, end, names = (
        out / f"sigma_rel_{width}",
        steps[-1],
        snapshot_names(run.model.config),
    )
    saved = [
        Profile(gamma_from_sigma_rel(other), step) for step in steps for other in names.values()
    ]
    made: Fit = fit(Profile(gamma_from_sigma_rel(width), end), saved)
    coefficients = made.coefficients.reshape(len(steps), len(names))
    record = {
        "sigma_rel": width,
        "step": end,
        "fit_error": made.error,
        "of": list(names),
        "snapshots": list(steps),
        "coefficients": coefficients.tolist(),
    }
    with hold(directory, "averaging weights into it"):
        _check_new(directory, end)
        shapes = run.model.params_shapes()
        params = snapshots.combine(run.workdir, steps, list(names), coefficients, shapes)
        _write(directory, end, params, run, record)
    return Average(
        directory,
        f"the average of width {width} at step {end}, of {len(saved)} averages in {len(steps)} "
        f"snapshots; the profile is {100 * made.error:.2g} % off",
    )


def _export(run: Run, name: str, out: pathlib.Path) -> Average:
    """Write an average that the checkpoint holds."""
    names = configured_averages(run.model.config)
    if not names:
        raise UsageError(
            f"{run.workdir} keeps no average but the one that is sampled from: train with "
            "--config.ema.decays=0.999, say, to have more."
        )
    choose("average", name, names)
    directory = out / name
    with hold(directory, "averaging weights into it"):
        _check_new(directory, run.step)
        shapes = run.model.params_shapes()
        saved = read_weights(run.workdir, run.step, {"averages": {kept: shapes for kept in names}})
        record = {"average": name, "step": run.step}
        _write(directory, run.step, saved["averages"][name], run, record)
    return Average(directory, f"the average {name} at step {run.step}")


def _check_new(directory: pathlib.Path, step: int) -> None:
    if step in saved_steps(directory):
        raise UsageError(
            f"{directory} holds this average at step {step} already: sample from it, remove it, or "
            "name another directory with --out."
        )


def _write(
    directory: pathlib.Path, step: int, params: Any, run: Run, record: dict[str, Any]
) -> None:
    """Write weights as the EMA of a checkpoint, with the first stage and a record."""
    state = {"ema_params": params}
    frozen = () if isinstance(run.model, FirstStageModel) else run.model.frozen_shapes()
    if jax.tree.leaves(frozen):
        state |= read_weights(run.workdir, run.step, {"frozen": frozen})
    checkpointer = Checkpointer(directory, keep_last=1, keep_every=1)
    checkpointer.save(step, state, {}, run.saved_config)
    checkpointer.close()
    keep_tokenizer(find_tokenizer(run.model.config, run.workdir), run.model.config, directory)
    with reporting(directory / RECORD):
        write_atomically(directory / RECORD, (json.dumps(record, indent=2) + "\n").encode())
