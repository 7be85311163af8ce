"""`Denoiser`: a network on one schedule, and the corrections of its predictions.

All information about the images enters here: the meaning of the network's output, guidance,
clipping, known pixels. Samplers and bounds call a `Denoiser` and use nothing else. It is built by
`process.Process.denoiser`; wrappers (`clipping`, `samplers.guidance`, `samplers.editing`) return
another one on the same schedule.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax.numpy as jnp

from ddpm_jax.diffusion.parameterization import Prediction
from ddpm_jax.diffusion.schedules import Schedule, same_schedule
from ddpm_jax.errors import UsageError

# (x_t [B, ...], time float [B], condition if there is one) -> output [B, ..., C or 2C]
Network = Callable[..., chex.Array]
# (schedule, output, x_t, t) -> Prediction
Interpretation = Callable[[Schedule, Any, chex.Array, chex.Array], Prediction]
# (schedule, prediction, x_t, t) -> Prediction
Correction = Callable[[Schedule, Prediction, chex.Array, chex.Array], Prediction]


def unscaled(schedule: Schedule, x_t: chex.Array, t: chex.Array) -> chex.Array:
    """Return x_t, the input of a network that wants it as it is."""
    return x_t


@dataclasses.dataclass(frozen=True, eq=False)
class Denoiser:
    """(x_t [B, ...], t int [B]) -> `Prediction`, t being the row of `schedule`."""

    schedule: Schedule
    network: Network
    interpret: Interpretation  # what the network's output means
    predicts_mean: bool = False  # the mean is the network's own, so clipping x_0 leaves it
    condition: tuple[Any, ...] = ()  # the network's further argument, or nothing
    corrections: tuple[Correction, ...] = ()  # applied in this order
    # (schedule, x_t, t) -> what the network is given of x_t
    network_input: Callable[[Schedule, chex.Array, chex.Array], chex.Array] = unscaled

    def __call__(self, x_t: chex.Array, t: chex.Array) -> Prediction:
        """Evaluate the network once, at the times that it was trained with."""
        given = self.network_input(self.schedule, x_t, t)
        output = self.network(given, jnp.asarray(self.schedule.timesteps)[t], *self.condition)
        return self.read(output, x_t, t)

    def read(self, output: Any, x_t: chex.Array, t: chex.Array) -> Prediction:
        """Return what an output of the network at (x_t, t) predicts, corrected."""
        prediction = self.interpret(self.schedule, output, x_t, t)
        for correct in self.corrections:
            prediction = correct(self.schedule, prediction, x_t, t)
        return prediction

    def given(self, condition: Any) -> "Denoiser":
        """Return the denoiser whose network gets a condition: a pytree of leaves [B, ...]."""
        return dataclasses.replace(self, condition=(condition,))

    def then(self, correction: Correction) -> "Denoiser":
        """Return the denoiser with one more correction of its predictions, applied last."""
        return dataclasses.replace(self, corrections=(*self.corrections, correction))


def from_function(schedule: Schedule, predict: Callable[..., Prediction]) -> Denoiser:
    """Return the denoiser of any function that predicts, for data with known predictions.

    Args:
      schedule: of the rows t.
      predict: (x_t, t, condition if there is one) -> `Prediction`. It replaces the network and its
        interpretation: the network returns only the condition.
    """
    return Denoiser(
        schedule,
        network=lambda x_t, time, *condition: condition,
        interpret=lambda schedule, condition, x_t, t: predict(x_t, t, *condition),
    )


def check_denoiser(denoiser: Any) -> None:
    """Refuse anything but a `Denoiser`, a bare function for example.

    Raises:
      UsageError: see above; the message states how to make one.
    """
    if not isinstance(denoiser, Denoiser):
        raise UsageError(
            f"A Denoiser is needed, which knows its schedule, not a {type(denoiser).__name__}: "
            "make one from a network by make_process(chain, ...).denoiser(network, "
            "sampler.schedule, clip='static'), or from a function (x_t, t) -> Prediction by "
            "denoiser.from_function(sampler.schedule, function)."
        )


def check_same_schedule(denoiser: Denoiser, schedule: Schedule, other: str) -> None:
    """Refuse a denoiser built on another schedule than `schedule`, that of `other`.

    Raises:
      UsageError: see above, or not a denoiser.
    """
    check_denoiser(denoiser)
    if not same_schedule(denoiser.schedule, schedule):
        ours, theirs = (
            f"{len(s.alphas_bar)} rows of {s.alphas_bar.dtype}"
            for s in (denoiser.schedule, schedule)
        )
        raise UsageError(
            f"The denoiser is built on another schedule ({ours}) than {other} ({theirs}), so their "
            f"noise levels differ: give process.denoiser the schedule of {other}; in a compiled "
            "function both must be built on one and the same argument."
        )
