"""What a user's program may do while a run trains."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_jax.distributed.interrupt import Interrupt, Wish
from ddpm_jax.training.state import TrainState


class StopTraining(Exception):
    """Raised by a callback: the run saves after the step under way and ends."""


class Callback:
    """What is called while a run trains: override the methods you need.

        class Patience(ddpm_jax.Callback):
            def on_record(self, step, metrics):
                if metrics.get("loss", 1.0) < 0.03:
                    raise ddpm_jax.StopTraining

    Of several processes only the primary one calls `on_record`; the others are called on all.
    States are on the devices, and their buffers are reused by the next step: copy what you keep
    (`jax.device_get`). `StopTraining` ends the run in order; any other exception at once.
    """

    def on_record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Called with each record of `metrics.jsonl`: those of the loss, and those of samples."""

    def on_sample(self, step: int, state: TrainState) -> None:
        """Called after the samples of a step have been drawn, if the model draws any."""

    def on_checkpoint(self, step: int, state: TrainState) -> None:
        """Called when a checkpoint has been handed over; its files may still be being written."""


class Callbacks:
    """The callbacks of a run, which may end it; also a viewer for `MetricWriter`."""

    def __init__(self, callbacks: Sequence[Callback], interrupt: Interrupt):
        """Take the callbacks, and what they stop the run by."""
        self._callbacks, self._interrupt = tuple(callbacks), interrupt

    def on_sample(self, step: int, state: TrainState) -> None:
        """Tell all of drawn samples."""
        self._call(lambda callback: callback.on_sample(step, state))

    def on_checkpoint(self, step: int, state: TrainState) -> None:
        """Tell all of a checkpoint."""
        self._call(lambda callback: callback.on_checkpoint(step, state))

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell all of a record."""
        self._call(lambda callback: callback.on_record(step, metrics))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Ignore a picture."""

    def histogram(self, step: int, name: str, edges: np.ndarray, values: np.ndarray) -> None:
        """Ignore bars."""

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def _call(self, call: Callable[[Callback], Any]) -> None:
        for callback in self._callbacks:
            try:
                call(callback)
            except StopTraining:
                self._interrupt.request(Wish.CALLBACK)
