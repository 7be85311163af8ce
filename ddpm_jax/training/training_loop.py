"""The training loop, top to bottom: fetch a batch, step, report, save, sample.

The host stays one call behind the device: it dispatches call n and then reads the metrics of call
n-1, so the device never waits for logging, and the batch of call n is on its way to the device
while that works on call n-1. A call is one step, or `steps_per_call` of them. The update is in
`step`, records are made in `reporting`.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import chex
import numpy as np

from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.distributed import hosts
from ddpm_jax.distributed.interrupt import Interrupt, Stopped, Wish
from ddpm_jax.distributed.pmap import PMAP, Parallelism
from ddpm_jax.errors import FailureError
from ddpm_jax.monitoring.metric_writer import MetricWriter
from ddpm_jax.monitoring.profiling import Trace
from ddpm_jax.monitoring.progress import Progress
from ddpm_jax.training.diagnosis import Explain
from ddpm_jax.training.options import LoopOptions
from ddpm_jax.training.reporting import NotFinite, Reporter
from ddpm_jax.training.state import TrainState

PROMISE = "saving after this step; Ctrl-C again stops without saving"
FINITE = (
    "computed again, each part of the batch has a finite loss and gradient, so either their sum "
    "overflows or the device erred"
)


# (state, batch or batches on the devices, base key) -> (state, metrics)
Step = Callable[[TrainState, Any, chex.PRNGKey], tuple[TrainState, dict[str, Any]]]
Watcher = Callable[[int, TrainState], None]  # (step, state)


def _ignore(step: int, state: TrainState) -> None:
    """Do nothing."""


class Batches(Protocol):
    """An endless iterator with a position that can be saved."""

    def __next__(self) -> Mapping[str, np.ndarray]: ...

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]: ...

    def get_state(self) -> dict[str, Any]: ...


class Outcome(NamedTuple):
    """How a run ended."""

    state: TrainState
    interrupted_by: Wish | None


class Steps(NamedTuple):
    """The compiled update, and how state and batches lie over the devices."""

    one: Step  # mapped over devices by the `map_step` of `parallelism`
    # `pmap.several` of the step, mapped; needed where `LoopOptions.steps_per_call` is above 1
    several: Step | None = None
    parallelism: Parallelism = PMAP
    # says why a step was not finite, given the state before it, its batch and the key
    explain: Explain | None = None


class Start(NamedTuple):
    """The starting point of training: a checkpoint, or the state before the first step."""

    state: TrainState  # its buffers are donated
    owes_grid: bool = False  # the run was stopped before the grid of this step was drawn
    # `SINCE_RECORD` of the checkpoint's data item: the means of the next record begin with it
    since_record: Mapping[str, Any] = MappingProxyType({})
    owes_evaluation: bool = False  # likewise, before the metric of this step was measured


class Saving(NamedTuple):
    """What goes to disk."""

    checkpointer: Checkpointer  # of this run
    config: Mapping[str, Any]  # JSON-able, saved with every checkpoint
    # needed where `LoopOptions.snapshot_every` is set; it lets a step pass that it was given before
    on_snapshot: Watcher = _ignore


class Observers(NamedTuple):
    """The writer, the bar and the hooks that watch a run."""

    writer: MetricWriter  # receives a record every `log_every` steps
    progress: Progress  # the bar or lines on a terminal
    # every `sample_every` steps and at the end, when the step is saved; may raise `Stopped`
    on_sample: Watcher = _ignore
    on_checkpoint: Watcher = _ignore  # when a checkpoint has been handed over to be written
    trace: Trace | None = None  # profiles some of the steps
    # every `eval_every` steps and at the end, when the step is saved or not; may raise `Stopped`
    on_evaluation: Watcher = _ignore


def train(
    start: Start,
    steps: Steps,
    batches: Batches,
    key: chex.PRNGKey,
    *,
    options: LoopOptions,
    saving: Saving,
    observers: Observers,
    interrupt: Interrupt | None = None,
) -> Outcome:
    """Train until `options.num_steps`, or until a signal or the time limit asks to stop; then save.

    Of several processes each calls this, and all stop after the same step when one of them is asked
    to.

    Args:
      start: where to start.
      steps: what a step computes.
      batches: local batches, at the position that belongs to `start.state`.
      key: the run's base key; the step folds in its number.
      options: when to do what.
      saving: where states go.
      observers: where metrics and pictures go.
      interrupt: entered while training; by default one without a time limit.

    Raises:
      FailureError: the loss or the gradient is not finite more often in a row than
        `options.skip_nonfinite` (the state is not saved), or a checkpoint cannot be written.
    """
    parallelism, checkpointer = steps.parallelism, saving.checkpointer
    state = parallelism.place(start.state)
    begin = step = saved = int(state.step)
    trace = observers.trace or Trace()
    reporter = Reporter(
        options, observers.writer, observers.progress, in_a_row=int(state.nonfinite)
    )
    reporter.set_state(start.since_record)

    def settle() -> None:
        try:
            reporter.settle()
        except NotFinite as failure:
            why = steps.explain and _why(steps.explain, state, failure.batch, key)
            raise FailureError(failure.sentence(saved, why)) from None

    def save() -> None:
        nonlocal saved
        settle()  # no state is saved before it is known that its steps are finite
        with reporter.throughput.paused():
            observers.writer.flush()  # first: a record must not be lost that a checkpoint follows
            position = {**batches.get_state(), **reporter.get_state()}
            checkpointer.save(step, state, position, saving.config)
            observers.on_checkpoint(step, state)
        saved = step

    def snapshot() -> None:
        if options.is_snapshot_due(step):
            settle()
            with reporter.throughput.paused():
                # one at a time: several processes might get to two of them in different orders
                checkpointer.wait()
                saving.on_snapshot(step, state)

    def show(watcher: Watcher) -> int:
        """Draw or evaluate; return the wish that it was abandoned for, 0 for none."""
        settle()
        with reporter.throughput.paused():
            try:
                watcher(step, state)
            except Stopped as stopped:
                return stopped.wish
        return 0

    stop = 0
    with interrupt or Interrupt(PROMISE) as interrupt, trace:
        # What a run that was stopped right after its checkpoint still has to do.
        snapshot()
        if start.owes_grid and step != options.num_steps:
            stop = show(observers.on_sample)
        if start.owes_evaluation and step != options.num_steps and not stop:
            stop = show(observers.on_evaluation)
        while step < options.num_steps and not stop:
            count = options.next_call(step)
            with reporter.throughput.waiting_for_data():
                fetched = [next(batches) for _ in range(count)]
            with trace.call(step, count):
                run = steps.one if count == 1 else steps.several
                state, metrics = run(state, parallelism.to_devices(fetched), key)
            step += count
            settle()
            reporter.dispatched(step, metrics, fetched)
            trace.done(step, state)

            # A grid takes minutes, and a machine that is taken away gives notice of half of one:
            # save before all else.
            if step % options.save_every == 0 or step == options.num_steps:
                save()
            snapshot()
            stop = interrupt.vote()
            if options.is_grid_due(step) and step != options.num_steps and not stop:
                stop = show(observers.on_sample)
            if options.is_evaluation_due(step) and step != options.num_steps and not stop:
                stop = show(observers.on_evaluation)

        if saved != step:
            save()
        checkpointer.wait()
        if not stop and (step > begin or start.owes_grid):
            stop = show(observers.on_sample)
        if options.is_evaluation_due(step) and not stop:
            stop = show(observers.on_evaluation)
    return Outcome(state, Wish(stop) if stop else None)


def _why(explain: Explain, state: TrainState, batch: Any, key: chex.PRNGKey) -> str:
    """Return the best explanation found by any process in its share of the batch."""
    try:
        cause = explain(state, batch, key)
        found = (0, cause) if cause else (2, FINITE)
    # whatever keeps the step from being repeated, the failure itself must be reported
    except Exception as error:
        found = (
            1,
            f"its cause is not known, because repeating the step failed ({type(error).__name__})",
        )
    return min(hosts.gather_json(found), key=lambda pair: pair[0])[1]
