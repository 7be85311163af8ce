"""`python train.py`: trains the experiment of a config in a directory of its own, or resumes it
there.

    python train.py                                              the bundled 8x8 digits, into runs/digits
    python train.py --config configs/ddpm_cifar10.py --workdir runs/cifar10
    --config.train.batch_size=256
    python train.py --workdir gs://BUCKET/runs/a                 in a bucket of Google Cloud Storage
    python train.py --distributed ...                            on every host of a TPU slice or of a Slurm job
    python train.py --distributed --coordinator HOST:1234 --num_processes 2 --process_id 0 ...         elsewhere

Ctrl-C, SIGTERM or --max_seconds: the run saves after the step under way and ends, with exit code
130, 0 or 0; a grid under way is left, and drawn when the run is resumed. A second Ctrl-C ends the
run at once. Of several processes any one may get the signal: all save at a common step, a second or
two steps later. If a process is lost, the others end with exit code 1, at the latest after a
minute. The same command resumes the run with the same data and draws, on any number of processes
and devices that divides the batch.

Every field of the config, with its default, is listed in `ddpm_jax/experiments/fields.py`.
"""

import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import __version__, memory
from ddpm_jax.checkpoints.reader import check_name, saved_steps
from ddpm_jax.checkpoints.snapshots import Snapshots
from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.cli.command import (
    INTERRUPTED,
    Parser,
    define_limit,
    define_process_flags,
    how_to_call,
    prepare_jax,
    run,
)
from ddpm_jax.data import listing, pipeline, sources
from ddpm_jax.data.data_dir import check_not_run_output
from ddpm_jax.data.dataset_info import dataset_info, describe, holds_out
from ddpm_jax.data.listing import check_unchanged
from ddpm_jax.diffusion.likelihood import prior_warning
from ddpm_jax.distributed import hosts
from ddpm_jax.distributed.interrupt import Interrupt, Wish
from ddpm_jax.distributed.pmap import bytes_per_device, several
from ddpm_jax.errors import UsageError, say, visible
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.datasets import check_classes, check_places, load_split
from ddpm_jax.experiments.fine_tuning import Beginning, find_beginning
from ddpm_jax.experiments.latents import find_first_stage, freeze, kept_latents
from ddpm_jax.experiments.models import Model
from ddpm_jax.experiments.run_settings import (
    FIRST_STAGE,
    INIT_FROM,
    config_in,
    frozen_first_stage,
    read_settings,
    run_settings,
)
from ddpm_jax.experiments.training import (
    Training,
    build_training,
    check_batch,
    init_state,
    snapshot_names,
    state_shapes,
)
from ddpm_jax.files import as_path, check_place, is_remote, reporting, write_atomically
from ddpm_jax.locks import Lock
from ddpm_jax.monitoring import metric_writer, records, weights_and_biases
from ddpm_jax.monitoring.profiling import Trace, parse_steps
from ddpm_jax.monitoring.progress import Progress
from ddpm_jax.monitoring.tensorboard import TENSORBOARD
from ddpm_jax.plotting.curves import columns, loss_curve
from ddpm_jax.randomness import base_key
from ddpm_jax.tasks.first_stage_pictures import picture_writer
from ddpm_jax.tasks.training_grids import grid_path, grid_writer, no_grid
from ddpm_jax.training.diagnosis import make_explain
from ddpm_jax.training.exhaustion import remedies_of_a_step
from ddpm_jax.training.loop import PROMISE, Observers, Saving, Start, Steps, train
from ddpm_jax.training.objective import QUARTILES
from ddpm_jax.training.optimizer import check_length
from ddpm_jax.training.options import LoopOptions
from ddpm_jax.training.reporting import SINCE_RECORD
from ddpm_jax.training.state import TrainState

