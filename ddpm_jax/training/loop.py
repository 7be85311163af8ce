"""The training loop, top to bottom: fetch a batch, step, report, sample, save.

The host stays one call behind the device: it dispatches call n and then reads the metrics of call n-1, so the device
never waits for logging, and the batch of call n is on its way to the device while that works on call n-1. A call is one
step, or `steps_per_call` of them. The arithmetic is in `step`; what goes to disk is in `checkpoint` and `metrics`.
"""

import math
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import chex
import jax
import numpy as np

from ddpm_jax.errors import FailureError
from ddpm_jax.training.checkpoint import Checkpointer
from ddpm_jax.training.interrupt import Interrupt
from ddpm_jax.training.metrics import Averages, MetricWriter, Progress, Throughput
from ddpm_jax.training.parallel import replicate, to_devices
from ddpm_jax.training.profiling import Trace
from ddpm_jax.training.state import TrainState


class LoopOptions(NamedTuple):
    """When the loop does what, in steps."""

    num_steps: int  # of the whole run
    batch_size: int  # over all devices and hosts
    log_every: int
    sample_every: int  # 0: only at the end
    save_every: int
    steps_per_call: int = 1  # dispatched together; fewer where a grid or a save is due sooner

    def next_call(self, step: int) -> int:
        """Steps of the call after `step` updates: all, or one where so many would pass over a grid, a save or the end.

        So every cadence is exact, and there are two programs at most.
        """
        due = [(step // every + 1) * every for every in (self.sample_every, self.save_every) if every]
        return self.steps_per_call if step + self.steps_per_call <= min(self.num_steps, *due) else 1


class Batches(Protocol):
    """An endless iterator that knows its place."""

    def __next__(self) -> Mapping[str, np.ndarray]: ...

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]: ...

    def get_state(self) -> dict[str, Any]: ...


class Outcome(NamedTuple):
    """How a run ended."""

    state: TrainState
    interrupted_by: signal.Signals | None


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
    train_steps: Callable[[TrainState, Any, chex.PRNGKey], tuple[TrainState, dict[str, Any]]] | None = None,
    trace: Trace | None = None,
) -> Outcome:
    """Trains from `state` until `options.num_steps`, or until SIGINT or SIGTERM asks to stop; then saves.

    Args:
      state: where to start; its buffers are donated.
      train_step: mapped over devices (`parallel.map_step`).
      batches: local batches, at the position that belongs to `state`.
      key: the run's base key; `train_step` folds in the step.
      options: see `LoopOptions`.
      checkpointer: of this run.
      config: JSON-able, saved with every checkpoint.
      writer: receives a record every `log_every` steps.
      progress: the bar or lines that a person watches.
      on_sample: called with (step, state) every `sample_every` steps and at the end.
      train_steps: `parallel.several` of the step, mapped; needed where `options.steps_per_call` is above 1.
      trace: profiles some of the steps.

    Raises:
      FailureError: the loss or the gradient is not finite (the state is not saved), or a checkpoint cannot be written.
    """
    state = replicate(state)
    step = saved = int(state.step)
    reporter, trace = _Reporter(options, writer, progress), trace or Trace()

    def save() -> None:
        nonlocal saved
        reporter.settle(saved)  # a state that is not finite is never saved
        with reporter.throughput.paused():
            checkpointer.save(step, state, batches.get_state(), config)
        saved = step

    with Interrupt() as interrupt, trace:
        while step < options.num_steps and interrupt.received is None:
            count = options.next_call(step)
            with reporter.throughput.waiting_for_data():
                fetched = [next(batches) for _ in range(count)]
            with trace.call(step, count):
                run = train_step if count == 1 else train_steps
                state, metrics = run(state, to_devices(fetched), key)
            step += count
            reporter.settle(saved)
            reporter.dispatched(step, count, metrics)
            trace.done(step, state)

            if options.sample_every and step % options.sample_every == 0 and step != options.num_steps:
                reporter.settle(saved)
                with reporter.throughput.paused():
                    on_sample(step, state)
            if step % options.save_every == 0:
                save()

        if saved != step:
            save()
        checkpointer.wait()
        if interrupt.received is None:
            on_sample(step, state)
    return Outcome(state, interrupt.received)


class _Reporter:
    """Holds the metrics of the call in flight, and turns those that have arrived into records."""

    def __init__(self, options: LoopOptions, writer: MetricWriter, progress: Progress):
        self.throughput = Throughput()
        self._options, self._writer, self._progress = options, writer, progress
        self._averages = Averages()
        self._in_flight: tuple[int, int, Any] | None = None
        self._compiled: set[int] = set()  # numbers of steps in a call

    def dispatched(self, step: int, count: int, metrics: Any) -> None:
        """Takes charge of the metrics of the `count` steps up to `step`, still on the device; stacked if several."""
        self._in_flight = step, count, metrics
        self.throughput.add(self._options.batch_size * count, metrics)
        if count not in self._compiled:
            # The first call compiles before it returns; what it took is not the speed of training.
            jax.block_until_ready(metrics)
            self.throughput = Throughput()
            self._compiled.add(count)

    def settle(self, saved: int) -> None:
        """Waits for the call in flight, if any, refuses a loss that is not finite, and records each of its steps."""
        if self._in_flight is None:
            return
        (last, count, metrics), self._in_flight = self._in_flight, None
        metrics = jax.device_get(metrics)
        steps = range(last - count + 1, last + 1)
        # Read once: between two steps of a call no time passes here.
        speed = self.throughput.read() if any(map(self._is_logged, steps)) else {}
        for i, step in enumerate(steps):
            self._settle_step(step, metrics if count == 1 else jax.tree.map(lambda x, i=i: x[i], metrics), speed, saved)

    def _is_logged(self, step: int) -> bool:
        return step % self._options.log_every == 0 or step == self._options.num_steps

    def _settle_step(self, step: int, metrics: Mapping[str, Any], speed: Mapping[str, float], saved: int) -> None:
        _check_finite(step, metrics, saved)
        self._averages.add(metrics)
        record = None
        if self._is_logged(step):
            # Rates are those of the last step; everything else is the mean since the record before.
            rates = {"learning_rate": float(metrics["learning_rate"])}
            record = self._averages.means() | rates | speed
            self._writer.write(step, record)
            for name, histogram in self._averages.histograms().items():
                self._writer.histogram(step, name, histogram)
        self._progress.update(step, record)


def _check_finite(step: int, metrics: Mapping[str, Any], saved: int) -> None:
    for name in ("loss", "grad_norm"):
        value = float(metrics[name])
        if not math.isfinite(value):
            kept = f"The checkpoint of step {saved} is kept" if saved else "No checkpoint had been saved yet"
            raise FailureError(
                f"{name} became {value} at step {step}. {kept}; lower optimizer.learning_rate, raise "
                "optimizer.warmup_steps or set optimizer.clip_norm, and start again."
            )
