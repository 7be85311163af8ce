"""The interface between the step and what it minimises, and the objective of diffusion."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax.numpy as jnp

from ddpm_jax.data.augmentation import augment, augmentation_labels, draw_augmentation
from ddpm_jax.data.transforms import random_flip, to_model_range
from ddpm_jax.diffusion import timesteps
from ddpm_jax.diffusion.chain import Chain, ContinuousChain
from ddpm_jax.diffusion.level_draws import LogSigma, numbered, quantiles, spread_quantiles
from ddpm_jax.diffusion.losses import Loss, training_losses, uniform_weight
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.schedules import Schedule, single_levels
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.models.condition import Condition
from ddpm_jax.models.uncertainty import log_uncertainty, without_uncertainty
from ddpm_jax.monitoring.averages import ByTime
from ddpm_jax.randomness import example_keys, normal, stream
from ddpm_jax.training.conditioning import UNCONDITIONAL, Conditioning, drop_labels, make_condition
from ddpm_jax.training.coupling import couple

GIVEN = "x_0"  # in a batch instead of an image: [B, h, w, c], as the model sees it
QUARTILES = 4
# of the histogram over t: as many as TensorBoard draws, which would rebin any other number
BARS = 30

# (params, x_t [B, H, W, C], time float32 [B], condition, dropout keys [B]) -> output
ApplyTrain = Callable[[Any, chex.Array, chex.Array, Condition | None, chex.PRNGKey], chex.Array]
# name -> (sum, count), scalars or vectors: the metric is their ratio
Sums = dict[str, tuple[chex.Array, chex.Array]]


def by_time(t: chex.Array, values: chex.Array, num_timesteps: int, parts: int) -> ByTime:
    """Sum values [B] over each of `parts` equal parts of the chain.

    t is int [B] in 0..num_timesteps-1.
    """
    inside = (t * parts // num_timesteps)[:, None] == jnp.arange(parts)[None, :]
    return ByTime(jnp.sum(jnp.where(inside, values[:, None], 0.0), axis=0), jnp.sum(inside, axis=0))


def loss_over_time(t: chex.Array, loss: chex.Array, num_timesteps: int) -> Sums:
    """Return the loss [B] by quartile of t for the records, and finer for a histogram."""
    return {
        "loss_q": tuple(by_time(t, loss, num_timesteps, QUARTILES)),
        "loss_by_t": by_time(t, loss, num_timesteps, min(BARS, num_timesteps)),
    }


class Objective(NamedTuple):
    """Pure functions that define what is trained.

    B counts the examples at hand; each knows its global index.

    `frozen` is what the loss needs and no step changes (`TrainState.frozen`). `state` is what the
    objective remembers from step to step (any pytree, often empty); it changes only in `update`,
    which is given `aux` gathered from all devices in the order of the global batch.
    `project_params` sets the parameters that follow from the state instead of a gradient.
    `averaged` leaves out those that only training uses. `begin_step` may change the whole state
    before an update, from its own contents alone.
    """

    init: Callable[[Any], Any]  # (initial params) -> state
    # (params, frozen, state, batch, key, index [B]) -> (loss [B], aux leaves [B])
    loss: Callable[..., tuple[chex.Array, Any]]
    update: Callable[[Any, Any], Any]  # (state, aux) -> state
    metrics: Callable[[Any], Sums]  # aux -> sums and counts over the B examples
    # (updated params, updated state) -> params
    project_params: Callable[[Any, Any], Any] = lambda params, state: params
    # params -> those that moving averages are kept of
    averaged: Callable[[Any], Any] = lambda params: params
    # TrainState -> TrainState, at the start of every update
    begin_step: Callable[[Any], Any] = lambda state: state


def batch_x_0(batch: Any, key: chex.PRNGKey, index: chex.Array, *, flip: bool) -> chex.Array:
    """Return x_0 of a batch: given, or images in [-1, 1], flipped at random."""
    if GIVEN in batch:
        return batch[GIVEN]
    x_0 = to_model_range(batch["image"])
    return random_flip(x_0, example_keys(key, "flip", index)) if flip else x_0


class Examples(NamedTuple):
    """B images to be diffused, and what else is drawn for them."""

    x_0: chex.Array  # float32 [B, H, W, C]
    eps: chex.Array  # standard normal, of the shape of x_0
    condition: Condition | None
    dropout_keys: chex.PRNGKey  # [B]


class Drawing(NamedTuple):
    """How examples are drawn from a batch, all of them but their noise levels."""

    flip: bool  # mirror each image with probability 1/2, before low_res is computed from it
    conditioning: Conditioning = UNCONDITIONAL  # of the model; labels are dropped here
    # of each transformation of `augmentation.draw_augmentation`, which the condition then describes
    augment_probability: float = 0.0
    # of the noise with the images, a key of `coupling.COUPLINGS`. "ot" pairs the examples that are
    # computed at once: a device's share of the batch, or a part of it; so numbers depend on how
    # many devices there are
    coupling: str = "independent"

    def examples(self, batch: Any, key: chex.PRNGKey, index: chex.Array) -> Examples:
        """Draw all that an objective of x_t needs but the noise levels.

        Args:
          batch: of `diffusion_objective`.
          key: of the step.
          index: of each example in the global batch, int [B].
        """
        x_0 = batch_x_0(batch, key, index, flip=self.flip)
        given = batch.get("label"), batch.get("context")
        condition = make_condition(self.conditioning, x_0, *given)
        condition = drop_labels(self.conditioning, condition, example_keys(key, "label", index))
        if self.augment_probability:
            keys = example_keys(key, "augment", index)
            augmentation = draw_augmentation(keys, self.augment_probability)
            x_0 = augment(x_0, augmentation)
            labels = augmentation_labels(augmentation)
            condition = (condition or Condition())._replace(augment=labels)
        eps = couple(self.coupling, x_0, normal(example_keys(key, "eps", index), x_0.shape[1:]))
        return Examples(x_0, eps, condition, example_keys(key, "dropout", index))


class DiffusionAux(NamedTuple):
    """Per-example results, [B]."""

    # in continuous time the quantile of the level among those drawn, as one of T
    t: chex.Array
    loss: chex.Array  # as `losses.Losses.loss`: without the weight of importance sampling
    simple: chex.Array
    vlb: chex.Array


TIMESTEP_SAMPLING = {
    "uniform": "independent uniform t",
    "antithetic": "uniform t in pairs t, T-1-t",
    "low_discrepancy": "t even over the batch, from one random start",
    "importance": "t by past losses, for the variational bound",
}


class Drawn(NamedTuple):
    """The noise levels of B examples."""

    schedule: Schedule  # that has them
    row: chex.Array  # of it, int [B]
    t: chex.Array  # int [B] in 0..T-1, by which losses are recorded
    weight: chex.Array  # of importance sampling, [B]


# (history, key, index [B]) -> Drawn
DrawLevels = Callable[[Any, chex.PRNGKey, chex.Array], Drawn]


def draw_quantiles(
    key: chex.PRNGKey, index: chex.Array, timestep_sampling: str, batch_size: int
) -> chex.Array:
    """Draw the quantiles of levels, float32 [B] in (0, 1), by one of `TIMESTEP_SAMPLING`.

    Args:
      key: of the draws of t.
      index: of each example in the global batch, int [B].
      timestep_sampling: uniform, antithetic or low_discrepancy.
      batch_size: of the global batch, for low_discrepancy.
    """
    if timestep_sampling == "low_discrepancy":
        return spread_quantiles(key, index, batch_size)
    return quantiles(key, index, antithetic=timestep_sampling == "antithetic")


def chain_levels(chain: Chain, timestep_sampling: str, batch_size: int) -> DrawLevels:
    """Draw t of a chain's T steps.

    Raises:
      UsageError: unknown timestep_sampling.
    """
    choose("timestep sampling", timestep_sampling, TIMESTEP_SAMPLING)
    schedule, num_timesteps = chain.at(), chain.num_timesteps

    def draw_t(history, key, index):
        if timestep_sampling == "importance":
            return timesteps.importance(key, index, history)
        if timestep_sampling == "low_discrepancy":
            u = spread_quantiles(key, index, batch_size)
            return numbered(u, num_timesteps), jnp.ones(index.shape)
        draw = timesteps.antithetic if timestep_sampling == "antithetic" else timesteps.uniform
        return draw(key, index, num_timesteps), jnp.ones(index.shape)

    def draw(history, key, index):
        t, weight = draw_t(history, key, index)
        return Drawn(schedule, t, t, weight)

    return draw


def check_continuous(timestep_sampling: str) -> None:
    """Refuse draws of levels that continuous time does not have.

    Raises:
      UsageError: unknown timestep_sampling, or importance sampling, which is over T steps.
    """
    choose("timestep sampling", timestep_sampling, TIMESTEP_SAMPLING)
    if timestep_sampling == "importance":
        raise UsageError(
            "Importance sampling is over the T steps of a chain, and this process is in continuous "
            "time: choose uniform, antithetic or low_discrepancy."
        )


def continuous_levels(
    chain: ContinuousChain, log_sigma: LogSigma, timestep_sampling: str, batch_size: int
) -> DrawLevels:
    """Draw levels of a process in continuous time, by a distribution of `level_draws`.

    Raises:
      UsageError: unknown timestep_sampling, or importance sampling, which is over T steps.
    """
    check_continuous(timestep_sampling)

    def draw(history, key, index):
        u = draw_quantiles(key, index, timestep_sampling, batch_size)
        level, num_timesteps = log_sigma(u), chain.num_timesteps
        t = numbered(u, num_timesteps)
        schedule = single_levels(-level, chain.network_times_of(level))
        return Drawn(schedule, jnp.arange(len(index)), t, jnp.ones(index.shape))

    return draw


def diffusion_objective(
    apply: ApplyTrain,
    process: Process,
    loss: Loss,
    drawing: Drawing,
    *,
    timestep_sampling: str,
    log_sigma: LogSigma | None = None,
    batch_size: int = 1,
) -> Objective:
    """Return the objective of Ho et al. 2020, algorithm 1: draw t and ε, diffuse, predict, compare.

    Args:
      apply: the network with its parameters as first argument.
      process: the chain and what the network predicts: `process.make_process`.
      loss: what is minimised: `losses.make_loss`. With a learned weighting the parameters are those
        of `uncertainty.with_uncertainty`, and the recorded loss may be negative.
      drawing: how examples are drawn from a batch.
      timestep_sampling: a key of `TIMESTEP_SAMPLING`.
      log_sigma: of a process in continuous time, the distribution of its levels:
        `level_draws.level_distribution`. None: t of a chain's T steps.
      batch_size: of the global batch, over which draws of low discrepancy are even.

    Returns:
      An `Objective` over batches {"image": uint8 [B, H, W, C], "label": int32 [B]}; without classes
      no label is read. With texts there is also a "context", of `make_condition`. Instead of the
      image a batch may hold x_0 itself, {"x_0": float32 [B, h, w, c]}, which is not mirrored.

    Raises:
      UsageError: unknown timestep_sampling, or one that the process cannot have.
    """
    num_timesteps = process.chain.num_timesteps
    draw_levels = (
        chain_levels(process.chain, timestep_sampling, batch_size)
        if log_sigma is None
        else continuous_levels(process.chain, log_sigma, timestep_sampling, batch_size)
    )

    def loss_fn(params, frozen, history, batch, key, index):
        example = drawing.examples(batch, key, index)
        drawn = draw_levels(history, stream(key, "t"), index)
        result = training_losses(
            lambda x_t, time: apply(params, x_t, time, example.condition, example.dropout_keys),
            drawn.schedule,
            example.x_0,
            drawn.row,
            example.eps,
            process=process,
            loss=loss,
        )
        weighed = result.loss
        if loss.learned:
            u = log_uncertainty(params, -jnp.asarray(drawn.schedule.half_log_snr)[drawn.row])
            weighed = weighed * jnp.exp(-u) + u
        aux = DiffusionAux(drawn.t, weighed, result.simple, result.vlb)
        return drawn.weight * weighed, aux

    def metrics(aux):
        sums = {}
        if loss.vlb or loss.learned or loss.weight is not uniform_weight:
            sums["simple"] = (jnp.sum(aux.simple), jnp.float32(aux.t.size))
        if loss.vlb:
            sums["vlb"] = (jnp.sum(aux.vlb), jnp.float32(aux.t.size))
        return sums | loss_over_time(aux.t, aux.loss, num_timesteps)

    importance = timestep_sampling == "importance"
    return Objective(
        init=lambda params: timesteps.init_history(num_timesteps) if importance else (),
        loss=loss_fn,
        update=lambda history, aux: (
            timesteps.update_history(history, aux.t, aux.loss) if importance else history
        ),
        metrics=metrics,
        averaged=without_uncertainty if loss.learned else lambda params: params,
    )