DEFAULT_CONFIG = "digits"
CONFIG_FILE = "config.json"
BAD_IMAGES = "bad_images.txt"  # lists those that cannot be used
_NEXT = {  # objective -> what to type after training; those that are missing make no images
    "diffusion": ("sample", "--ckpt {}"),
    "first_stage": ("evaluate", "--ckpt {} --metric reconstruction"),
}


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code; see `command.run` for the errors."""
    parser = Parser(__doc__, elsewhere=_as_a_field)
    parser.path(
        "config",
        DEFAULT_CONFIG,
        "Config file; --config.FIELD=VALUE overrides one of its fields.",
        metavar="FILE",
    )
    parser.path(
        "workdir",
        None,
        "Directory of the run; by default runs/NAME for configs/NAME.py. Resumes what is there.",
        metavar="DIR",
    )
    parser.string(
        "profile",
        None,
        "Trace the steps FIRST to LAST of the run, counted from 1, into WORKDIR/tensorboard: see "
        "its Profile tab.",
        metavar="FIRST:LAST",
    )
    parser.string(
        "wandb",
        None,
        "Show the run in this project of Weights & Biases, too; ENTITY/PROJECT for one of a team.",
        metavar="PROJECT",
    )
    define_limit(parser)
    define_process_flags(parser)
    overrides, rest = configs.split_overrides(argv)
    flags = parser.parse(rest)
    config = configs.override(configs.load_config(flags.config), overrides)
    workdir = as_path(flags.workdir or pathlib.Path("runs") / pathlib.Path(flags.config).stem)
    profile = parse_steps(flags.profile) if flags.profile else None
    if flags.wandb is not None:
        weights_and_biases.load(flags.wandb)

    stop = Interrupt(PROMISE, max_seconds=flags.max_seconds)
    _check_apart(config, workdir, flags.compilation_cache)  # which `prepare_jax` makes
    prepare_jax(flags)
    hosts.check_equal(_common(config))
    _check_workdir(workdir)
    with hosts.alone(workdir, "training in it") as lock:
        begun = _settings_in(workdir, config)
        first, first_params = find_first_stage(config, workdir, begun)
        # which the processes may read, and keep the latents of, in places of their own
        if first is not None:
            kept = bool(config.first_stage.cache)
            hosts.check_equal(
                {
                    "the digest of first_stage.ckpt": first.sha256,
                    "whether first_stage.cache is set": kept,
                }
            )
        model = build(config, first)
        check_batch(config)
        training = build_training(model)
        beginning, began = find_beginning(model, workdir, begun)
        hosts.check_equal({"the digest of the weights of init_from": began and began["sha256"]})
        return _train(
            model,
            training,
            workdir,
            profile,
            flags.wandb,
            first_params,
            lock,
            stop,
            beginning,
            began,
        )


def _as_a_field(flag: str) -> str | None:
    """The override that a flag of another library's training script stands for."""
    field = configs.field_called(flag)
    return field and f"config.{field}"


def _common(config: ConfigDict) -> dict[str, Any]:
    """What all processes of a run must have been started with: all of the config but where and how
    it reads files."""
    own = ("data.data_dir", "data.cache", "first_stage.ckpt", "first_stage.cache", "init_from")
    fields = dict(configs.flatten(configs.to_dict(config)))
    return {"ddpm_jax": __version__, "jax": jax.__version__} | {
        k: v for k, v in fields.items() if k not in own
    }


def _check_workdir(workdir: pathlib.Path) -> None:
    """Refuses a directory that cannot be written, or in which checkpoints would be lost."""
    check_name(workdir)
    check_place(workdir, flag="--workdir", writing=True)
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir {workdir} is a file: name a directory.")
    if not is_remote(workdir):
        existing = next(
            path for path in (workdir.absolute(), *workdir.absolute().parents) if path.exists()
        )
        if not (existing.is_dir() and os.access(existing, os.W_OK)):
            why = (
                f"you may not write to {existing}" if existing.is_dir() else f"{existing} is a file"
            )
            raise UsageError(
                f"--workdir {workdir} cannot be made, because {why}: name another directory."
            )


def _check_apart(config: ConfigDict, workdir: pathlib.Path, compilation_cache: str | None) -> None:
    """Refuses a folder of pictures that the run would write into."""
    latents = {"config.first_stage.cache": config.first_stage.cache}
    check_places(config.data, workdir=workdir, compilation_cache=compilation_cache, **latents)
    if config.data.name == "folder" and config.data.data_dir:
        check_not_run_output(config.data.data_dir, workdir)


