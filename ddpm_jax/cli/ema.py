"""`python -m ddpm_jax.cli.ema --ckpt DIR`: other averages of a run's weights than the one it is
sampled from.

    python -m ddpm_jax.cli.ema --ckpt runs/digits                                 what there is
    python -m ddpm_jax.cli.ema --ckpt runs/digits --sigma_rel 0.05,0.10,0.15      averages of these widths
    python -m ddpm_jax.cli.ema --ckpt runs/digits --average decay_0.999           one kept in training

A relative width is the standard deviation of the time that weights are averaged over, in units of
the run so far: 0.10 looks back over about a tenth of it (Karras et al. 2024). Any width can be made
of the snapshots that training saves with --config.ema.sigma_rels=0.05,0.10 and
--config.ema.snapshot_every=STEPS; how well is said by the error of the fit. --average takes any of
those of --config.ema.decays and ema.sigma_rels, from the newest checkpoint.

Every average is written to a directory of its own, runs/digits/ema/NAME; sample.py and evaluate.py
take it as --ckpt.
"""

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from ddpm_jax.checkpoints import snapshots
from ddpm_jax.checkpoints.reader import find_step, read_config, read_weights, saved_steps
from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.cli.command import Parser, check_names_a_run, how_to_call, prepare_jax, run
from ddpm_jax.errors import UsageError, choose, say
from ddpm_jax.experiments.datasets import check_places
from ddpm_jax.experiments.models import Model
from ddpm_jax.experiments.run_settings import frozen_first_stage, model_from_settings
from ddpm_jax.experiments.training import averages_of, snapshot_names
from ddpm_jax.files import as_path, check_place, reporting, write_atomically
from ddpm_jax.limits import MAX_STEP
from ddpm_jax.locks import hold
from ddpm_jax.training.ema_profiles import WIDEST, Fit, Profile, fit, gamma_of

AVERAGES = "ema"  # the directory in a run's where they are written
RECORD = "average.json"


