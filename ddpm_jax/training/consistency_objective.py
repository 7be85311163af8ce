"""The objective of consistency tuning: a denoiser becomes a function that takes few steps."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion import consistency
from ddpm_jax.diffusion.chain import Chain, ContinuousChain
from ddpm_jax.diffusion.gaussian import over, q_sample
from ddpm_jax.diffusion.level_draws import numbered, quantiles
from ddpm_jax.diffusion.parameterization import MU, edm_parameterization
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.schedules import single_levels
from ddpm_jax.errors import UsageError
from ddpm_jax.randomness import stream
from ddpm_jax.training.objective import ApplyTrain, Drawing, Objective, loss_over_time


class Tuning(NamedTuple):
    """How levels are drawn and compared."""

    steps_per_stage: int  # updates after which the compared levels come nearer to each other
    num_stages: int
    log_mean: float  # of ln σ
    log_std: float
    huber: float = 0.0  # c of `consistency_loss`


class ConsistencyAux(NamedTuple):
    """Per-example results, [B]."""

    t: chex.Array  # the quantile of the level among those drawn, as one of T
    loss: chex.Array
    stage: chex.Array


def continuous(chain: Chain) -> ContinuousChain:
    """Return a chain as a process in continuous time, whose levels lie on and between its steps.

    Raises:
      UsageError: it ends without signal, where σ is infinite.
    """
    if isinstance(chain, ContinuousChain):
        return chain
    log_sigmas = chain.log_sigmas
    if not np.isfinite(log_sigmas[-1]):
        raise UsageError(
            "This chain ends at alphas_bar = 0, where the noise level sigma is infinite: "
            "consistency tuning needs a chain that keeps some signal."
        )
    times = np.arange(chain.num_timesteps)
    return Chain.from_sigmas(np.exp(log_sigmas), chain.network_times(times))


def consistency_objective(
    apply: ApplyTrain, process: Process, tuning: Tuning, drawing: Drawing
) -> Objective:
    """Return the objective that asks of D one image for two levels of one path.

    At first the nearer level is clean data, and the loss that of a denoiser; with every stage of
    `steps_per_stage` updates the levels come nearer to each other. The model begins with the
    weights of a diffusion model (`init_from`), whose parameterisation it keeps. The weights of the
    levels are those of the reference for a network of EDM's preconditioning, and for others such
    that the gradient in their output is as large: else a network that predicts ε, whose error
    counts σ times, would learn the noisiest levels alone.

    Args:
      apply: the network with its parameters as first argument.
      process: the chain or the process in continuous time, and what the network predicts.
      tuning: see `Tuning`.
      drawing: how examples are drawn from a batch; its coupling is that of the teacher, whose flow
        it decides.

    Returns:
      An `Objective` over the batches of `objective.diffusion_objective`; its state counts updates.

    Raises:
      UsageError: a chain that ends without signal, or a network that predicts mu, which is the mean
        of a step and not defined at a level alone.

    Source: Geng et al. 2024, Consistency Models Made Easy, algorithm 1.
    """
    if process.parameterization is MU:
        raise UsageError(
            "A network that predicts mu says nothing of levels between the steps of its chain: "
            "consistency tuning needs one that predicts eps, x_0, v, the score or a velocity."
        )
    levels = continuous(process.chain)
    ends = levels.log_sigmas_at(np.array([0.0, levels.num_timesteps - 1]))
    reference = edm_parameterization()
    lowest, highest = float(ends[0]), float(min(ends[1], np.log(1e4)))

    def level(log_sigma):
        return single_levels(-log_sigma, levels.network_times_of(log_sigma))

    def weight(schedule, row):
        """How far D moves with the output of EDM's network, over how far with this one's."""
        own = process.parameterization.eps_error(schedule, row)
        return jnp.sqrt(reference.eps_error(schedule, row) / own)

    def denoise(params, schedule, x_0, eps, *inputs):
        """D at the levels of the schedule's rows [B], of the path through x_0 and eps."""
        row = jnp.arange(len(x_0))
        x_t = q_sample(schedule, x_0, row, eps)
        return process.x_0(lambda x, time: apply(params, x, time, *inputs), schedule, x_t, row)

    def loss_fn(params, frozen, count, batch, key, index):
        # the same dropout at both levels, so that they differ in nothing else
        x_0, eps, *inputs = drawing.examples(batch, key, index)
        u = quantiles(stream(key, "t"), index, antithetic=False)
        drawn = tuning.log_mean + tuning.log_std * jax.scipy.special.ndtri(u)
        log_sigma = jnp.clip(drawn, lowest, highest)

        stage = jnp.minimum(count // tuning.steps_per_stage, tuning.num_stages - 1)
        sigma = jnp.exp(log_sigma)
        earlier = consistency.earlier_sigma(sigma, stage)
        # Below the chain's least noise there is clean data only.
        is_data = earlier <= np.exp(lowest)
        earlier = jnp.where(is_data, 0.0, earlier)
        nearer = denoise(
            jax.lax.stop_gradient(params),
            level(jnp.log(jnp.where(is_data, sigma, earlier))),
            x_0,
            eps,
            *inputs,
        )
        wanted = jnp.where(over(is_data, x_0), x_0, nearer)
        schedule = level(log_sigma)
        found = denoise(params, schedule, x_0, eps, *inputs)
        loss = consistency.consistency_loss(found, wanted, sigma, earlier, huber=tuning.huber)
        loss = weight(schedule, jnp.arange(len(x_0))) * loss
        t = numbered(u, levels.num_timesteps)
        return loss, ConsistencyAux(t, loss, jnp.broadcast_to(stage, loss.shape))

    def metrics(aux: ConsistencyAux) -> dict[str, Any]:
        stage = jnp.sum(aux.stage.astype(jnp.float32)), jnp.float32(aux.stage.size)
        return {"stage": stage} | loss_over_time(aux.t, aux.loss, levels.num_timesteps)

    return Objective(
        init=lambda params: jnp.int32(0),
        loss=loss_fn,
        update=lambda count, aux: count + 1,
        metrics=metrics,
    )
