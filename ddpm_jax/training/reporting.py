"""Records made from the metrics of dispatched steps, one call behind the device.

The loop hands over the results of a call, still on the device, and asks for them when the next call
is on its way. A step that is not finite is counted, or ends the run.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ddpm_jax.monitoring.averages import Averages
from ddpm_jax.monitoring.metric_writer import MetricWriter
from ddpm_jax.monitoring.progress import Progress
from ddpm_jax.monitoring.throughput import Throughput
from ddpm_jax.training.options import LoopOptions

SINCE_RECORD = "since_record"  # in the data item of a checkpoint that was saved between two records


class NotFinite(Exception):
    """A step that is not finite and may not be skipped."""

    def __init__(self, step: int, name: str, value: float, in_a_row: int, batch: Any):
        self.step, self.name, self.value, self.in_a_row, self.batch = (
            step,
            name,
            value,
            in_a_row,
            batch,
        )

    def sentence(self, saved: int, why: str | None) -> str:
        """Return the message: which number, when, why, what is kept and what to do."""
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


class Reporter:
    """The metrics of the call in flight, turned into records when they arrive."""

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
        """Keep the metrics, still on the device, of the steps up to `step`; stacked if several.

        `fetched` holds the batch of each.
        """
        self._in_flight, count = (step, metrics, fetched), len(fetched)
        self.throughput.add(self._options.batch_size * count, metrics)
        if count not in self._compiled:
            # The first call compiles before it returns: its time does not count for the throughput.
            jax.block_until_ready(metrics)
            self.throughput = Throughput()
            self._compiled.add(count)

    def settle(self) -> None:
        """Wait for the call in flight, if any, and record each of its steps.

        Raises:
          NotFinite: the loss or the gradient of one is not finite, and it may not be skipped.
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
        """Return the pending averages of the next record, for a checkpoint's data item."""
        averages = self._averages.get_state()
        return (
            {SINCE_RECORD: averages | {"skipped": self._skipped}}
            if averages or self._skipped
            else {}
        )

    def set_state(self, since_record: Mapping[str, Any]) -> None:
        """Restore what `get_state` returned."""
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
            raise NotFinite(step, wrong[0], float(metrics[wrong[0]]), self._in_a_row, batch)
        return not wrong
