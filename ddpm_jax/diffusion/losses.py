"""Training losses, one number per example: L_simple, L_vlb, L_hybrid, and the weightings of
L_simple over t.

Averaging over the batch, and the weights of importance-sampled timesteps, belong to the caller.
Nothing is drawn here.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.gaussian import alpha, q_sample
from ddpm_jax.diffusion.likelihood import bound_term, mean_over_dims
from ddpm_jax.diffusion.parameterization import (
    LEARNED_VARIANCES,
    PARAMETERIZATIONS,
    VARIANCES,
    Network,
    interpret,
    output_channels,
)
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import UsageError, choose

HYBRID_VLB_WEIGHT = 0.001  # lambda of Nichol & Dhariwal 2021, section 3.1


class Losses(NamedTuple):
    """Per-example losses, float32 [B]."""

    loss: chex.Array  # what is minimised
    simple: chex.Array  # the unweighted squared error in the units of the target
    # an unbiased estimate of sum_t L_t in bits/dim, over uniform t; zeros where it is not computed
    vlb: chex.Array


def _eps_error_per_target_error(
    schedule: Schedule, t: chex.Array, parameterization: str
) -> chex.Array:
    """(squared error of eps) / (squared error of the target), [B], for one prediction: x_t links
    all of them linearly.

    Both errors are multiples of that of x_0, and each ratio is written without their common factor,
    which vanishes at the end of a chain: SNR/SNR for eps, SNR/(SNR + 1) = ᾱ_t for v.
    """
    s = jax.tree.map(lambda table: jnp.asarray(table)[t], schedule)
    if parameterization == "eps":
        return jnp.ones_like(s.snr)
    if parameterization == "mu":
        own_step = s.trained_mean_coef1 == s.posterior_mean_coef1
        # SNR_t / c², c = √ᾱ_{t-1} β_t / (1-ᾱ_t) (eq. 7), has α_t ᾱ_{t-1} above and ᾱ_{t-1} below.
        one_step = alpha(schedule, t) * jnp.square(s.sqrt_one_minus_alphas_bar / s.betas)
        longer = s.sqrt_alphas_bar / jnp.where(
            own_step, 1, s.sqrt_one_minus_alphas_bar * s.trained_mean_coef1
        )
        return jnp.where(own_step, one_step, jnp.square(longer))
    return {"x_0": s.snr, "v": s.alphas_bar}[parameterization]


def uniform_weight(schedule: Schedule, t: chex.Array, parameterization: str) -> chex.Array:
    """Every t counts alike in the units of the target (L_simple, Ho et al. 2020, eq. 14). Returns
    float32 [B]."""
    choose("parameterization", parameterization, PARAMETERIZATIONS)
    return jnp.ones(t.shape)


def min_snr_weight(
    schedule: Schedule, t: chex.Array, parameterization: str, gamma: float = 5.0
) -> chex.Array:
    """min(SNR_t, γ) on the squared error of x_0 (Hang et al. 2023, section 3.4), in the units of
    the target.

    So min(1, γ/SNR) where the target is eps, which is 1 where nothing is left of the signal, and
    min(SNR, γ)/(SNR + 1) where it is v (their section 4.2). Returns float32 [B].

    Raises:
      UsageError: an unknown parameterisation, or a γ that is not positive.
    """
    choose("parameterization", parameterization, PARAMETERIZATIONS)
    if not gamma > 0:
        raise UsageError(f"gamma of min-SNR is {gamma}: it must be above 0, 5 say.")
    of_eps = gamma / jnp.maximum(jnp.asarray(schedule.snr)[t], gamma)
    return of_eps * _eps_error_per_target_error(schedule, t, parameterization)


def p2_weight(
    schedule: Schedule, t: chex.Array, parameterization: str, gamma: float = 1.0, k: float = 1.0
) -> chex.Array:
    """1 / (k + SNR_t)^γ on the squared error of eps (Choi et al. 2022, eq. 8), in the units of the
    target.

    The squared error of eps is SNR times that of x_0. Returns float32 [B].

    Raises:
      UsageError: an unknown parameterisation, or a k that is not positive: the weight would be
        infinite at SNR 0.
    """
    choose("parameterization", parameterization, PARAMETERIZATIONS)
    if not k > 0:
        raise UsageError(f"k of P2 is {k}: it must be above 0, 1 say.")
    of_eps = (k + jnp.asarray(schedule.snr)[t]) ** -gamma
    return of_eps * _eps_error_per_target_error(schedule, t, parameterization)


LOSSES = {
    "simple": "squared error of the target, weighted over t",
    "vlb": "the variational bound at the drawn t",
    "hybrid": "simple for the mean, the bound for the variance",
}
WEIGHTINGS = {"uniform": uniform_weight, "min_snr": min_snr_weight, "p2": p2_weight}


def check_loss(loss: str, weighting: str, variance: str) -> None:
    """Refuses names that do not exist or do not go together.

    Raises:
      UsageError: an unknown name, a hybrid loss without a learned variance, the simple loss with
        one, or a weighting of the bound.
    """
    choose("loss", loss, LOSSES)
    choose("weighting", weighting, WEIGHTINGS)
    choose("variance", variance, VARIANCES)
    if loss == "hybrid" and variance not in LEARNED_VARIANCES:
        raise UsageError(
            f"The hybrid loss trains the variance, but {variance} has nothing to train: learn it, "
            "or use simple."
        )
    if loss == "simple" and variance in LEARNED_VARIANCES:
        raise UsageError(
            f"The simple loss leaves the {variance} variance untrained: use hybrid or vlb, or fix "
            "it."
        )
    if loss == "vlb" and weighting != "uniform":
        raise UsageError(
            f"The bound has its own weights over t: {weighting} applies to the simple and hybrid "
            "losses."
        )


def training_losses(
    network: Network,
    schedule: Schedule,
    x_0: chex.Array,
    t: chex.Array,
    eps: chex.Array,
    *,
    parameterization: str,
    variance: str,
    loss: str,
    weighting: str = "uniform",
) -> Losses:
    """Diffuses x_0 to t, asks the network, and scores its answer.

    Args:
      network: (x_t [B, H, W, C], time float32 [B]) -> output [B, H, W, C or 2C].
      schedule: tables.
      x_0: float32 [B, H, W, C], 8-bit data scaled to [-1, 1].
      t: int [B] in 0..T-1.
      eps: standard normal noise of the shape of x_0.
      parameterization: what the network predicts, and so the target of L_simple: a key of
        `PARAMETERIZATIONS`.
      variance: a key of `parameterization.VARIANCES`.
      loss: a key of `LOSSES`. `simple`: weighted mean squared error of the target (Ho et al. 2020,
        eq. 14). `vlb`: T L_t, whose mean over uniform t is the bound in bits/dim without L_T (eq.
        5; x_0 is not clipped). `hybrid`: L_simple + 0.001 L_vlb where L_vlb teaches only the
        variance (Nichol & Dhariwal 2021, eq. 16).
      weighting: of L_simple over t: a key of `WEIGHTINGS`.

    Returns:
      `Losses`.

    Raises:
      UsageError: as `check_loss`, or an unknown parameterisation.
    """
    check_loss(loss, weighting, variance)
    weight = WEIGHTINGS[weighting](schedule, t, parameterization)
    x_t = q_sample(schedule, x_0, t, eps)
    output = network(x_t, jnp.asarray(schedule.timesteps)[t])
    chex.assert_shape(output, (*x_0.shape[:-1], output_channels(x_0.shape[-1], variance)))

    value = output[..., : x_0.shape[-1]]
    target = (
        eps
        if parameterization == "eps"
        else PARAMETERIZATIONS[parameterization].from_x_0(schedule, x_t, t, x_0)
    )
    simple = mean_over_dims(jnp.square(target - value))
    if loss == "simple":
        return Losses(weight * simple, simple, jnp.zeros_like(simple))

    if loss == "hybrid":
        # The bound must not move the mean: its gradient there is noisier than that of L_simple.
        output = jnp.concatenate(
            [jax.lax.stop_gradient(value), output[..., x_0.shape[-1] :]], axis=-1
        )
    prediction = interpret(
        schedule, output, x_t, t, parameterization=parameterization, variance=variance
    )
    vlb = schedule.num_timesteps * bound_term(schedule, prediction, x_0, x_t, t)
    total = vlb if loss == "vlb" else weight * simple + HYBRID_VLB_WEIGHT * vlb
    return Losses(total, simple, vlb)
