"""The objective of progressive distillation: in every round a student learns two steps as one."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.gaussian import q_sample
from ddpm_jax.diffusion.level_draws import quantiles
from ddpm_jax.diffusion.likelihood import mean_over_dims
from ddpm_jax.diffusion.parameterization import MU
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.step_halving import halved_x_0, truncated_snr
from ddpm_jax.errors import UsageError
from ddpm_jax.randomness import stream
from ddpm_jax.training import ema
from ddpm_jax.training.objective import ApplyTrain, Drawing, Objective, loss_over_time
from ddpm_jax.training.state import TrainState


class Halving(NamedTuple):
    """The rounds of a run."""

    # of the first teacher, real numbers rising in 0..T-1, [N 2^R]; a round keeps every second
    times: np.ndarray
    num_rounds: int  # R, after which N are left
    steps_per_round: int  # updates; the last round has what remains of the run


class Round(NamedTuple):
    """The state of the objective."""

    number: chex.Array  # int32 scalar, 0..R-1
    teacher: Any  # parameters, which no update of the round changes


class ProgressiveAux(NamedTuple):
    """Per-example results, [B]."""

    t: chex.Array  # int, the level among the T of the process
    loss: chex.Array
    round: chex.Array


def progressive_objective(
    apply: ApplyTrain,
    process: Process,
    halving: Halving,
    drawing: Drawing,
    *,
    clip: str,
) -> Objective:
    """Return the objective of a student that makes one DDIM step of two of its teacher's.

    A round begins with the moving average of the one before as teacher and as student, which is
    also where its own average begins; the optimizer's moments go on. This happens at the start of
    the first update of a round, from the state alone, so that a run can be stopped at any step.

    Args:
      apply: the network with its parameters as first argument.
      process: the levels, and what the network predicts.
      halving: the rounds and their levels.
      drawing: how examples are drawn from a batch.
      clip: of the teacher's x_0, a key of `clipping.CLIPPINGS`: as its samples are made.

    Returns:
      An `Objective` over the batches of `objective.diffusion_objective`. The loss is max(SNR, 1)
      times the mean squared error of x_0, over levels drawn evenly from those of the student.

    Raises:
      UsageError: a network that predicts mu, the mean of a step that the student does not make.

    Source: Salimans & Ho 2022, algorithm 2.
    """
    if process.parameterization is MU:
        raise UsageError(
            "A network that predicts mu says where one step of its chain leads, and a student "
            "makes longer ones: progressive distillation needs one that predicts eps, x_0, v, the "
            "score or a velocity."
        )
    schedule = process.chain.at(halving.times)
    numbers = np.asarray(halving.times).astype(np.int32)
    num_levels = len(halving.times)

    def loss_fn(params, frozen, state, batch, key, index):
        example = drawing.examples(batch, key, index)
        # rows of the first teacher's levels that a step of the student passes: row -1 is clean data
        stride = 2 << state.number
        steps = num_levels // stride
        u = quantiles(stream(key, "t"), index, antithetic=False)
        row = (jnp.minimum((u * steps).astype(jnp.int32), steps - 1) + 1) * stride - 1

        def teach(x, time):
            return apply(state.teacher, x, time, example.condition, None)

        def learn(x, time):
            return apply(params, x, time, example.condition, example.dropout_keys)

        x_t = q_sample(schedule, example.x_0, row, example.eps)
        teacher = process.denoiser(teach, schedule, clip=clip)
        wanted = halved_x_0(teacher, x_t, row, row - stride // 2, row - stride)

        found = process.x_0(learn, schedule, x_t, row)
        error = mean_over_dims(jnp.square(found - jax.lax.stop_gradient(wanted)))
        loss = truncated_snr(schedule, row) * error
        number = jnp.broadcast_to(state.number, loss.shape)
        return loss, ProgressiveAux(jnp.asarray(numbers)[row], loss, number)

    def begin_step(state: TrainState) -> TrainState:
        number = jnp.minimum(state.step // halving.steps_per_round, halving.num_rounds - 1)

        def begin_round(state):
            student = state.ema_params
            return state._replace(
                params=student,
                averages={name: student for name in state.averages},
                objective_state=Round(number, student),
            )

        return jax.lax.cond(
            number > state.objective_state.number, begin_round, lambda state: state, state
        )

    def metrics(aux: ProgressiveAux) -> dict[str, Any]:
        number = jnp.sum(aux.round.astype(jnp.float32)), jnp.float32(aux.round.size)
        return {"round": number} | loss_over_time(aux.t, aux.loss, process.chain.num_timesteps)

    return Objective(
        init=lambda params: Round(jnp.int32(0), ema.init(params)),
        loss=loss_fn,
        update=lambda state, aux: state,
        metrics=metrics,
        begin_step=begin_step,
    )
