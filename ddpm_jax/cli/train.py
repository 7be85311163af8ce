"""`python train.py`: trains the experiment of a config in a directory of its own, or resumes it there.

    python train.py                                              the bundled 8x8 digits, into runs/digits
    python train.py --config configs/ddpm_cifar10.py --workdir runs/cifar10 --config.train.batch_size=256

Every field of the config, with its default, is listed in `ddpm_jax/cli/config.py`.
"""

import json
import os
import pathlib
import signal
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.cli import config as configs
from ddpm_jax.cli.command import INTERRUPTED, Parser, choose_platform
from ddpm_jax.cli.data import check_classes, load_split
from ddpm_jax.cli.experiment import Experiment, Training, build, build_training, check_batch, init_state, state_shapes
from ddpm_jax.cli.grids import grid_path, grid_writer, no_grid
from ddpm_jax.data import pipeline, sources
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.files import write_atomically
from ddpm_jax.plotting.curves import columns, loss_curve
from ddpm_jax.training import metrics, weights_and_biases
from ddpm_jax.training.checkpoint import Checkpointer
from ddpm_jax.training.loop import LoopOptions, train
from ddpm_jax.training.objective import QUARTILES
from ddpm_jax.training.parallel import map_step
from ddpm_jax.training.randomness import base_key

DEFAULT_CONFIG = "configs/digits.py"
CONFIG_FILE = "config.json"


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code; see `command.run` for the errors."""
    parser = Parser(__doc__)
    parser.string(
        "config", DEFAULT_CONFIG, "Config file; --config.FIELD=VALUE overrides one of its fields.", metavar="FILE"
    )
    parser.string(
        "workdir",
        None,
        "Directory of the run; by default runs/NAME for configs/NAME.py. Resumes what is there.",
        metavar="DIR",
    )
    parser.string(
        "wandb",
        None,
        "Show the run in this project of Weights & Biases, too; ENTITY/PROJECT for one of a team.",
        metavar="PROJECT",
    )
    overrides, rest = configs.split_overrides(argv)
    flags = parser.parse(rest)
    config = configs.override(configs.load_config(flags.config), overrides)
    workdir = pathlib.Path(flags.workdir or pathlib.Path("runs") / pathlib.Path(flags.config).stem)
    if flags.wandb is not None:
        weights_and_biases.load(flags.wandb)

    choose_platform(flags.platform)
    experiment = build(config)
    check_batch(config)
    training = build_training(experiment)
    _check_workdir(workdir, config)
    return _train(experiment, training, workdir, flags.wandb)


def _check_workdir(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Refuses a directory that belongs to another run."""
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir {workdir} is a file: name a directory.")
    existing = next(path for path in (workdir.absolute(), *workdir.absolute().parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        why = f"you may not write to {existing}" if existing.is_dir() else f"{existing} is a file"
        raise UsageError(f"--workdir {workdir} cannot be made, because {why}: name another directory.")
    path = workdir / CONFIG_FILE
    if not path.exists():
        return
    try:
        theirs = json.loads(path.read_text())
    except ValueError as error:
        raise FailureError(f"{path} is damaged ({error}): move it away to write it again.") from error
    differing = configs.differences(configs.to_dict(config), theirs)
    if differing:
        raise UsageError(
            f"{workdir} holds a run with another config: {'; '.join(differing[:5])}"
            f"{f'; and {len(differing) - 5} more' if len(differing) > 5 else ''}. "
            "Give the same config to resume it, or another --workdir."
        )


def _train(experiment: Experiment, training: Training, workdir: pathlib.Path, wandb: str | None = None) -> int:
    config = experiment.config
    source = load_split(config.data, config.data.train_split)
    check_classes(source, config, split=config.data.train_split)
    checkpointer = Checkpointer(workdir, keep_last=config.checkpoint.keep_last, keep_every=config.checkpoint.keep_every)
    batches = pipeline.train_iterator(
        source,
        batch_size=config.train.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    if checkpointer.latest_step() is None:
        state = init_state(experiment, training)
    else:
        state, position = checkpointer.resume(state_shapes(experiment, training), _warn)
        batches.set_state(position)
    start = int(state.step)
    write_atomically(workdir / CONFIG_FILE, json.dumps(configs.to_dict(config), indent=2).encode())
    _announce(experiment, workdir, source, state.params, start)

    makes_images = config.objective == "diffusion"
    options = LoopOptions(
        num_steps=config.train.num_steps,
        batch_size=config.train.batch_size,
        log_every=config.train.log_every,
        sample_every=config.train.sample_every,
        save_every=config.checkpoint.save_every,
    )
    progress = metrics.Progress(config.train.num_steps, start_step=start)
    settings = configs.to_dict(config)
    viewers = [] if wandb is None else [weights_and_biases.WeightsAndBiases(workdir, wandb, settings)]
    with metrics.MetricWriter(workdir, resume_step=start, viewers=viewers) as writer:
        try:
            outcome = train(
                state,
                map_step(training.train_step),
                batches,
                base_key(config.seed),
                options=options,
                checkpointer=checkpointer,
                config=settings,
                writer=writer,
                progress=progress,
                on_sample=grid_writer(experiment, source, workdir, writer, progress.say) if makes_images else no_grid,
            )
        finally:
            progress.close()
            batches.close()
            checkpointer.close()
    return _finish(outcome.interrupted_by, int(outcome.state.step), workdir, makes_images=makes_images)


def _warn(sentence: str) -> None:
    print(f"warning: {sentence}.", file=sys.stderr)


def _announce(experiment: Experiment, workdir: pathlib.Path, source: sources.Source, params: Any, start: int) -> None:
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind} device{'s' if jax.device_count() > 1 else ''}"
    begin = f"resuming at step {start}" if start else "starting"
    print(
        f"{workdir}: {begin} of {experiment.config.train.num_steps}; {len(source):,} images of "
        f"{'x'.join(map(str, experiment.image_shape))}, {count:,} parameters, {devices}",
        file=sys.stderr,
    )


def _finish(interrupted_by: signal.Signals | None, step: int, workdir: pathlib.Path, *, makes_images: bool) -> int:
    """Draws the loss, and says what there is and what to type next."""
    records = metrics.read(workdir)
    steps, losses = columns(records, ["loss"])
    _, quartiles = columns(records, [f"loss_q{q}" for q in range(1, QUARTILES + 1)])
    loss_curve(workdir / "loss.png", steps, losses[:, 0], quartiles, title=str(workdir))
    if interrupted_by is not None:
        print(f"saved step {step} in {workdir}. To resume, give the same command again.", file=sys.stderr)
        return INTERRUPTED if interrupted_by == signal.SIGINT else 0  # SIGTERM is a scheduler's wish, and granted
    samples = f"  samples  {grid_path(workdir, step)}\n" if makes_images else ""
    print(f"done: {step} steps\n{samples}  loss     {workdir / 'loss.png'}")
    if makes_images:
        print(f"next: python sample.py --ckpt {workdir}")
    return 0