def _settings_in(workdir: pathlib.Path, config: ConfigDict) -> dict[str, Any] | None:
    """The settings of the run that has begun in a directory; None where nothing has been trained
    there.

    Raises:
      UsageError: it is another run than the config's.
      FailureError: its settings cannot be read.
    """
    path = workdir / CONFIG_FILE
    theirs = read_settings(path)
    if theirs is None:
        return None
    kept = saved_steps(workdir)
    if not kept and not records.read(workdir):
        return None  # it was ended before it had anything to show: this one replaces it
    if bool(config.first_stage.ckpt) != (FIRST_STAGE in theirs):
        ours, other = ("latents", "pixels") if config.first_stage.ckpt else ("pixels", "latents")
        raise UsageError(
            f"{workdir} holds a run over {other}, and this config is of one over {ours}: give "
            "first_stage.ckpt as it was, or another --workdir."
        )
    differing = configs.differences(configs.to_dict(config), config_in(theirs))
    if differing:
        raise UsageError(
            f"{workdir} holds a run with another config: "
            f"{'; '.join(differing[:5])}{f'; and {len(differing) - 5} more' if len(differing) > 5 else ''}. "
            "Give the same config to resume "
            f"it{'' if kept else ', remove it (it has records, but no checkpoint)'}, or another "
            "--workdir."
        )
    _check_length(workdir, config, theirs)
    return theirs


def _check_length(workdir: pathlib.Path, config: ConfigDict, theirs: dict[str, Any]) -> None:
    """Refuses another train.num_steps than that over which the learning rate has begun to fall."""
    o, steps = config.optimizer, saved_steps(workdir)
    saved = configs.completed(config_in(theirs))
    check_length(
        o.learning_rate,
        warmup_steps=o.warmup_steps,
        decay=o.decay,
        num_steps=config.train.num_steps,
        saved_num_steps=saved["train.num_steps"],
        step=steps[-1] if steps else 0,
    )


def _train(
    model: Model,
    training: Training,
    workdir: pathlib.Path,
    profile: tuple[int, int] | None = None,
    wandb: str | None = None,
    first_params: Any = None,
    lock: Lock | None = None,
    stop: Interrupt | None = None,
    beginning: Beginning | None = None,
    began: dict[str, Any] | None = None,
) -> int:
    """Trains from the newest checkpoint in `workdir`, or from the beginning; returns the exit code.

    A model over latents begins with the parameters of its first stage; later they are in its
    checkpoints. `began` says what a run began with, that does not draw its weights: `beginning`, or
    what that was.
    """
    config, parallelism = model.config, training.parallelism
    source = load_split(
        config.data,
        config.data.train_split,
        report=workdir / BAD_IMAGES if hosts.is_primary() else None,
    )
    check_classes(source, config, split=config.data.train_split)
    settings = run_settings(model, source) | ({INIT_FROM: began} if began else {})
    checkpointer = Checkpointer(
        workdir,
        keep_last=config.checkpoint.keep_last,
        keep_every=config.checkpoint.keep_every,
        before_save=(lock or Lock()).check,
    )
    remedies = _remedies(config)
    memory.check(
        bytes_per_device(state_shapes(model, training)), "the state of the model", remedies
    )
    state, position = _first_state(model, training, checkpointer, first_params, source, beginning)
    start = int(state.step)
    if start > config.train.num_steps:
        raise UsageError(
            f"train.num_steps is {config.train.num_steps}, but the run in {workdir} is at step "
            f"{start} already: give more to train on, or another --workdir; --ckpt_step of "
            "sample.py and evaluate.py takes an earlier checkpoint that is kept."
        )
    examples = source
    if frozen_first_stage(model) is not None:
        examples = kept_latents(model, state.frozen, source, whole=parallelism.whole)
    batches = _batches(config, examples)
    if position is not None:
        check_unchanged(workdir / listing.FILE, source, position.get("fingerprint"), _warn)
        batches.set_state(position)
    _check_held_out(config, source)
    # Another step there: a working directory that the processes do not share.
    hosts.check_equal(
        {"the data": source.fingerprint, "the step of the checkpoint in --workdir": start}
    )
    trace = _trace(profile, workdir, start, config.train.num_steps)
    if hosts.is_primary():
        with reporting(workdir / CONFIG_FILE):
            write_atomically(workdir / CONFIG_FILE, json.dumps(settings, indent=2).encode())
        _keep_listing(workdir, source, begun=position is not None)
        _announce(model, workdir, source, state, start, beginning)
    hosts.check_shared(workdir / CONFIG_FILE)

    snapshots = (
        Snapshots(workdir, snapshot_names(config), settings) if config.ema.snapshot_every else None
    )
    progress, writer = (
        _observers(config, workdir, start, wandb) if hosts.is_primary() else (hosts.Silent(),) * 2
    )
    with (
        writer,
        contextlib.nullcontext() if snapshots is None else contextlib.closing(snapshots),
        contextlib.closing(checkpointer),
        contextlib.closing(batches),
        contextlib.closing(progress),
        memory.explained(f"a training step of {config.train.batch_size} images", remedies),
    ):
        on_sample = memory.explained(
            f"drawing {config.train.num_samples} samples", "lower train.num_samples"
        )(_on_sample(model, source, workdir, writer, progress, parallelism.whole))
        outcome = train(
            Start(
                state,
                owes_grid=_owes_grid(config, workdir, start),
                since_record=(position or {}).get(SINCE_RECORD, {}),
            ),
            Steps(
                parallelism.map_step(training.train_step),
                parallelism.map_step(several(training.train_step)),
                parallelism,
                make_explain(
                    training.objective,
                    parts=jax.local_device_count() * config.optimizer.accumulate_steps,
                    whole=parallelism.whole,
                ),
            ),
            batches,
            base_key(config.seed),
            options=_loop_options(config),
            saving=Saving(
                checkpointer,
                settings,
                lambda step, state: snapshots.save(step, state.averages),
            ),
            observers=Observers(writer, progress, on_sample, trace=trace),
            interrupt=stop,
        )
    if hosts.is_primary():
        _finish(outcome.interrupted_by, int(outcome.state.step), workdir, config.objective)
    # SIGTERM and the time limit are a scheduler's wishes, and granted.
    return INTERRUPTED if outcome.interrupted_by == Wish.SIGINT else 0


