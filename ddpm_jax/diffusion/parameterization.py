"""What a network output means: ε <-> x_0 <-> v <-> μ, and the variance beside it, in one
`Prediction`.

Everything downstream (samplers, likelihoods, guidance, editing) consumes a `Prediction` and never
asks what the network was trained to predict. x_t is [B, H, W, C]; t int [B], 0-based.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.gaussian import extract, q_posterior
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import UsageError, choose

TINY = float(np.finfo(np.float32).tiny)  # keeps a logarithm finite


class Prediction(NamedTuple):
    """The model's view of one reverse step. Each field has the shape of x_t."""

    x_0: chex.Array  # the clean image
    eps: chex.Array  # the noise in x_t; √ᾱ_t x_0 + √(1-ᾱ_t) ε = x_t unless a wrapper says otherwise
    mean: chex.Array  # of p(x_{t-1}|x_t)
    log_variance: chex.Array  # of p(x_{t-1}|x_t)


# (x_t [B, H, W, C], t int [B]) -> Prediction
Denoiser = Callable[[chex.Array, chex.Array], Prediction]
# (x_t, time float [B]) -> output [B, H, W, C or 2C]
Network = Callable[[chex.Array, chex.Array], chex.Array]


def x_0_from_eps(schedule: Schedule, x_t: chex.Array, t: chex.Array, eps: chex.Array) -> chex.Array:
    """x_0 = √(1/ᾱ_t) x_t - √(1/ᾱ_t - 1) ε (Ho et al. 2020, eq. 15)."""
    return (
        extract(schedule.sqrt_recip_alphas_bar, t, x_t) * x_t
        - extract(schedule.sqrt_recipm1_alphas_bar, t, x_t) * eps
    )


def eps_from_x_0(schedule: Schedule, x_t: chex.Array, t: chex.Array, x_0: chex.Array) -> chex.Array:
    """ε = (x_t - √ᾱ_t x_0) / √(1-ᾱ_t) (Ho et al. 2020, eq. 4 solved for ε)."""
    noise = x_t - extract(schedule.sqrt_alphas_bar, t, x_t) * x_0
    return noise / extract(schedule.sqrt_one_minus_alphas_bar, t, x_t)


def x_0_from_v(schedule: Schedule, x_t: chex.Array, t: chex.Array, v: chex.Array) -> chex.Array:
    """x_0 = √ᾱ_t x_t - √(1-ᾱ_t) v (Salimans & Ho 2022, appendix D)."""
    return (
        extract(schedule.sqrt_alphas_bar, t, x_t) * x_t
        - extract(schedule.sqrt_one_minus_alphas_bar, t, x_t) * v
    )


def v_from_x_0(schedule: Schedule, x_t: chex.Array, t: chex.Array, x_0: chex.Array) -> chex.Array:
    """v = √ᾱ_t ε - √(1-ᾱ_t) x_0 (Salimans & Ho 2022, appendix D) for the ε that x_0 implies."""
    eps = eps_from_x_0(schedule, x_t, t, x_0)
    return (
        extract(schedule.sqrt_alphas_bar, t, x_t) * eps
        - extract(schedule.sqrt_one_minus_alphas_bar, t, x_t) * x_0
    )


def x_0_from_mu(schedule: Schedule, x_t: chex.Array, t: chex.Array, mu: chex.Array) -> chex.Array:
    """The x_0 whose posterior q(x_{t-1}|x_t, x_0) has mean μ (Ho et al. 2020, eq. 7 solved for
    x_0).

    t-1 is one step of the chain that was trained, in a respaced one too: that is what a network has
    learnt to say.
    """
    from_x_t = extract(schedule.trained_mean_coef2, t, x_t) * x_t
    # Where nothing is left of the signal mu says nothing about x_0, and its slope must still be
    # finite.
    of_x_0 = extract(schedule.trained_mean_coef1, t, x_t)
    return (mu - from_x_t) / jnp.maximum(of_x_0, jnp.finfo(of_x_0.dtype).tiny)


def mu_from_x_0(schedule: Schedule, x_t: chex.Array, t: chex.Array, x_0: chex.Array) -> chex.Array:
    """μ, the mean of q(x_{t-1}|x_t, x_0) (Ho et al. 2020, eq. 7); x_0 itself at t = 0. t-1 as in
    `x_0_from_mu`."""
    from_x_t = extract(schedule.trained_mean_coef2, t, x_t) * x_t
    return extract(schedule.trained_mean_coef1, t, x_t) * x_0 + from_x_t


class Parameterization(NamedTuple):
    """One meaning of a network output, as the two maps between it and x_0: (schedule, x_t, t,
    array) -> array."""

    to_x_0: Callable[[Schedule, chex.Array, chex.Array, chex.Array], chex.Array]
    from_x_0: Callable[[Schedule, chex.Array, chex.Array, chex.Array], chex.Array]


def _identity(schedule: Schedule, x_t: chex.Array, t: chex.Array, x_0: chex.Array) -> chex.Array:
    return x_0


