"""Means of training metrics between two records, and histograms of metrics over time t.

The metrics themselves are defined by the objective, the step and the loop.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.schema import Malformed, Number, Table, check


class ByTime(NamedTuple):
    """Sums and counts, [K], of the examples in each of K equal parts of 0 <= t/T < 1."""

    sum: Any
    count: Any


class Histogram(NamedTuple):
    """Bars: their edges and heights."""

    edges: np.ndarray  # [K + 1], increasing
    values: np.ndarray  # [K], not negative


_BARS = Table({"sum": None, "count": None})
_AVERAGES = Table(
    {},
    {
        "sums": Table(others=Number()),
        "counts": Table(others=Number()),
        "by_time": Table(others=_BARS),
    },
)


class Averages:
    """Means of per-step metrics since the last record.

    A metric is a number, or a pair (sum, count) for a mean over some of the examples only. Either
    may be a vector [K], which stands for K metrics named `name1` ... `nameK`: the loss by quartile
    of t is a pair of [4] vectors.

      averages.add({"loss": 0.5, "loss_q": (sums, counts)})
      averages.means()  # {"loss": 0.5, "loss_q1": ..., "loss_q4": ...}, without the quartiles that
      no t fell into

    A pair that is a `ByTime` becomes a histogram instead.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}
        self._by_time: dict[str, ByTime] = {}

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Add the metrics of one step.

        They are numbers, [K] vectors, or tuples (sum, count) of either with count >= 0.
        """
        for name, value in metrics.items():
            if isinstance(value, ByTime):
                total, count = (np.asarray(part, np.float64) for part in value)
                before = self._by_time.get(name, ByTime(0.0, 0.0))
                self._by_time[name] = ByTime(before.sum + total, before.count + count)
                continue
            total, count = value if isinstance(value, tuple) else (value, np.ones(np.shape(value)))
            total, count = np.broadcast_arrays(
                np.asarray(total, np.float64), np.asarray(count, np.float64)
            )
            names = [name] if total.ndim == 0 else [f"{name}{i}" for i in range(1, len(total) + 1)]
            for key, addend, weight in zip(
                names, total.reshape(-1), count.reshape(-1), strict=True
            ):
                self._sums[key] = self._sums.get(key, 0.0) + float(addend)
                self._counts[key] = self._counts.get(key, 0.0) + float(weight)

    def get_state(self) -> dict[str, Any]:
        """Return what was added since the means were last read, JSON-able.

        {} if nothing was, or if a sum is not finite.
        """
        numbers = [
            *self._sums.values(),
            *(x for pair in self._by_time.values() for part in pair for x in part),
        ]
        if not self._counts or not np.all(np.isfinite(numbers)):
            return {}
        by_time = {
            name: {"sum": list(s), "count": list(c)} for name, (s, c) in self._by_time.items()
        }
        return {"sums": dict(self._sums), "counts": dict(self._counts), "by_time": by_time}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `get_state` returned.

        Raises:
          UsageError: it is malformed.
        """
        try:
            check(state, _AVERAGES)
            by_time = {
                name: ByTime(*(np.array(part[field], np.float64) for field in ("sum", "count")))
                for name, part in state.get("by_time", {}).items()
            }
        except (Malformed, ValueError, TypeError) as error:
            raise UsageError(f"The averages in the checkpoint are malformed: {error}.") from error
        self._sums, self._counts = dict(state.get("sums", {})), dict(state.get("counts", {}))
        self._by_time = by_time

    def means(self) -> dict[str, float]:
        """Return the means and start over; a metric whose counts are all 0 is left out."""
        means = {
            name: total / self._counts[name]
            for name, total in self._sums.items()
            if self._counts[name] > 0
        }
        self._sums, self._counts = {}, {}
        return means

    def histograms(self) -> dict[str, Histogram]:
        """Return the means over each part of 0 <= t/T < 1 and start over; 0 where no t fell."""
        by_time, self._by_time = self._by_time, {}
        return {
            name: Histogram(np.linspace(0.0, 1.0, len(total) + 1), total / np.maximum(count, 1))
            for name, (total, count) in by_time.items()
        }
