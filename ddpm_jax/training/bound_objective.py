"""The objective of a process whose levels are learned: the variational bound, and its variance.

Kingma et al. 2021, Variational Diffusion Models. Network and levels γ are trained by one loss, the
bound of `diffusion.continuous_bound`. Where T is infinite the bound depends on the ends of γ alone,
and its interior is trained to lower the variance of the estimate: by the gradient of the square of
each example's loss, whose expectation is all of the variance that depends on it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ddpm_jax.diffusion import continuous_bound
from ddpm_jax.diffusion.gaussian import q_sample
from ddpm_jax.diffusion.learned_levels import GAMMA, gamma, gamma_and_rate, gamma_ends
from ddpm_jax.diffusion.level_draws import numbered
from ddpm_jax.diffusion.likelihood import mean_over_dims
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.schedules import single_levels
from ddpm_jax.randomness import example_keys, normal, stream
from ddpm_jax.training.objective import (
    ApplyTrain,
    Drawing,
    Objective,
    check_continuous,
    draw_quantiles,
    loss_over_time,
)


class BoundAux(NamedTuple):
    """Per-example results, [B], terms of the bound in bits/dim."""

    t: chex.Array  # the time of the level, as one of T
    diffusion: chex.Array
    decoder: chex.Array
    prior: chex.Array
    first: chex.Array  # γ_0, the same for all
    last: chex.Array  # γ_1


def with_variance_gradient(
    loss: Callable[..., chex.Array],
) -> Callable[..., chex.Array]:
    """Return f(params, ends, interior, given) = loss(params, ends, given), with other gradients.

    `ends` and `interior` are the same levels of B examples, leaves [B], as functions of other
    parameters each. The gradient of f in the first two is that of the loss; in the third it is that
    of the square of each example's loss, 2 L ∂L. Both take one pass through the network, since
    no example's loss depends on the levels of another (Kingma et al. 2021, appendix on the variance
    of the estimator). What is `given`, any arrays, has none.
    """

    @jax.custom_vjp
    def value(params, ends, interior, given):
        return loss(params, ends, given)

    def forward(params, ends, interior, given):
        losses, pullback = jax.vjp(lambda *inputs: loss(*inputs, given), params, ends)
        return losses, (losses, pullback)

    def backward(saved, cotangent):
        losses, pullback = saved
        of_params, of_levels = pullback(cotangent)
        return of_params, of_levels, jax.tree.map(lambda one: 2 * losses * one, of_levels), None

    value.defvjp(forward, backward)
    return value


def bound_objective(
    apply: ApplyTrain,
    process: Process,
    drawing: Drawing,
    *,
    steps: int | None,
    timestep_sampling: str,
    batch_size: int,
) -> Objective:
    """Return the objective that lowers the variational bound over network and levels.

    Args:
      apply: the network with its parameters as first argument.
      process: what the network predicts, and the network's time of a level; the levels themselves
        are those of the parameters.
      drawing: how examples are drawn from a batch.
      steps: T of the bound; None for an infinite one. Of a finite T the interior of γ is trained by
        the bound too, which depends on it.
      timestep_sampling: uniform, antithetic or low_discrepancy.
      batch_size: of the global batch.

    Returns:
      An `Objective` over the batches of `objective.diffusion_objective`, whose images are 8-bit
      pixels. Its parameters are those of the network and of γ, under `GAMMA`; its loss is in
      bits/dim.

    Raises:
      UsageError: unknown timestep_sampling, or importance sampling.
    """
    check_continuous(timestep_sampling)
    chain, parameterization = process.chain, process.parameterization

    def squared_error(params, levels, example):
        """Mean over dimensions of (ε - ε̂)² at γ [B], [B]."""
        schedule = single_levels(-levels / 2, chain.network_times_of(levels / 2))
        row = jnp.arange(len(levels))
        x_t = q_sample(schedule, example.x_0, row, example.eps)

        def network(x, time):
            return apply(params, x, time, example.condition, example.dropout_keys)

        output = process.output(network, schedule, x_t, row)
        target = parameterization.target(schedule, x_t, row, example.x_0, example.eps)
        error = mean_over_dims(jnp.square(target - output))
        return parameterization.eps_error(schedule, row) * error

    def continuous_loss(params, levels, u, example):
        def loss(params, levels_and_rate, example):
            levels, rate = levels_and_rate
            weight = continuous_bound.continuous_weight(rate)
            return weight * squared_error(params, levels, example)

        ends, interior = (
            gamma_and_rate({**jax.lax.stop_gradient(levels), name: levels[name]}, u)
            for name in ("ends", "interior")
        )
        # the example is an argument: a function of this kind must not refer to arrays of a trace
        return with_variance_gradient(loss)(params, ends, interior, example)

    def discrete_loss(params, levels, u, example):
        t = jnp.ceil(u * steps)
        gamma_s, gamma_t = gamma(levels, (t - 1) / steps), gamma(levels, t / steps)
        weight = continuous_bound.discrete_weight(gamma_t, gamma_s, steps)
        return weight * squared_error(params, gamma_t, example)

    def loss_fn(params, frozen, state, batch, key, index):
        example = drawing.examples(batch, key, index)
        x_0, levels = example.x_0, params[GAMMA]
        network = {name: part for name, part in params.items() if name != GAMMA}
        u = draw_quantiles(stream(key, "t"), index, timestep_sampling, batch_size)
        diffusion = (continuous_loss if steps is None else discrete_loss)(
            network, levels, u, example
        )
        first, last = gamma_ends(levels)
        noise = normal(example_keys(key, "decoder", index), x_0.shape[1:])
        decoder = continuous_bound.decoder_term(first, x_0, noise)
        prior = continuous_bound.prior_term(last, x_0)
        t = numbered(u, chain.num_timesteps)
        ends = (jnp.broadcast_to(end, diffusion.shape) for end in (first, last))
        return diffusion + decoder + prior, BoundAux(t, diffusion, decoder, prior, *ends)

    def metrics(aux: BoundAux) -> dict[str, Any]:
        count = jnp.float32(aux.t.size)
        named = {
            "diffusion": aux.diffusion,
            "decoder": aux.decoder,
            "prior": aux.prior,
            "gamma_first": aux.first,
            "gamma_last": aux.last,
        }
        sums = {name: (jnp.sum(values), count) for name, values in named.items()}
        return sums | loss_over_time(aux.t, aux.diffusion, chain.num_timesteps)

    return Objective(
        init=lambda params: (), loss=loss_fn, update=lambda state, aux: state, metrics=metrics
    )
