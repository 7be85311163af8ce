"""Ctrl-C and SIGTERM as a request that the loop honours between two steps, so that it can save first."""

import os
import signal
from types import FrameType

STDERR = 2


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
            # None is a handler that was not set from Python and cannot be set again from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        message = f"\n{self.received.name}: saving after this step; Ctrl-C again stops without saving.\n"
        # Not print: sys.stderr refuses to be entered again where the signal arrived in the middle of a line.
        os.write(STDERR, message.encode())
