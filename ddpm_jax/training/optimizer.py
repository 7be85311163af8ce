"""The optimiser and its learning rate, from Optax, also for two players."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from ddpm_jax.errors import UsageError, choose


def _constant(learning_rate: float, steps: int) -> optax.Schedule:
    return optax.constant_schedule(learning_rate)


def _cosine(learning_rate: float, steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(learning_rate, steps)


def _linear(learning_rate: float, steps: int) -> optax.Schedule:
    return optax.linear_schedule(learning_rate, 0.0, steps)


DECAYS = {"constant": _constant, "cosine": _cosine, "linear": _linear}


def make_learning_rate(
    learning_rate: float, *, warmup_steps: int, decay: str, num_steps: int, rounds: int = 1
) -> optax.Schedule:
    """Return step -> learning rate.

    Args:
      learning_rate: the peak.
      warmup_steps: W; the rate rises linearly from 0 at step 0 to the peak at step W (Ho et al.
        2020's code: W = 5000).
      decay: what follows, over the remaining num_steps - W steps: a key of `DECAYS`; cosine and
        linear end at 0.
      num_steps: length of the run; only cosine and linear use it.
      rounds: equal parts of the run, in each of which the rate takes this course; updates that are
        left over follow the last.

    Raises:
      UsageError: unknown decay, or a warm-up that leaves no step to decay over.
    """
    if rounds > 1:
        length = num_steps // rounds
        once = make_learning_rate(
            learning_rate, warmup_steps=warmup_steps, decay=decay, num_steps=length
        )
        return lambda step: once(step - length * jnp.minimum(step // length, rounds - 1))
    after_warmup = choose("learning-rate decay", decay, DECAYS)
    if decay != "constant" and warmup_steps >= num_steps:
        raise UsageError(
            f"warmup_steps ({warmup_steps}) must be smaller than num_steps ({num_steps}) to decay "
            "after it."
        )
    schedule = after_warmup(learning_rate, num_steps - warmup_steps)
    if warmup_steps == 0:
        return schedule
    return optax.join_schedules(
        [optax.linear_schedule(0.0, learning_rate, warmup_steps), schedule], [warmup_steps]
    )


def check_length(
    learning_rate: float,
    *,
    warmup_steps: int,
    decay: str,
    num_steps: int,
    saved_num_steps: int,
    step: int,
    rounds: int = 1,
) -> None:
    """Refuse to resume with another run length once the learning rate has begun to fall.

    Until then, the steps done are those of a run begun with the new length. A length below the
    steps done is refused by the caller, not here.

    Args:
      learning_rate: the peak.
      warmup_steps: W.
      decay: a key of `DECAYS`.
      num_steps: the length of the run from now on.
      saved_num_steps: its length so far.
      step: the number of updates done.
      rounds: as of `make_learning_rate`.

    Raises:
      UsageError: the two lengths differ, the decay is not constant, an update after step W is done,
        and the new length is not passed yet.
    """
    if num_steps == saved_num_steps or decay == "constant" or step <= warmup_steps + 1:
        return
    if num_steps < step:
        return
    then, now = (
        float(
            make_learning_rate(
                learning_rate,
                warmup_steps=warmup_steps,
                decay=decay,
                num_steps=length,
                rounds=rounds,
            )(step)
        )
        for length in (saved_num_steps, num_steps)
    )
    raise UsageError(
        f"train.num_steps is {num_steps}, but optimizer.decay={decay} has lowered the learning "
        f"rate over the {saved_num_steps} steps that this run was begun with: at step {step} it "
        f"would be {now:.3g} instead of {then:.3g}, so resume with "
        f"train.num_steps={saved_num_steps}, or begin another run in another workdir."
    )


def _adam(
    learning_rate: optax.Schedule, weight_decay: float, **moments: float
) -> optax.GradientTransformation:
    if weight_decay:
        raise UsageError(f"adam takes no weight decay (it is {weight_decay}): choose adamw.")
    return optax.adam(learning_rate, **moments)


def _adamw(
    learning_rate: optax.Schedule, weight_decay: float, **moments: float
) -> optax.GradientTransformation:
    return optax.adamw(learning_rate, weight_decay=weight_decay, **moments)


OPTIMIZERS = {"adam": _adam, "adamw": _adamw}


def make_optimizer(
    name: str,
    learning_rate: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Return Adam (Kingma & Ba 2015) or AdamW (Loshchilov & Hutter 2019).

    Clipping is left to the step.

    Raises:
      UsageError: unknown name, or weight decay with adam.
    """
    return choose("optimizer", name, OPTIMIZERS)(learning_rate, weight_decay, b1=b1, b2=b2, eps=eps)


def for_players(
    players: Mapping[str, optax.GradientTransformation],
    rest: optax.GradientTransformation,
    *,
    clip_norm: float,
) -> optax.GradientTransformation:
    """Return one optimiser for a dictionary of parameters with optimisers for some entries.

    Args:
      players: name of an entry -> its optimiser.
      rest: of all other entries together.
      clip_norm: global norm to clip each player's gradient to, and that of the rest, by itself: one
        norm for all would make the step of one depend on the gradient of the other. 0 for none.
    """
    others = "/"  # no name of an entry

    def clipped(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        return (
            optax.chain(optax.clip_by_global_norm(clip_norm), optimizer) if clip_norm else optimizer
        )

    def labels(params: Mapping[str, Any]) -> dict[str, str]:
        return {name: name if name in players else others for name in params}

    optimizers = {**players, others: rest}
    return optax.partition(
        {name: clipped(optimizer) for name, optimizer in optimizers.items()}, labels
    )