PARAMETERIZATIONS: dict[str, Parameterization] = {
    "eps": Parameterization(to_x_0=x_0_from_eps, from_x_0=eps_from_x_0),
    "x_0": Parameterization(to_x_0=_identity, from_x_0=_identity),
    "v": Parameterization(to_x_0=x_0_from_v, from_x_0=v_from_x_0),
    "mu": Parameterization(to_x_0=x_0_from_mu, from_x_0=mu_from_x_0),
}


def convert(
    schedule: Schedule,
    x_t: chex.Array,
    t: chex.Array,
    value: chex.Array,
    *,
    source: str,
    target: str,
) -> chex.Array:
    """Turns `value`, an estimate in the parameterisation `source`, into the one in `target`; both
    of the shape of x_t.

    Raises:
      UsageError: an unknown parameterisation.
    """
    to_x_0 = choose("parameterization", source, PARAMETERIZATIONS).to_x_0
    from_x_0 = choose("parameterization", target, PARAMETERIZATIONS).from_x_0
    return (
        value if source == target else from_x_0(schedule, x_t, t, to_x_0(schedule, x_t, t, value))
    )


def _own_step(schedule: Schedule) -> chex.Array:
    """Where the walked step is the one that was trained, bool [T]: everywhere in the whole
    chain."""
    return schedule.trained_mean_coef1 == schedule.posterior_mean_coef1


def _learned(schedule: Schedule, x_t: chex.Array, t: chex.Array, said: chex.Array) -> chex.Array:
    """Turns log Σ of the step that was trained, which the network says, into that of the walked
    step.

    Given x_0 both steps are Gaussian, with mean c_1 x_0 + c_2 x_t and variance β̃ (Ho et al. 2020,
    eq. 7). With x_0 unknown, and the trained step's numbers on the left, the walked one's on the
    right,

        Σ = β̃ + c_1² Var(x_0|x_t),    Σ' = β̃' + c_1'² Var(x_0|x_t)

    which is exact: Σ' is the variance of the walked step whatever q(x_0|x_t) is, by the law of
    total variance.

    At most t, Var(x_0|x_t) is a small difference of large numbers: an error of 1 % in Σ can make it
    anything. It is therefore held to 0..1, all that it can be for data in [-1, 1]; latents are
    scaled to variance 1. Where the walked step is the trained one, what the network says stays as
    it is.
    """
    own = extract(_own_step(schedule), t, x_t)
    log_trained = extract(jnp.log(jnp.maximum(schedule.trained_posterior_variance, TINY)), t, x_t)
    # Both branches of the `where` below stay finite: its gradient would be 0 times infinity.
    log_variance = jnp.where(own, log_trained, said)
    # Σ - β̃ without cancelling.
    excess = -jnp.exp(log_variance) * jnp.expm1(jnp.minimum(log_trained - log_variance, 0))
    of_x_0 = jnp.maximum(extract(schedule.trained_mean_coef1, t, x_t), TINY)
    variance_of_x_0 = jnp.minimum(excess / of_x_0 / of_x_0, 1)
    of_x_0 = extract(schedule.posterior_mean_coef1, t, x_t)
    walked = extract(schedule.posterior_variance, t, x_t) + jnp.square(of_x_0) * variance_of_x_0
    return jnp.where(own, said, jnp.log(jnp.maximum(walked, TINY)))


def _learned_range(schedule: Schedule, x_t: chex.Array, t: chex.Array, v: chex.Array) -> chex.Array:
    """log Σ = u log β_t + (1-u) log β̃_t, u = (v+1)/2 (Nichol & Dhariwal 2021, eq. 15): v in [-1,
    1] spans the range.

    In a respaced chain the range is that chain's: so the paper defines it (section 4) and evaluates
    its models. Unlike `_learned` this is an approximation; docs/samplers.md has its error.
    """
    u = (v + 1) / 2
    return u * extract(schedule.log_betas, t, x_t) + (1 - u) * extract(
        schedule.posterior_log_variance_clipped, t, x_t
    )


# (schedule, x_t, t, second half of the network's channels or None) -> log-variance that broadcasts
# against x_t
VARIANCES: dict[str, Callable[..., chex.Array]] = {
    "fixed_small": lambda schedule, x_t, t, _: extract(
        schedule.posterior_log_variance_clipped, t, x_t
    ),
    "fixed_large": lambda schedule, x_t, t, _: extract(schedule.fixed_large_log_variance, t, x_t),
    "learned": _learned,
    "learned_range": _learned_range,
}
LEARNED_VARIANCES = ("learned", "learned_range")


def output_channels(image_channels: int, variance: str) -> int:
    """Channels the network must put out: twice the image's where it also says the variance.

    Raises:
      UsageError: an unknown variance.
    """
    choose("variance", variance, VARIANCES)
    return 2 * image_channels if variance in LEARNED_VARIANCES else image_channels


