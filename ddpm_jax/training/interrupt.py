"""Ctrl-C and SIGTERM as a request that the loop honours between two steps, so that it can save first."""

import signal
import sys
from types import FrameType


class Interrupt:
    """While entered, the first SIGINT or SIGTERM is noted instead of obeyed; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Interrupt":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        print(f"\n{self.received.name}: saving after this step; Ctrl-C again stops without saving.", file=sys.stderr)
