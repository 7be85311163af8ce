"""One session of a training run, from opening its data and checkpoints to its last save."""

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any

from ddpm_jax.checkpoints.snapshots import Snapshots
from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.distributed import hosts
from ddpm_jax.distributed.interrupt import Interrupt
from ddpm_jax.experiments.texts import keep_tokenizer
from ddpm_jax.experiments.trainer import snapshot_names
from ddpm_jax.monitoring.profiling import make_trace
from ddpm_jax.randomness import base_key
from ddpm_jax.training.callbacks import Callbacks
from ddpm_jax.training.training_loop import Outcome, Saving, train
from ddpm_jax.training_runs.compiled_steps import explained, make_options, make_start, make_steps
from ddpm_jax.training_runs.evaluations import make_evaluations
from ddpm_jax.training_runs.observers import make_observers
from ddpm_jax.training_runs.reports import announce
from ddpm_jax.training_runs.run_directory import CONFIG_FILE, write_settings
from ddpm_jax.training_runs.start import Prepared, first_state
from ddpm_jax.training_runs.training_data import (
    check_held_out,
    keep_listing,
    make_batches,
    open_split,
)


def train_in(
    workdir: pathlib.Path,
    prepared: Prepared,
    *,
    interrupt: Interrupt,
    callbacks: Callbacks,
    before_save: Callable[[], None] = lambda: None,
    profile: tuple[int, int] | None = None,
    wandb: str | None = None,
) -> Outcome:
    """Train from the newest checkpoint in `workdir`, or from the beginning.

    Args:
      workdir: of the run, which this process has locked.
      prepared: the model, and the weights it begins with.
      interrupt: stops the run early.
      callbacks: the user's.
      before_save: `check` of the directory's lock.
      profile: first and last step to trace.
      wandb: a project of Weights & Biases.

    Raises:
      UsageError: the data or a setting do not fit the run.
      FailureError: something cannot be read or written, or the loss is not finite.
    """
    model, training = prepared.model, prepared.training
    config, parallelism = model.config, training.parallelism
    source = open_split(config, workdir)
    settings = prepared.settings(source)
    checkpointer = Checkpointer(
        workdir,
        keep_last=config.checkpoint.keep_last,
        keep_every=config.checkpoint.keep_every,
        before_save=before_save,
    )
    state, position = first_state(prepared, workdir, checkpointer, source)
    step = int(state.step)
    batches = make_batches(
        model,
        state,
        source,
        position,
        workdir=workdir,
        parallelism=parallelism,
        tokenizer=prepared.tokenizer,
    )
    check_held_out(config, source)
    # Another step there: a working directory that the processes do not share.
    hosts.check_equal(
        {"the data": source.fingerprint, "the step of the checkpoint in workdir": step}
    )
    evaluations = make_evaluations(
        model, source, workdir, settings, interrupt=interrupt, start=step, whole=parallelism.whole
    )
    trace = make_trace(profile, workdir, start=step, num_steps=config.train.num_steps)
    if hosts.is_primary():
        write_settings(workdir, settings)
        keep_tokenizer(prepared.tokenizer, config, workdir)
        keep_listing(workdir, source, resumed=position is not None)
        beginning = prepared.beginning
        announce(model, workdir, source, state, origin=beginning.what if beginning else "")
    hosts.check_shared(workdir / CONFIG_FILE)

    with contextlib.ExitStack() as stack:
        on_snapshot = _open_snapshots(stack, prepared, workdir, settings)
        observers = make_observers(
            model,
            source,
            workdir,
            start=step,
            wandb=wandb,
            trace=trace,
            callbacks=callbacks,
            whole=parallelism.whole,
            tokenizer=prepared.tokenizer,
            evaluations=evaluations,
        )
        stack.enter_context(observers.writer)
        for opened in (checkpointer, batches, observers.progress):
            stack.callback(opened.close)
        stack.enter_context(explained(config))
        start, options = make_start(config, workdir, state, position), make_options(config)
        if evaluations is not None:
            start = start._replace(owes_evaluation=evaluations.owes(step))
            if evaluations.is_exhausted:
                options = options._replace(num_steps=step)
        return train(
            start,
            make_steps(config, training),
            batches,
            base_key(config.seed),
            options=options,
            saving=Saving(checkpointer, settings, on_snapshot),
            observers=observers,
            interrupt=interrupt,
        )


def _open_snapshots(
    stack: contextlib.ExitStack,
    prepared: Prepared,
    workdir: pathlib.Path,
    settings: dict[str, Any],
) -> Callable[[int, Any], None]:
    """Return the function that saves a state's averages, if the config asks for that."""
    config = prepared.model.config
    if not config.ema.snapshot_every:
        return lambda step, state: None
    snapshots = Snapshots(workdir, snapshot_names(config), settings)
    stack.callback(snapshots.close)
    return lambda step, state: snapshots.save(step, state.averages)