def _keep_listing(workdir: pathlib.Path, source: sources.Source, *, begun: bool) -> None:
    """Writes which files the run is trained on, at its start, or when it first resumes after none
    was written."""
    path, files = workdir / listing.FILE, dataset_info(source).files
    if files is not None and not (begun and path.exists()):
        listing.write_listing(path, files)


def _check_held_out(config: ConfigDict, source: sources.Source) -> None:
    if config.data.test_split == "test" and not holds_out(source):
        _warn(
            "no image is held out, so nothing can be compared with images that were not trained "
            "on: set data.holdout, say to 0.1, or give the data a test split; without one, "
            "evaluate.py takes --split train"
        )


def _remedies(config: ConfigDict) -> str:
    return remedies_of_a_step(
        batch_size=config.train.batch_size,
        accumulate_steps=config.optimizer.accumulate_steps,
        remat=config.model.remat,
        parallel=config.parallel,
        devices=jax.device_count(),
    )


def _on_sample(
    model: Model,
    source: sources.Source,
    workdir: pathlib.Path,
    writer: metric_writer.MetricWriter,
    progress: Progress,
    whole: Callable[[Any], Any],
) -> Callable[[int, TrainState], None]:
    """What is shown every `train.sample_every` steps."""
    match model.config.objective:
        case "diffusion":
            return grid_writer(model, source, workdir, writer, progress, whole=whole)
        case "first_stage":
            return picture_writer(model, workdir, writer, progress.say, whole=whole)
    return no_grid


def _owes_grid(config: ConfigDict, workdir: pathlib.Path, start: int) -> bool:
    """Whether the run was stopped between the checkpoint that it resumes from and the grid of that
    step."""
    makes_grids = start > 0 and config.objective in _NEXT and config.train.sample_every > 0
    if not makes_grids or start % config.train.sample_every:
        return False
    with reporting(grid_path(workdir, start), "read"):
        return hosts.tell_all(not grid_path(workdir, start).exists())[0]


