"""Hooks that a user's program can run during training."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_jax.distributed.interrupt import Interrupt, Wish
from ddpm_jax.errors import UsageError
from ddpm_jax.training.state import TrainState


class StopTraining(Exception):
    """Raised by a callback: the run saves after the step under way and ends."""


class Callback:
    """Hooks called while a run trains: override the methods you need.

        class Patience(ddpm_jax.Callback):
            def on_record(self, step, metrics):
                if metrics.get("loss", 1.0) < 0.03:
                    raise ddpm_jax.StopTraining

    With several processes `on_record` is called on the primary one only, the other hooks on all.
    States are on the devices, and their buffers are reused by the next step: copy what you keep
    (`jax.device_get`). `StopTraining` ends the run after a save; any other exception ends it at
    once.
    """

    def on_record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Handle a record of `metrics.jsonl`: one of the loss, or one of samples."""

    def on_sample(self, step: int, state: TrainState) -> None:
        """Handle a step whose samples have been drawn, if the model draws any."""

    def on_checkpoint(self, step: int, state: TrainState) -> None:
        """Handle a checkpoint that is being written; its files may not be complete yet."""


class Callbacks:
    """The callbacks of a run, which may end it; also a viewer for `MetricWriter`."""

    def __init__(self, callbacks: Sequence[Callback], interrupt: Interrupt):
        """Store the callbacks, and the interrupt through which they stop the run."""
        self._callbacks, self._interrupt = tuple(callbacks), interrupt

    def on_sample(self, step: int, state: TrainState) -> None:
        """Call `on_sample` of every callback."""
        self._call(lambda callback: callback.on_sample(step, state))

    def on_checkpoint(self, step: int, state: TrainState) -> None:
        """Call `on_checkpoint` of every callback."""
        self._call(lambda callback: callback.on_checkpoint(step, state))

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Call `on_record` of every callback."""
        self._call(lambda callback: callback.on_record(step, metrics))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Ignore a picture."""

    def histogram(self, step: int, name: str, edges: np.ndarray, values: np.ndarray) -> None:
        """Ignore a histogram."""

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def _call(self, call: Callable[[Callback], Any]) -> None:
        for callback in self._callbacks:
            try:
                call(callback)
            except StopTraining:
                self._interrupt.request(Wish.CALLBACK)


def check_callbacks(callbacks: Sequence[Callback] | Callback) -> list[Callback]:
    """Return callbacks as a list, one alone too.

    Raises:
      UsageError: one is no object of a class derived from `Callback`.
    """
    given = list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
    for callback in given:
        if not isinstance(callback, Callback):
            raise UsageError(
                f"The callback {callback!r} is none: give objects of classes derived from "
                "ddpm_jax.Callback."
            )
    return given