class Run(NamedTuple):
    """What is on disk of a run."""

    workdir: pathlib.Path
    model: Model
    saved_config: dict[str, Any]
    step: int  # of the newest checkpoint, or of the one asked for
    snapshots: list[int]  # steps, up to `step`


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code; see `command.run` for the errors."""
    parser = Parser(__doc__)
    parser.path(
        "ckpt", None, "Directory of a training run: the --workdir of train.py.", metavar="DIR"
    )
    parser.numbers(
        "sigma_rel",
        None,
        "Relative widths of averages to make of the snapshots.",
        metavar="X,X",
        valid=lambda value: 0 < value < WIDEST,
        wanted=f"above 0 and below {WIDEST:.4f}",
    )
    parser.string("average", None, "One that was kept in training, by its name.", metavar="NAME")
    parser.integer(
        "ckpt_step",
        None,
        "The step the averages end at: a snapshot's, or a checkpoint's; by default the newest.",
        lower=1,
        upper=MAX_STEP,
    )
    parser.path(
        "out",
        None,
        f"Directory for the results; by default {AVERAGES} in the run's.",
        metavar="DIR",
    )
    flags = parser.parse(argv)
    check_names_a_run(flags)
    if flags.sigma_rel and flags.average:
        raise UsageError(
            "--sigma_rel makes averages and --average takes one that was kept: give one of them."
        )
    widths = flags.sigma_rel or []
    prepare_jax(flags)
    found = _open(as_path(flags.ckpt), flags.ckpt_step if flags.average else None)
    out = as_path(flags.out or found.workdir / AVERAGES)
    check_place(out, flag="--out", writing=True)
    check_places(found.model.config.data, out=flags.out)
    if flags.average:
        _export(found, flags.average, out)
    elif widths:
        steps = _steps_until(found, flags.ckpt_step)
        for width in widths:
            _reconstruct(found, width, steps, out)
    else:
        say(_listing(found))
    return 0


def _open(workdir: pathlib.Path, step: int | None) -> Run:
    step = find_step(workdir, step)
    saved = read_config(workdir, step)
    model = model_from_settings(saved, source=f"the config of {workdir}, step {step}")
    return Run(workdir, model, saved, step, snapshots.saved_steps(workdir))


def _listing(found: Run) -> str:
    config = found.model.config
    kept = ", ".join(averages_of(config)) or "none beside the one that is sampled from"
    if not found.snapshots:
        saved = "none"
    else:
        ends = f"from step {found.snapshots[0]} to {found.snapshots[-1]}"
        saved = f"{len(found.snapshots)}, {ends}, of {' and '.join(snapshot_names(config))}"
    made = sorted(path.parent.name for path in (found.workdir / AVERAGES).glob(f"*/{RECORD}"))
    return f"averages kept, at step {found.step}: {kept}\nsnapshots: {saved}\nmade: {', '.join(made) or 'none'}"


def _steps_until(found: Run, last: int | None) -> list[int]:
    """The snapshots up to `last`, a step that has one.

    Raises:
      UsageError: there are none, or not that one.
    """
    if not found.snapshots:
        raise UsageError(
            f"{found.workdir} has no snapshots of averages: train with "
            "--config.ema.sigma_rels=0.05,0.10 and --config.ema.snapshot_every=STEPS to have some."
        )
    if last is not None and last not in found.snapshots:
        near = min(found.snapshots, key=lambda step: abs(step - last))
        raise UsageError(
            f"{found.workdir} has no snapshot of step {last}: the nearest is that of step {near}."
        )
    return [step for step in found.snapshots if last is None or step <= last]


def _reconstruct(found: Run, width: float, steps: Sequence[int], out: pathlib.Path) -> None:
    """Makes the average of a width out of the snapshots of `steps`, as it is at the last of
    them."""
    name, end, names = f"sigma_rel_{width}", steps[-1], snapshot_names(found.model.config)
    saved = [Profile(gamma_of(other), step) for step in steps for other in names.values()]
    made: Fit = fit(Profile(gamma_of(width), end), saved)
    coefficients = made.coefficients.reshape(len(steps), len(names))
    record = {
        "sigma_rel": width,
        "step": end,
        "fit_error": made.error,
        "of": list(names),
        "snapshots": list(steps),
        "coefficients": coefficients.tolist(),
    }
    with hold(out / name, "averaging weights into it"):
        _check_new(out / name, end)
        shapes = found.model.params_shapes()
        params = snapshots.combine(found.workdir, steps, list(names), coefficients, shapes)
        _write(out / name, end, params, found, record)
    say(
        f"the average of width {width} at step {end}, of {len(saved)} averages in {len(steps)} "
        f"snapshots; the profile is {100 * made.error:.2g} % off\n"
        f"  {how_to_call('sample')} --ckpt {out / name}"
    )


def _export(found: Run, name: str, out: pathlib.Path) -> None:
    names = averages_of(found.model.config)
    if not names:
        raise UsageError(
            f"{found.workdir} keeps no average but the one that is sampled from: train with "
            "--config.ema.decays=0.999, say, to have more."
        )
    choose("average", name, names)
    with hold(out / name, "averaging weights into it"):
        _check_new(out / name, found.step)
        shapes = found.model.params_shapes()
        saved = read_weights(
            found.workdir, found.step, {"averages": {kept: shapes for kept in names}}
        )
        _write(
            out / name,
            found.step,
            saved["averages"][name],
            found,
            {"average": name, "step": found.step},
        )
    sample = f"{how_to_call('sample')} --ckpt {out / name}"
    say(f"the average {name} at step {found.step}\n  {sample}")


def _check_new(directory: pathlib.Path, step: int) -> None:
    if step in saved_steps(directory):
        raise UsageError(
            f"{directory} holds this average at step {step} already: sample from it, remove it, or "
            "name another directory with --out."
        )


def _write(
    directory: pathlib.Path, step: int, params: Any, found: Run, record: dict[str, Any]
) -> None:
    """Writes weights as the EMA of a checkpoint that has nothing else but the first stage, and how
    they were made."""
    state = {"ema_params": params}
    if frozen_first_stage(found.model) is not None:
        template = {"frozen": found.model.frozen_shapes()}
        state |= read_weights(found.workdir, found.step, template)
    checkpointer = Checkpointer(directory, keep_last=1, keep_every=1)
    checkpointer.save(step, state, {}, found.saved_config)
    checkpointer.close()
    with reporting(directory / RECORD):
        write_atomically(directory / RECORD, (json.dumps(record, indent=2) + "\n").encode())


if __name__ == "__main__":
    sys.exit(run(main))
