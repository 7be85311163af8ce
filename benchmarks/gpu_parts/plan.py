"""The plan of a part, how it reports that it cannot be measured, and how it takes times."""

import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Record = dict[str, Any]
Save = Callable[[Record], None]


class Plan(NamedTuple):
    """The plan of every part."""

    small: bool  # toy sizes, for a CPU
    folder: pathlib.Path  # what one part leaves for another; of this benchmark alone
    out: pathlib.Path  # what a person may want to keep
    data: str | None  # images to train on
    peer: str  # which PyTorch network
    deadline: float  # of the part, as time.time()

    def left(self) -> float:
        """Seconds that the part may still take."""
        return self.deadline - time.time()


class Skipped(Exception):
    """A part that cannot be measured here, with the sentence that says why."""


def write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Replaces a file as a whole: whoever reads it finds the old one or the new one."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


def read_json(path: pathlib.Path) -> Record | None:
    """What a file holds; None where there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def record_path(name: str, out: pathlib.Path) -> pathlib.Path:
    """The file of what a part has measured so far."""
    return out / f"{name}.json"


def windows(
    call: Callable[[], Any],
    wait: Callable[[Any], object],
    plan: Plan,
    *,
    seconds: float,
) -> list[float]:
    """Returns seconds for a call, of five windows of about so many seconds; fewer if small.

    Each window is waited for once, at its end; the calls in it follow each other as in training.
    What is compiled must have been compiled before.

    Args:
      call: does the work and returns what can be waited for.
      wait: returns when that is done.
      plan: small ones take one call for a window, and three windows.
      seconds: of a window; one call at least.
    """

    def window(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            result = call()
        wait(result)
        return (time.perf_counter() - start) / calls

    if plan.small:
        return [window(1) for _ in range(3)]
    one = min(window(1) for _ in range(2))
    calls = max(1, round(seconds / one))
    return [window(calls) for _ in range(5)]


def median(runs: list[float] | None) -> float | None:
    return statistics.median(runs) if runs else None


class Stopwatch:
    """Whether there is time for one more measurement like the last."""

    def __init__(self, plan: Plan):
        self._plan, self._last, self._start = plan, 0.0, time.time()

    def allows_another(self) -> bool:
        now = time.time()
        self._last, self._start = now - self._start, now
        return self._plan.left() > 1.2 * self._last
