"""Training losses, one number per example: L_simple, L_vlb, L_hybrid, and weightings over t.

The caller averages over the batch and applies the weights of importance-sampled timesteps. Nothing
is drawn here.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.chain import Chain, ContinuousChain
from ddpm_jax.diffusion.denoiser import Network
from ddpm_jax.diffusion.gaussian import q_sample
from ddpm_jax.diffusion.interpolants import Interpolant
from ddpm_jax.diffusion.likelihood import bound_term, mean_over_dims
from ddpm_jax.diffusion.parameterization import Parameterization
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.diffusion.variance import Variance
from ddpm_jax.errors import UsageError, choose

HYBRID_VLB_WEIGHT = 0.001  # lambda of Nichol & Dhariwal 2021, section 3.1


class Losses(NamedTuple):
    """Per-example losses, float32 [B]."""

    loss: chex.Array  # what is minimised
    simple: chex.Array  # the unweighted squared error in the units of the target
    # an unbiased estimate of sum_t L_t in bits/dim, over uniform t; zeros where it is not computed
    vlb: chex.Array


def uniform_weight(
    schedule: Schedule, t: chex.Array, parameterization: Parameterization
) -> chex.Array:
    """Weight every t alike in the units of the target (L_simple, Ho et al. 2020, eq. 14).

    Returns float32 [B].
    """
    return jnp.ones(t.shape)


def min_snr_weight(
    schedule: Schedule, t: chex.Array, parameterization: Parameterization, gamma: float = 5.0
) -> chex.Array:
    """min(SNR_t, γ) on the squared error of x_0 (Hang et al. 2023, section 3.4).

    It is returned in the units of the target.

    So it is min(1, γ/SNR) where the target is eps, which is 1 where no signal is left, and min(SNR,
    γ)/(SNR + 1) where it is v (their section 4.2). Returns float32 [B].

    Raises:
      UsageError: a γ that is not positive.
    """
    if not gamma > 0:
        raise UsageError(f"gamma of min-SNR is {gamma}: it must be above 0, 5 say.")
    eps_weight = gamma / jnp.maximum(jnp.asarray(schedule.snr)[t], gamma)
    return eps_weight * parameterization.eps_error(schedule, t)


def p2_weight(
    schedule: Schedule,
    t: chex.Array,
    parameterization: Parameterization,
    gamma: float = 1.0,
    k: float = 1.0,
) -> chex.Array:
    """1 / (k + SNR_t)^γ on the squared error of eps (Choi et al. 2022, eq. 8).

    It is returned in the units of the target.

    The squared error of eps is SNR times that of x_0. Returns float32 [B].

    Raises:
      UsageError: a k that is not positive: the weight would be infinite at SNR 0.
    """
    if not k > 0:
        raise UsageError(f"k of P2 is {k}: it must be above 0, 1 say.")
    eps_weight = (k + jnp.asarray(schedule.snr)[t]) ** -gamma
    return eps_weight * parameterization.eps_error(schedule, t)


def likelihood_weight(
    schedule: Schedule,
    t: chex.Array,
    parameterization: Parameterization,
    interpolant: Interpolant,
) -> chex.Array:
    """d log σ / dτ on the squared error of eps: that of the bound (Song et al. 2021b; SiT's code).

    With uniform τ levels then count as in the bound of continuous time, where log σ is uniform. It
    is returned in the units of the target, float32 [B].
    """
    _, rate = _time_and_rate(schedule, t, interpolant)
    return rate * parameterization.eps_error(schedule, t)


def velocity_weight(
    schedule: Schedule,
    t: chex.Array,
    parameterization: Parameterization,
    interpolant: Interpolant,
) -> chex.Array:
    """Weight alike the squared error of the velocity dX/dτ (Ma et al. 2024, table 2; SiT's code).

    X = a x_0 + s ε, so on the error of eps it is (s d log σ / dτ)². It is returned in the units of
    the target, float32 [B].
    """
    time, rate = _time_and_rate(schedule, t, interpolant)
    _, noise = interpolant.coefficients(time)
    return jnp.square(noise * rate) * parameterization.eps_error(schedule, t)


def _time_and_rate(
    schedule: Schedule, t: chex.Array, interpolant: Interpolant
) -> tuple[chex.Array, chex.Array]:
    """Return τ and d log σ / dτ, of the inverse function, which keeps its digits near τ = 1."""
    log_sigma = -jnp.asarray(schedule.half_log_snr)[t]
    time, slope = jax.jvp(interpolant.time, (log_sigma,), (jnp.ones_like(log_sigma),))
    return time, 1 / slope


OF_A_PATH = {"velocity": velocity_weight, "likelihood": likelihood_weight}
WEIGHTINGS = {
    "uniform": uniform_weight,
    "min_snr": min_snr_weight,
    "p2": p2_weight,
    "learned": uniform_weight,  # and then by `Loss.learned`
} | OF_A_PATH


class Loss(NamedTuple):
    """The choice of terms that are minimised, made by `make_loss`."""

    simple: bool  # the squared error of the target, weighted over t
    vlb: bool  # the variational bound at the drawn t; with `simple`, of the variance alone
    weight: Callable[[Schedule, chex.Array, Parameterization], chex.Array] = uniform_weight
    learned: bool = False  # training learns how to weigh levels: `models.uncertainty`


LOSSES = {
    "simple": Loss(simple=True, vlb=False),
    "vlb": Loss(simple=False, vlb=True),
    "hybrid": Loss(simple=True, vlb=True),
}


def make_loss(
    loss: str, weighting: str = "uniform", *, variance: Variance, chain: Chain | None = None
) -> Loss:
    """Make a loss from names.

    Args:
      loss: a key of `LOSSES`. `simple`: weighted mean squared error of the target (Ho et al. 2020,
        eq. 14). `vlb`: T L_t, whose mean over uniform t is the bound in bits/dim without L_T (eq.
        5; x_0 is not clipped). `hybrid`: L_simple + 0.001 L_vlb where L_vlb teaches only the
        variance (Nichol & Dhariwal 2021, eq. 16).
      weighting: of L_simple over t: a key of `WEIGHTINGS`.
      variance: that of the process.
      chain: its levels, which the weightings of `OF_A_PATH` need.

    Raises:
      UsageError: an unknown name, a hybrid loss without a learned variance, the simple loss with
        one, a weighting of the bound, or by the time of a chain of steps.
    """
    made = choose("loss", loss, LOSSES)
    weight = choose("weighting", weighting, WEIGHTINGS)
    if weighting in OF_A_PATH:
        if not isinstance(chain, ContinuousChain):
            raise UsageError(
                f"The weighting {weighting} is by the time of a process, and a chain of T steps "
                "has none: choose uniform, min_snr or p2, or a process in continuous time."
            )
        weight = functools.partial(weight, interpolant=chain.interpolant)
    made = made._replace(weight=weight, learned=weighting == "learned")
    if loss == "hybrid" and not variance.learned:
        raise UsageError(
            f"The hybrid loss trains the variance, but {variance.name} has nothing to train: learn "
            "it, or use simple."
        )
    if loss == "simple" and variance.learned:
        raise UsageError(
            f"The simple loss leaves the {variance.name} variance untrained: use hybrid or vlb, or "
            "fix it."
        )
    if loss == "hybrid" and weighting == "learned":
        raise UsageError(
            "The learned weighting is of the simple loss: the hybrid loss has a term with weights "
            "of its own. Choose another weighting, or fix the variance and use simple."
        )
    if loss == "vlb" and weighting != "uniform":
        raise UsageError(
            f"The bound has its own weights over t: {weighting} applies to the simple and hybrid "
            "losses."
        )
    return made


def training_losses(
    network: Network,
    schedule: Schedule,
    x_0: chex.Array,
    t: chex.Array,
    eps: chex.Array,
    *,
    process: Process,
    loss: Loss,
) -> Losses:
    """Diffuse x_0 to t, evaluate the network, and compare its output with the target.

    Args:
      network: (x_t [B, H, W, C], time float32 [B]) -> output [B, H, W, C or 2C].
      schedule: tables of the chain that is trained on, or of single levels.
      x_0: float32 [B, H, W, C], 8-bit data scaled to [-1, 1].
      t: int [B], rows of the schedule.
      eps: standard normal noise of the shape of x_0.
      process: what the network predicts, and so the target of L_simple.
      loss: of `make_loss`.

    Raises:
      UsageError: an output of a shape that does not fit.
    """
    parameterization = process.parameterization
    weight = loss.weight(schedule, t, parameterization)
    x_t = q_sample(schedule, x_0, t, eps)
    output = process.output(network, schedule, x_t, t)
    value = output[..., : x_0.shape[-1]]
    target = parameterization.target(schedule, x_t, t, x_0, eps)
    simple = mean_over_dims(jnp.square(target - value))
    if not loss.vlb:
        return Losses(weight * simple, simple, jnp.zeros_like(simple))

    if loss.simple:
        # The bound must not move the mean: its gradient there is noisier than that of L_simple.
        output = jnp.concatenate(
            [jax.lax.stop_gradient(value), output[..., x_0.shape[-1] :]], axis=-1
        )
    prediction = process.interpret(schedule, output, x_t, t)
    vlb = schedule.num_timesteps * bound_term(schedule, prediction, x_0, x_t, t)
    total = weight * simple + HYBRID_VLB_WEIGHT * vlb if loss.simple else vlb
    return Losses(total, simple, vlb)
