"""Progress of a long computation: a bar on a terminal, occasional lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TextIO, TypeVar

from ddpm_jax.distributed import hosts
from ddpm_jax.errors import say, visible

if TYPE_CHECKING:
    from tqdm import tqdm

Item = TypeVar("Item")
# seconds to the first line, and between two: shorter computations print none
FIRST, EVERY = 5.0, 10.0


def _bar(file: TextIO, **options) -> "tqdm":
    from tqdm import tqdm  # which takes long to import, and few starts draw a bar

    return tqdm(file=file, dynamic_ncols=True, **options)


class Counter:
    """A count towards a total, shown by the primary process only."""

    def __init__(
        self,
        what: str,
        total: int,
        *,
        unit: str,
        initial: int = 0,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Start the clock.

        Args:
          what: what is being done, as in "sampling".
          total: of the units.
          unit: in the singular.
          initial: done before.
          file: by default standard error.
          clock: returns seconds.
        """
        self._what, self._unit, self._total = what, unit, total
        self._file = sys.stderr if file is None else file
        self._clock, self._start, self._due = clock, clock(), FIRST
        # When the first part was done, and how much was done then: compilation, and results found
        # on disk, come before it.
        self._first: tuple[float, float] | None = None
        self.done = initial
        self._bar = self._inner = None
        self._silent = not hosts.is_primary()
        if not self._silent and self._file.isatty():
            self._bar = self._new_bar(
                total=total, initial=initial, unit=unit, desc=what, postfix="compiling"
            )

    def _new_bar(self, **options) -> "tqdm":
        return _bar(self._file, unit_scale=True, **options)

    def add(self, count: int) -> None:
        """Count so many more units as done."""
        self._note(self.done + count)
        self.reach(self.done + count)

    def reach(self, done: int) -> None:
        """Set how many units are done in all, whoever did them."""
        self.done = done
        if self._bar is not None:
            self._bar.set_postfix_str("", refresh=False)
            self._bar.update(done - self._bar.n)
        self._line(done)

    def within(self, units: int, done: int, total: int) -> None:
        """Report the part done/total of the next units, which are computed together."""
        if self._bar is not None:
            if self._inner is None:
                self._bar.set_postfix_str("")
                self._inner = self._new_bar(total=total, unit="row", desc="chain", leave=False)
            self._inner.update(done - self._inner.n)
            if done == total:
                self._inner.close()
                self._inner = None
        self._note(self.done + units * done / total)
        self._line(self.done + units * done / total)

    def _note(self, done: float) -> None:
        self._first = self._first or (self._clock() - self._start, done)

    def _line(self, done: float) -> None:
        seconds = self._clock() - self._start
        if self._silent or self._bar is not None or seconds < self._due or done >= self._total:
            return
        self._due = seconds + EVERY
        since, before = self._first or (seconds, done)
        rate = (done - before) / max(seconds - since, 1e-9)
        left = f", about {duration((self._total - done) / rate)} to go" if rate > 0 else ""
        share = f"{done / self._total:.0%} of {self._total:,} {self._unit}s"
        say(f"{self._what}: {share} after {duration(seconds)}{left}", file=self._file)
        self._file.flush()

    def close(self) -> None:
        """Leave the cursor on a new line; harmless when repeated."""
        for bar in (self._inner, self._bar):
            if bar is not None:
                bar.close()
        self._inner = self._bar = None
        self._silent = True

    def __enter__(self) -> "Counter":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def counted(items: Iterable[Item], what: str, total: int, *, unit: str) -> Iterator[Item]:
    """Yield the items and count those that have been used."""
    with Counter(what, total, unit=unit) as counter:
        for item in items:
            yield item
            counter.add(1)


def duration(seconds: float) -> str:
    """Return a time in the unit that a person would use: 45 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# More would push the bar off the line.
_IN_BAR = ("loss", "grad_norm", "images_per_second", "data_wait")
_LABELS = {"images_per_second": "images/s", "data_wait": "data wait"}


class Progress:
    """A bar on a terminal, plain lines elsewhere.

    In a log file a bar would be one line of control characters.
    """

    def __init__(self, total_steps: int, *, start_step: int = 0, file: TextIO | None = None):
        """Start at `start_step` updates of `total_steps`.

        `file` is standard error by default.
        """
        self._total = total_steps
        self._file = sys.stderr if file is None else file
        self._bar = self._drawn = None
        if self._file.isatty():
            self._bar = _bar(self._file, total=total_steps, initial=start_step, unit="step")

    def update(self, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Report that `step` updates are done; without metrics no line is printed."""
        if self._bar is not None:
            if metrics is not None:
                shown = {name: metrics[name] for name in _IN_BAR if name in metrics}
                self._bar.set_postfix_str(self._format(shown), refresh=False)
            self._bar.update(step - self._bar.n)
        elif metrics is not None:
            print(f"step {step}/{self._total} {self._format(metrics)}", file=self._file, flush=True)

    def drawing(self, what: str, done: int, total: int) -> None:
        """Report that the part done/total of a picture is drawn, in the bar or by a line."""
        if self._bar is not None:
            self._bar.set_description_str(
                f"drawing {what}, {done / total:.0%}" if done < total else ""
            )
            return
        if self._drawn is None:
            self._drawn = Counter(f"drawing {what}", total, unit="row", file=self._file)
        self._drawn.add(done - self._drawn.done)
        if done == total:
            self._drawn = None

    def say(self, line: str) -> None:
        """Print a line above the bar, or after the lines so far."""
        line = visible(line)
        if self._bar is not None:
            self._bar.write(line, file=self._file)
        else:
            print(line, file=self._file, flush=True)

    def close(self) -> None:
        """Leave the cursor on a new line; harmless when repeated."""
        if self._bar is not None:
            self._bar.close()

    def _format(self, metrics: Mapping[str, float]) -> str:
        return " ".join(
            f"{_LABELS.get(name, name)} {_short(name, value)}" for name, value in metrics.items()
        )


def _short(name: str, value: float) -> str:
    """Return four significant digits, large numbers in full, a share in per cent.

    Examples are 0.0432, 2e-05, 12345 and 3.1%.
    """
    if name == "data_wait":
        return f"{value:.1%}"
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
