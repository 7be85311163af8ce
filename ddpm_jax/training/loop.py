"""The training loop, top to bottom: fetch a batch, step, report, save, sample.

The host stays one call behind the device: it dispatches call n and then reads the metrics of call
n-1, so the device never waits for logging, and the batch of call n is on its way to the device
while that works on call n-1. A call is one step, or `steps_per_call` of them. The arithmetic is in
`step`; what goes to disk is in `checkpoint` and `metrics`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import chex
import jax
import numpy as np

from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.distributed import hosts
from ddpm_jax.distributed.interrupt import Interrupt, Stopped, Wish
from ddpm_jax.distributed.pmap import PMAP, Parallelism
from ddpm_jax.errors import FailureError
from ddpm_jax.monitoring.averages import Averages
from ddpm_jax.monitoring.metric_writer import MetricWriter
from ddpm_jax.monitoring.profiling import Trace
from ddpm_jax.monitoring.progress import Progress
from ddpm_jax.monitoring.throughput import Throughput
from ddpm_jax.training.diagnosis import Explain
from ddpm_jax.training.state import TrainState

SINCE_RECORD = "since_record"  # in the data item of a checkpoint that was saved between two records
PROMISE = "saving after this step; Ctrl-C again stops without saving"
FINITE = (
    "computed again, each part of the batch has a finite loss and gradient, so either their sum "
    "overflows or the device erred"
)


class LoopOptions(NamedTuple):
    """When the loop does what, in steps."""

    num_steps: int  # of the whole run
    batch_size: int  # over all devices and hosts
    log_every: int
    sample_every: int  # 0: only at the end
    save_every: int
    steps_per_call: int = 1  # dispatched together; fewer where a grid or a save is due sooner
    # steps in a row that may change nothing, not being finite: that of `StepOptions`
    skip_nonfinite: int = 0
    snapshot_every: int = 0  # and at the end; 0: never

    def next_call(self, step: int) -> int:
        """Steps of the call after `step` updates: all, or one where that many would pass over what
        is due, or the end.

        So every cadence is exact, and there are two programs at most.
        """
        due = [(step // every + 1) * every for every in self._cadences() if every]
        return self.steps_per_call if step + self.steps_per_call <= min(self.num_steps, *due) else 1

    def is_snapshot_due(self, step: int) -> bool:
        """Whether averages are kept after `step` updates."""
        return (
            step > 0
            and self.snapshot_every > 0
            and (step % self.snapshot_every == 0 or step == self.num_steps)
        )

    def is_grid_due(self, step: int) -> bool:
        """Whether a grid is drawn after `step` updates."""
        return step > 0 and (
            step == self.num_steps or (self.sample_every > 0 and step % self.sample_every == 0)
        )

    def _cadences(self) -> tuple[int, ...]:
        return self.sample_every, self.save_every, self.snapshot_every


class Batches(Protocol):
    """An endless iterator that knows its place."""

    def __next__(self) -> Mapping[str, np.ndarray]: ...

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]: ...

    def get_state(self) -> dict[str, Any]: ...


class Outcome(NamedTuple):
    """How a run ended."""

    state: TrainState
    interrupted_by: Wish | None


def train(
    state: TrainState,
    train_step: Callable[[TrainState, Any, chex.PRNGKey], tuple[TrainState, dict[str, Any]]],
    batches: Batches,
    key: chex.PRNGKey,
    *,
    options: LoopOptions,
    checkpointer: Checkpointer,
    config: Mapping[str, Any],
    writer: MetricWriter,
    progress: Progress,
    on_sample: Callable[[int, TrainState], None],
    train_steps: Callable[[TrainState, Any, chex.PRNGKey], tuple[TrainState, dict[str, Any]]]
    | None = None,
    trace: Trace | None = None,
    explain: Explain | None = None,
    parallelism: Parallelism = PMAP,
    on_snapshot: Callable[[int, TrainState], None] | None = None,
    owes_grid: bool = False,
    interrupt: Interrupt | None = None,
    since_record: Mapping[str, Any] = MappingProxyType({}),
) -> Outcome:
    """Trains from `state` until `options.num_steps`, or until a signal or the time limit asks to
    stop; then saves.

    Of several processes each calls this, and all stop after the same step when one of them is asked
    to.

    Args:
      state: where to start; its buffers are donated.
      train_step: mapped over devices by the `map_step` of `parallelism`.
      batches: local batches, at the position that belongs to `state`.
      key: the run's base key; `train_step` folds in the step.
      options: see `LoopOptions`.
      checkpointer: of this run.
      config: JSON-able, saved with every checkpoint.
      writer: receives a record every `log_every` steps.
      progress: the bar or lines that a person watches.
      on_sample: called with (step, state) every `sample_every` steps and at the end, when the step
        is saved. It may give up by raising `Stopped`.
      train_steps: `parallel.several` of the step, mapped; needed where `options.steps_per_call` is
        above 1.
      trace: profiles some of the steps.
      explain: says why a step was not finite (`diagnosis.make_explain`), given the state before it,
        its batch, the key.
      parallelism: how state and batches are laid out over the devices.
      on_snapshot: called with (step, state) every `snapshot_every` steps and after the last; needed
        where that is set. It lets a step pass that it has been given before.
      owes_grid: whether the run that saved `state` was stopped before the grid of that step was
        drawn.
      interrupt: entered while training; by default one without a time limit.
      since_record: of the data item of the checkpoint that `state` is of, what is there under
        `SINCE_RECORD`: the means of the next record begin with it.

    Raises:
      FailureError: the loss or the gradient is not finite more often in a row than
        `options.skip_nonfinite` (the state is not saved), or a checkpoint cannot be written.
    """
    state = parallelism.place(state)
    step = saved = int(state.step)
    reporter, trace = (
        _Reporter(options, writer, progress, in_a_row=int(state.nonfinite)),
        trace or Trace(),
    )
    reporter.set_state(since_record)

    def settle() -> None:
        try:
            reporter.settle()
        except _NotFinite as failure:
            raise FailureError(
                failure.sentence(saved, explain and _why(explain, state, failure.batch, key))
            ) from None

    def save() -> None:
        nonlocal saved
        settle()  # no state is saved before it is known that its steps are finite
        with reporter.throughput.paused():
            writer.flush()  # before: what a checkpoint comes after must not be lost with the next
            checkpointer.save(step, state, {**batches.get_state(), **reporter.get_state()}, config)
        saved = step

    def snapshot() -> None:
        if options.is_snapshot_due(step):
            settle()
            with reporter.throughput.paused():
                # one at a time: several processes might get to two of them in different orders
                checkpointer.wait()
                on_snapshot(step, state)

    def draw() -> int:
        """Draws the grid; returns the wish that it was abandoned for, 0 for none."""
        settle()
        with reporter.throughput.paused():
            try:
                on_sample(step, state)
            except Stopped as stopped:
                return stopped.wish
        return 0

    stop = 0
    with interrupt or Interrupt(PROMISE) as interrupt, trace:
        # What a run that was stopped after its checkpoint had not come to.
        snapshot()
        if owes_grid and step != options.num_steps:
            stop = draw()
        while step < options.num_steps and not stop:
            count = options.next_call(step)
            with reporter.throughput.waiting_for_data():
                fetched = [next(batches) for _ in range(count)]
            with trace.call(step, count):
                run = train_step if count == 1 else train_steps
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
                stop = draw()

        if saved != step:
            save()
        checkpointer.wait()
        if not stop:
            stop = draw()
    return Outcome(state, Wish(stop) if stop else None)


class _Reporter:
    """Holds the metrics of the call in flight, and turns those that have arrived into records."""

    def __init__(
        self, options: LoopOptions, writer: MetricWriter, progress: Progress, *, in_a_row: int
    ):
        self.throughput = Throughput()
        self._options, self._writer, self._progress = options, writer, progress
        self._averages = Averages()
        self._in_flight: tuple[int, Any, Sequence[Any]] | None = None
        # steps that were not finite: since the last record, and in a row
        self._skipped, self._in_a_row = 0, in_a_row
        self._compiled: set[int] = set()  # numbers of steps in a call

    def dispatched(self, step: int, metrics: Any, fetched: Sequence[Any]) -> None:
        """Takes charge of the metrics, still on the device, of the steps up to `step`; stacked if
        several.

        `fetched` holds the batch of each.
        """
        self._in_flight, count = (step, metrics, fetched), len(fetched)
        self.throughput.add(self._options.batch_size * count, metrics)
        if count not in self._compiled:
            # The first call compiles before it returns; what it took is not the speed of training.
            jax.block_until_ready(metrics)
            self.throughput = Throughput()
            self._compiled.add(count)

    def settle(self) -> None:
        """Waits for the call in flight, if any, and records each of its steps.

        Raises:
          _NotFinite: the loss or the gradient of one is not finite, and that cannot be passed over.
        """
        if self._in_flight is None:
            return
        (last, metrics, fetched), self._in_flight = self._in_flight, None
        metrics = jax.device_get(metrics)
        steps = range(last - len(fetched) + 1, last + 1)
        # Read once: between two steps of a call no time passes here.
        speed = self.throughput.read() if any(map(self._is_logged, steps)) else {}
        for i, (step, batch) in enumerate(zip(steps, fetched, strict=True)):
            one = metrics if len(fetched) == 1 else jax.tree.map(lambda x, i=i: x[i], metrics)
            self._settle_step(step, one, speed, batch)

    def get_state(self) -> dict[str, Any]:
        """What the next record will be made of besides the steps to come, for the data item of a
        checkpoint."""
        averages = self._averages.get_state()
        return (
            {SINCE_RECORD: averages | {"skipped": self._skipped}}
            if averages or self._skipped
            else {}
        )

    def set_state(self, since_record: Mapping[str, Any]) -> None:
        """Goes on from there."""
        averages = dict(since_record)
        self._skipped = int(averages.pop("skipped", 0))
        self._averages.set_state(averages)

    def _is_logged(self, step: int) -> bool:
        return step % self._options.log_every == 0 or step == self._options.num_steps

    def _settle_step(
        self, step: int, metrics: Mapping[str, Any], speed: Mapping[str, float], batch: Any
    ) -> None:
        if self._is_finite(step, metrics, batch):
            self._averages.add(metrics)
        else:
            self._skipped += 1
        record = None
        if self._is_logged(step):
            # Rates are those of the last step; everything else is the mean since the record before.
            rates = {"learning_rate": float(metrics["learning_rate"])}
            skipped = {"skipped": self._skipped} if self._options.skip_nonfinite else {}
            record = self._averages.means() | rates | skipped | speed
            self._skipped = 0
            self._writer.write(step, record)
            for name, histogram in self._averages.histograms().items():
                self._writer.histogram(step, name, histogram)
        self._progress.update(step, record)

    def _is_finite(self, step: int, metrics: Mapping[str, Any], batch: Any) -> bool:
        wrong = [name for name in ("loss", "grad_norm") if not math.isfinite(float(metrics[name]))]
        self._in_a_row = self._in_a_row + 1 if wrong else 0
        if self._in_a_row > self._options.skip_nonfinite:
            raise _NotFinite(step, wrong[0], float(metrics[wrong[0]]), self._in_a_row, batch)
        return not wrong


class _NotFinite(Exception):
    """A step that the run cannot go on after."""

    def __init__(self, step: int, name: str, value: float, in_a_row: int, batch: Any):
        self.step, self.name, self.value, self.in_a_row, self.batch = (
            step,
            name,
            value,
            in_a_row,
            batch,
        )

    def sentence(self, saved: int, why: str | None) -> str:
        """What the user reads: which number, when, why, what is left and what to do."""
        times = f", {self.in_a_row} times in a row" if self.in_a_row > 1 else ""
        kept = (
            f"The checkpoint of step {saved} is kept"
            if saved
            else "No checkpoint had been saved yet"
        )
        return (
            f"{self.name} became {self.value} at step "
            f"{self.step}{times}{f': {why}' if why else ''}. {kept}; lower "
            "optimizer.learning_rate, raise optimizer.warmup_steps or set optimizer.clip_norm, and "
            "start again, or pass over more such steps in a row with "
            f"train.skip_nonfinite={self.in_a_row}."
        )


def _why(explain: Explain, state: TrainState, batch: Any, key: chex.PRNGKey) -> str:
    """What explains the failure best of what the processes find, each in its share of the batch."""
    try:
        cause = explain(state, batch, key)
        found = (0, cause) if cause else (2, FINITE)
    # whatever keeps the step from being repeated, the failure itself must be told
    except Exception as error:
        found = (
            1,
            f"its cause is not known, because repeating the step failed ({type(error).__name__})",
        )
    return min(hosts.tell_all(found), key=lambda told: told[0])[1]
