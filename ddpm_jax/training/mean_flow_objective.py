"""The objective of a mean flow: the mean velocity between two times, learned from scratch."""

from typing import Any, NamedTuple

import chex
import jax.numpy as jnp

from ddpm_jax.diffusion.chain import ContinuousChain
from ddpm_jax.diffusion.gaussian import over
from ddpm_jax.diffusion.interpolants import FLOW
from ddpm_jax.diffusion.level_draws import LogSigma, numbered, quantiles
from ddpm_jax.diffusion.likelihood import mean_over_dims
from ddpm_jax.diffusion.mean_velocity import adaptive_loss, mean_velocity_and_target
from ddpm_jax.diffusion.parameterization import VELOCITY
from ddpm_jax.diffusion.process import Process, check_output
from ddpm_jax.errors import UsageError
from ddpm_jax.randomness import stream
from ddpm_jax.training.objective import ApplyTrain, Drawing, Objective, loss_over_time


class Learning(NamedTuple):
    """How times are drawn and errors weighed."""

    share: float  # of examples whose two times differ
    power: float  # p of the adaptive weight
    constant: float  # c of it


class MeanFlowAux(NamedTuple):
    """Per-example results, [B]."""

    t: chex.Array  # the later time, as one of T levels
    error: chex.Array  # mean square, before the adaptive weight


def mean_flow_objective(
    apply: ApplyTrain,
    process: Process,
    learning: Learning,
    drawing: Drawing,
    *,
    log_sigma: LogSigma,
) -> Objective:
    """Return the objective of u(z, r, t), the mean of the flow's velocity from r to t.

    Two times are drawn for each image, and the network is compared with the right side of
    `mean_velocity_and_target`. Where r = t that is flow matching.

    Args:
      apply: the network with its parameters as first argument; its time is [B, 2], t and then r.
      process: a flow, and a network that predicts the velocity.
      learning: see `Learning`.
      drawing: how examples are drawn from a batch.
      log_sigma: the distribution of the levels of both times, of which t is the later one.

    Returns:
      An `Objective` over the batches of `objective.diffusion_objective`. Its records have the error
      before the weight, which makes the loss nearly constant.

    Raises:
      UsageError: another process or prediction.

    Source: Geng et al. 2025, Mean Flows for One-step Generative Modeling, algorithm 1.
    """
    chain = process.chain
    is_flow = isinstance(chain, ContinuousChain) and chain.interpolant is FLOW
    if not is_flow or process.parameterization is not VELOCITY:
        raise UsageError(
            "A mean flow is the mean velocity of a flow: set diffusion.process to 'flow' and "
            "diffusion.parameterization to 'velocity'."
        )

    def draw_times(key, index):
        """Return t, r and the quantile of t."""
        one, other = (quantiles(stream(key, name), index, antithetic=False) for name in ("t", "r"))
        later, earlier = jnp.maximum(one, other), jnp.minimum(one, other)
        differ = quantiles(stream(key, "apart"), index, antithetic=False) < learning.share
        later = jnp.where(differ, later, one)
        earlier = jnp.where(differ, earlier, one)
        return *(FLOW.time(log_sigma(u)) for u in (later, earlier)), later

    def loss_fn(params, frozen, state, batch, key, index):
        x_0, eps, *inputs = drawing.examples(batch, key, index)
        t, r, quantile = draw_times(key, index)
        part = over(t, x_0)
        z, v = (1 - part) * x_0 + part * eps, eps - x_0

        def mean_velocity(z, t, r):
            output = apply(params, z, chain.time_scale * jnp.stack([t, r], axis=1), *inputs)
            check_output(process.variance, output, z)
            return output

        u, wanted = mean_velocity_and_target(mean_velocity, z, t, r, v)
        loss = adaptive_loss(u, wanted, power=learning.power, constant=learning.constant)
        error = mean_over_dims(jnp.square(u - wanted))
        return loss, MeanFlowAux(numbered(quantile, chain.num_timesteps), error)

    def metrics(aux: MeanFlowAux) -> dict[str, Any]:
        error = jnp.sum(aux.error), jnp.float32(aux.error.size)
        return {"error": error} | loss_over_time(aux.t, aux.error, chain.num_timesteps)

    return Objective(
        init=lambda params: (), loss=loss_fn, update=lambda state, aux: state, metrics=metrics
    )