def _batches(config: ConfigDict, source: sources.Source) -> pipeline.TrainIterator:
    """This process's part of the batches, from the first on."""
    return pipeline.train_iterator(
        source,
        batch_size=config.train.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _first_state(
    model: Model,
    training: Training,
    checkpointer: Checkpointer,
    first_params: Any,
    source: sources.Source,
    beginning: Beginning | None,
) -> tuple[TrainState, dict[str, Any] | None]:
    """(state, place in the data) of the newest checkpoint that is whole; a new state, and None,
    where there is none."""
    if checkpointer.latest_step() is not None:
        return checkpointer.resume(state_shapes(model, training), _warn)
    if beginning is not None:
        for note in beginning.notes:
            _warn(f"init_from: {note}")
        return init_state(model, training, beginning.frozen, beginning.given), None
    if frozen_first_stage(model) is None:
        return init_state(model, training), None
    if first_params is None:
        raise UsageError(
            f"first_stage.ckpt is {model.config.first_stage.ckpt}, and there is no such "
            "directory; this run has saved no checkpoint yet that the first stage would be in."
        )
    return init_state(model, training, freeze(model, first_params, source)), None


def _loop_options(config: ConfigDict) -> LoopOptions:
    return LoopOptions(
        num_steps=config.train.num_steps,
        batch_size=config.train.batch_size,
        log_every=config.train.log_every,
        sample_every=config.train.sample_every,
        save_every=config.checkpoint.save_every,
        steps_per_call=config.train.steps_per_call,
        skip_nonfinite=config.train.skip_nonfinite,
        snapshot_every=config.ema.snapshot_every,
    )


def _observers(
    config: ConfigDict, workdir: pathlib.Path, start: int, wandb: str | None
) -> tuple[Progress, metric_writer.MetricWriter]:
    """What shows the run; of several processes, the first's."""
    settings = configs.to_dict(config)
    viewers = (
        [] if wandb is None else [weights_and_biases.WeightsAndBiases(workdir, wandb, settings)]
    )
    bar = Progress(config.train.num_steps, start_step=start)
    return bar, metric_writer.MetricWriter(workdir, resume_step=start, viewers=viewers)


def _warn(sentence: str) -> None:
    if hosts.is_primary():
        say(f"warning: {visible(sentence)}.", file=sys.stderr)


def _trace(
    profile: tuple[int, int] | None, workdir: pathlib.Path, start: int, num_steps: int
) -> Trace | None:
    if profile is None:
        return None
    first, last = profile
    if not start < first <= last <= num_steps:
        raise UsageError(
            f"--profile is {first}:{last}, but this run has the steps {start + 1} to {num_steps} "
            "before it: choose some of these."
        )
    return Trace(workdir / TENSORBOARD, first=first, last=last)


def _announce(
    model: Model,
    workdir: pathlib.Path,
    source: sources.Source,
    state: TrainState,
    start: int,
    beginning: Beginning | None,
) -> None:
    if model.config.objective == "diffusion" and (sentence := prior_warning(model.schedule)):
        _warn(sentence)
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(state.params))
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind} device{'s' if jax.device_count() > 1 else ''}"
    if jax.process_count() > 1:
        devices += f" of {jax.process_count()} processes"
    length = model.config.train.num_steps
    begin = (
        f"resuming at step {start} of {length}"
        if start
        else f"starting the first of {length} steps"
    )
    of_others = f" from {beginning.what}" if beginning else ""
    say(
        f"{workdir}: {begin}{of_others}; {len(source):,} images of "
        f"{'x'.join(map(str, model.image_shape))}{_over(model, state)}, {count:,} "
        f"parameters, {devices}, {bytes_per_device(state) / 1e6:,.1f} MB of state on each",
        file=sys.stderr,
    )
    say(f"data {model.config.data.name}: {describe(source)}", file=sys.stderr)


def _over(model: Model, state: TrainState) -> str:
    if frozen_first_stage(model) is None:
        return ""
    shape, scale = (
        "x".join(map(str, model.shape)),
        float(np.asarray(state.frozen.scale)),
    )
    return f" as latents of {shape} times {scale:.4g}"


def _finish(interrupted_by: Wish | None, step: int, workdir: pathlib.Path, objective: str) -> None:
    """Draws the loss, and says what there is and what to type next."""
    written = records.read(workdir)
    steps, losses = columns(written, ["loss"])
    _, quartiles = columns(written, [f"loss_q{q}" for q in range(1, QUARTILES + 1)])
    with reporting(workdir / "loss.png"):
        loss_curve(
            workdir / "loss.png",
            steps,
            losses[:, 0],
            quartiles if len(quartiles) else None,
            title=str(workdir),
        )
    if interrupted_by is not None:
        say(
            f"saved step {step} in {workdir}. To resume, give the same command again.",
            file=sys.stderr,
        )
        return
    pictures = f"  samples  {grid_path(workdir, step)}\n" if objective in _NEXT else ""
    say(f"done: {step} steps\n{pictures}  loss     {workdir / 'loss.png'}")
    if objective in _NEXT:
        name, flags = _NEXT[objective]
        say(f"next: {how_to_call(name)} {flags.format(workdir)}")


if __name__ == "__main__":
    sys.exit(run(main))