def interpret(
    schedule: Schedule,
    output: chex.Array,
    x_t: chex.Array,
    t: chex.Array,
    *,
    parameterization: str,
    variance: str,
) -> Prediction:
    """Turns a raw network output into a `Prediction`, unclipped.

    Args:
      schedule: tables.
      output: [B, H, W, C], or [B, H, W, 2C] with the variance in the second half of the channels
        where it is learned.
      x_t: [B, H, W, C].
      t: int [B] in 0..T-1.
      parameterization: what the first C channels are: a key of `PARAMETERIZATIONS`.
      variance: a key of `VARIANCES`. `learned`: the channels are the log-variance of the step that
        was trained, which a respaced chain turns into that of its own. `learned_range`: they choose
        between beta tilde (-1) and beta (+1).

    Returns:
      The prediction, every field of the shape of x_t.

    Raises:
      UsageError: an unknown parameterisation or variance.
    """
    channels = output_channels(x_t.shape[-1], variance)
    chex.assert_shape(output, (*x_t.shape[:-1], channels))
    value, variance_output = output[..., : x_t.shape[-1]], output[..., x_t.shape[-1] :]
    x_0 = convert(schedule, x_t, t, value, source=parameterization, target="x_0")
    log_variance = VARIANCES[variance](schedule, x_t, t, variance_output)
    posterior = q_posterior(schedule, x_0, x_t, t)
    return Prediction(
        x_0=x_0,
        eps=value if parameterization == "eps" else eps_from_x_0(schedule, x_t, t, x_0),
        mean=_said_mean(schedule, x_0, x_t, t, value)
        if parameterization == "mu"
        else posterior.mean,
        log_variance=jnp.broadcast_to(log_variance, x_t.shape),
    )


def _said_mean(
    schedule: Schedule, x_0: chex.Array, x_t: chex.Array, t: chex.Array, mu: chex.Array
) -> chex.Array:
    """The network's own μ where the chain takes the step that was trained, elsewhere the mean that
    x_0 implies."""
    return jnp.where(
        extract(_own_step(schedule), t, x_t), mu, q_posterior(schedule, x_0, x_t, t).mean
    )


def with_x_0(
    schedule: Schedule, prediction: Prediction, x_0: chex.Array, x_t: chex.Array, t: chex.Array
) -> Prediction:
    """Replaces the predicted x_0 and everything that follows from it: eps and the mean. The
    variance stays."""
    return prediction._replace(
        x_0=x_0,
        eps=eps_from_x_0(schedule, x_t, t, x_0),
        mean=q_posterior(schedule, x_0, x_t, t).mean,
    )


def clip_x_0(denoiser: Denoiser, schedule: Schedule, *, keep_mean: bool = False) -> Denoiser:
    """Denoiser -> Denoiser: clips the predicted x_0 to [-1, 1] and re-derives eps and the mean from
    it.

    `keep_mean` leaves the mean as the network said it: what the original code does where the
    network predicts μ.
    """

    def clipped(x_t: chex.Array, t: chex.Array) -> Prediction:
        prediction = denoiser(x_t, t)
        replaced = with_x_0(schedule, prediction, jnp.clip(prediction.x_0, -1, 1), x_t, t)
        return replaced._replace(mean=prediction.mean) if keep_mean else replaced

    return clipped


def make_denoiser(
    network: Network,
    schedule: Schedule,
    *,
    parameterization: str,
    variance: str,
    clip_denoised: bool,
) -> Denoiser:
    """Returns the `Denoiser` of a network.

    Args:
      network: (x_t [B, H, W, C], time float32 [B]) -> output. It is told `schedule.timesteps[t]`,
        so that a respaced chain of N rows asks a network trained on T steps the right questions.
      schedule: tables of the chain that is walked. Traced ones cannot be checked here:
        `check_parameterization`.
      parameterization: a key of `PARAMETERIZATIONS`.
      variance: a key of `VARIANCES`.
      clip_denoised: clip the predicted x_0 to [-1, 1], as in sampling and evaluation.

    Raises:
      UsageError: an unknown name, or a parameterisation from which x_0 cannot be had at some t of
        this schedule.
    """
    check_parameterization(schedule, parameterization)
    output_channels(1, variance)

    def denoiser(x_t: chex.Array, t: chex.Array) -> Prediction:
        output = network(x_t, jnp.asarray(schedule.timesteps)[t])
        return interpret(
            schedule, output, x_t, t, parameterization=parameterization, variance=variance
        )

    return (
        clip_x_0(denoiser, schedule, keep_mean=parameterization == "mu")
        if clip_denoised
        else denoiser
    )


def check_parameterization(schedule: Schedule, parameterization: str) -> None:
    """Refuses a pair that cannot work.

    Raises:
      UsageError: unknown parameterisation; or eps with a schedule that reaches alphas_bar = 0,
        where x_t holds nothing of x_0 and eps says nothing about it.
    """
    choose("parameterization", parameterization, PARAMETERIZATIONS)
    # whoever passes a schedule as data has checked it before
    if isinstance(schedule.alphas_bar, jax.core.Tracer):
        return
    if parameterization == "eps" and schedule.alphas_bar[-1] == 0:
        raise UsageError(
            "This schedule ends at alphas_bar = 0, where eps does not determine x_0: predict x_0 "
            "or v."
        )
