"""The training loop, top to bottom: fetch a batch, step, report, sample, save.

The host stays one step behind the device: it dispatches step n and then reads the metrics of step n-1, so the device
never waits for logging. The arithmetic is in `step`; what goes to disk is in `checkpoint` and `metrics`.
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
from ddpm_jax.training.parallel import replicate, shard
from ddpm_jax.training.state import TrainState


class LoopOptions(NamedTuple):
    """When the loop does what, in steps."""

    num_steps: int  # of the whole run
    batch_size: int  # over all devices and hosts
    log_every: int
    sample_every: int  # 0: only at the end
    save_every: int


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

    Raises:
      FailureError: the loss or the gradient is not finite (the state is not saved), or a checkpoint cannot be written.
    """
    state = replicate(state)
    step = saved = int(state.step)
    reporter = _Reporter(options, writer, progress)

    def save() -> None:
        nonlocal saved
        reporter.settle(saved)  # a state that is not finite is never saved
        with reporter.throughput.paused():
            checkpointer.save(step, state, batches.get_state(), config)
        saved = step

    with Interrupt() as interrupt:
        while step < options.num_steps and interrupt.received is None:
            with reporter.throughput.waiting_for_data():
                batch = next(batches)
            state, metrics = train_step(state, shard(batch), key)
            step += 1
            reporter.settle(saved)
            reporter.dispatched(step, metrics)

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
    """Holds the metrics of the step in flight, and turns those that have arrived into records."""

    def __init__(self, options: LoopOptions, writer: MetricWriter, progress: Progress):
        self.throughput = Throughput()
        self._options, self._writer, self._progress = options, writer, progress
        self._averages = Averages()
        self._in_flight: tuple[int, Any] | None = None
        self._warm = False

    def dispatched(self, step: int, metrics: Any) -> None:
        """Takes charge of a step's metrics, still on the device."""
        self._in_flight = step, metrics
        self.throughput.add(self._options.batch_size)
        if not self._warm:
            # The first call compiles before it returns; what it took is not the speed of training.
            jax.block_until_ready(metrics)
            self.throughput = Throughput()
            self._warm = True

    def settle(self, saved: int) -> None:
        """Waits for the step in flight, if any, refuses a loss that is not finite, and records it."""
        if self._in_flight is None:
            return
        (step, metrics), self._in_flight = self._in_flight, None
        metrics = jax.device_get(metrics)
        _check_finite(step, metrics, saved)
        self._averages.add(metrics)
        record = None
        if step % self._options.log_every == 0 or step == self._options.num_steps:
            # Rates are those of the last step; everything else is the mean since the record before.
            rates = {"learning_rate": float(metrics["learning_rate"])}
            record = self._averages.means() | rates | self.throughput.read()
            self._writer.write(step, record)
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
