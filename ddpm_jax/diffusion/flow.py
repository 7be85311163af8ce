"""The process in real time and its probability flow, the ODE between data and noise.

Belongs here: a table of T steps continued to real t, a network or an exact mixture as a function
ε(x, t) of real t, and the velocity of the flow. Does not: solving the ODE and the likelihood it
gives (`evaluation.likelihood_ode`).

The chain is the sampled form of dx = -½ β(t) x dt + √β(t) dw, and the flow with the same q(x_t) at
every t is

    dx/dt = -½ β(t) (x + ∇ log q_t(x)) = ½ d log ᾱ/dt (x - ε(x, t) / √(1-ᾱ(t)))

(Song et al. 2021, Score-Based Generative Modeling through SDEs, eq. 11 and 13; in other variables
it is DDIM's ODE, Song et al. 2020, eq. 14). Time is that of the table: t = 0 is the least noisy
step, t = T-1 the last, t = -1 clean data.

B(t) = -log ᾱ(t) = ∫β between the integers is a free choice: the flow from one level of noise to
another does not depend on the parameterisation of time; only the network's inputs between the t it
was trained on do. B is the piecewise cubic through the whole table and B(-1) = 0 whose slope at an
integer is that of the parabola through its neighbours, held to at most 3 times either adjacent
step: enough for B to be monotone (Fritsch & Carlson 1980). For a linear schedule B is so nearly a
parabola that the limit never acts. β(t) = B'(t) is continuous, and 1 - ᾱ = -expm1(-B) keeps its
digits at small t.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.denoiser import Network
from ddpm_jax.diffusion.gaussian import over
from ddpm_jax.diffusion.mixture import GaussianMixture, optimal
from ddpm_jax.diffusion.parameterization import PARAMETERIZATIONS, Parameterization
from ddpm_jax.diffusion.schedules import Schedule, single_levels
from ddpm_jax.errors import UsageError, choose

# (x [B, *D], t float [B]) -> E[ε|x] [B, *D]
EpsFunction = Callable[[chex.Array, chex.Array], chex.Array]
# (x [B, *D], t float [B]) -> dx/dt [B, *D]
Velocity = Callable[[chex.Array, chex.Array], chex.Array]


class ContinuousSchedule(NamedTuple):
    """B(t) = -log ᾱ(t) as T cubics; a pytree. Row i is the interval from t = i-1 to i."""

    cubics: chex.Array  # [T, 4]: B(i-1+u) = c_0 + c_1 u + c_2 u² + c_3 u³, u in [0, 1]
    time_scale: chex.Numeric  # a network's time is this times t

    @property
    def num_timesteps(self) -> int:
        """T; the real time runs from -1 (clean data) to T-1."""
        return self.cubics.shape[0]


class NoiseLevel(NamedTuple):
    """The process at real times, each of the shape of t."""

    beta: chex.Array  # β(t) = -d log ᾱ/dt
    sqrt_alphas_bar: chex.Array
    sqrt_one_minus_alphas_bar: chex.Array


class Flow(NamedTuple):
    """A velocity and the times between which it is integrated, start < end.

    Data is at the start, noise at the end.
    """

    velocity: Velocity
    start: float
    end: float


def make_continuous(
    schedule: Schedule, *, time_scale: float = 1.0, dtype=None
) -> ContinuousSchedule:
    """Continue a table to real t, in float64 NumPy, rounded to `dtype`; exact at the integers.

    Args:
      schedule: the whole chain of T steps, not traced. A respaced one has the same flow with fewer
        points to interpolate. From a float32 table β(t), a difference of rounded numbers, has an
        error of up to 3e-4 of its value.
      time_scale: that of `make_schedule`; it distinguishes a chain with rescaled times from a
        respaced one.
      dtype: of the result; None for that of the schedule.

    Raises:
      UsageError: a respaced chain, or one that reaches alphas_bar = 0, which takes infinite time.
    """
    if not np.array_equal(
        schedule.timesteps,
        (np.arange(schedule.num_timesteps) * time_scale).astype(schedule.timesteps.dtype),
    ):
        raise UsageError(
            "The flow needs the whole chain, but this one is respaced: leave out the number of "
            "steps."
        )
    if schedule.alphas_bar[-1] == 0:
        raise UsageError(
            "This schedule ends at alphas_bar = 0, so its flow has no finite end: choose a "
            "schedule that keeps some signal, linear or cosine, say."
        )
    alphas_bar = np.asarray(schedule.alphas_bar, np.float64)
    one_minus = np.asarray(schedule.sqrt_one_minus_alphas_bar, np.float64) ** 2
    # Each form where the rounded table is accurate: 1 - ᾱ while there is little noise, ᾱ after
    # that, and √ᾱ where ᾱ is smaller than a normal number of the table.
    normal = alphas_bar >= np.finfo(schedule.alphas_bar.dtype).tiny
    log_alphas_bar = np.where(
        normal, np.log(alphas_bar), 2 * np.log(np.asarray(schedule.sqrt_alphas_bar, np.float64))
    )
    knots = np.append(
        0.0, np.where(one_minus < 0.5, -np.log1p(-np.minimum(one_minus, 0.5)), -log_alphas_bar)
    )
    steps = np.diff(knots)
    left, right = steps[:-1], steps[1:]
    inner = np.minimum((left + right) / 2, 3 * np.minimum(left, right))
    ends = np.clip(
        [1.5 * steps[0] - 0.5 * steps[1], 1.5 * steps[-1] - 0.5 * steps[-2]], 0, 3 * steps[[0, -1]]
    )
    slopes = np.concatenate([ends[:1], inner, ends[1:]])
    c_2 = 3 * steps - 2 * slopes[:-1] - slopes[1:]
    c_3 = slopes[:-1] + slopes[1:] - 2 * steps
    cubics = np.stack([knots[:-1], slopes[:-1], c_2, c_3], axis=1)
    return ContinuousSchedule(cubics.astype(dtype or schedule.alphas_bar.dtype), time_scale)


def _place(continuous: ContinuousSchedule, t: chex.Array) -> tuple[chex.Array, chex.Array]:
    """Return the row whose interval contains t, int32, and u, the position of t in it."""
    row = jnp.clip(jnp.floor(t), -1, continuous.num_timesteps - 2).astype(jnp.int32) + 1
    return row, t - (row - 1)


def noise_level(continuous: ContinuousSchedule, t: chex.Array) -> NoiseLevel:
    """Return β, √ᾱ and √(1-ᾱ) at real t of any shape in [-1, T-1]; beyond, the outer cubics."""
    row, u = _place(continuous, t)
    c_0, c_1, c_2, c_3 = jnp.moveaxis(jnp.asarray(continuous.cubics)[row], -1, 0)
    integrated_beta = c_0 + u * (c_1 + u * (c_2 + u * c_3))
    return NoiseLevel(
        beta=c_1 + u * (2 * c_2 + u * 3 * c_3),
        sqrt_alphas_bar=jnp.exp(-0.5 * integrated_beta),
        sqrt_one_minus_alphas_bar=jnp.sqrt(-jnp.expm1(-integrated_beta)),
    )


def _step_beta(continuous: ContinuousSchedule, t: chex.Array) -> chex.Array:
    """∫ β from t-1 to t, for t in [0, T-1]: a difference of B(t) without the large values of B."""
    row, u = _place(continuous, t)

    def rise(row: chex.Array, u: chex.Array) -> chex.Array:
        _, c_1, c_2, c_3 = jnp.moveaxis(jnp.asarray(continuous.cubics)[row], -1, 0)
        return u * (c_1 + u * (c_2 + u * c_3))

    before = row - 1
    return rise(row, u) + rise(before, jnp.ones_like(u)) - rise(before, u)


def mixture_eps(mixture: GaussianMixture, continuous: ContinuousSchedule) -> EpsFunction:
    """Return E[ε|x_t] at real t for data that is a Gaussian mixture."""

    def eps(x: chex.Array, t: chex.Array) -> chex.Array:
        level = noise_level(continuous, t)
        return optimal(mixture, x, level.sqrt_alphas_bar, level.sqrt_one_minus_alphas_bar).eps

    return eps


def _eps_from_x_0(
    continuous: ContinuousSchedule, x: chex.Array, t: chex.Array, x_0: chex.Array
) -> chex.Array:
    level = noise_level(continuous, t)
    return (x - over(level.sqrt_alphas_bar, x) * x_0) / over(level.sqrt_one_minus_alphas_bar, x)


def _eps_from_v(
    continuous: ContinuousSchedule, x: chex.Array, t: chex.Array, v: chex.Array
) -> chex.Array:
    level = noise_level(continuous, t)
    return over(level.sqrt_one_minus_alphas_bar, x) * x + over(level.sqrt_alphas_bar, x) * v


def _eps_from_mu(
    continuous: ContinuousSchedule, x: chex.Array, t: chex.Array, mu: chex.Array
) -> chex.Array:
    """ε = √(1-ᾱ_t)/β_t (x - √α_t μ) (Ho et al. 2020, eq. 11).

    μ at real t is the mean of q(x_{t-1}|x_t), one whole step back.
    """
    integrated_beta = _step_beta(continuous, t)
    sqrt_alpha, beta = jnp.exp(-0.5 * integrated_beta), -jnp.expm1(-integrated_beta)
    noise = noise_level(continuous, t).sqrt_one_minus_alphas_bar
    return over(noise / beta, x) * (x - over(sqrt_alpha, x) * mu)


# (continuous schedule, x, t, network output) -> ε; of other `parameterization.PARAMETERIZATIONS`
# the coefficients are functions of the level alone
EPS_FROM: dict[str, Callable[..., chex.Array]] = {
    "eps": lambda continuous, x, t, eps: eps,
    "x_0": _eps_from_x_0,
    "v": _eps_from_v,
    "mu": _eps_from_mu,
}


def network_eps(
    network: Network, continuous: ContinuousSchedule, *, parameterization: str | Parameterization
) -> EpsFunction:
    """Return a network's ε at real t, without clipping.

    The velocity of a clipped x_0 would not be a function to integrate.

    Args:
      network: (x [B, H, W, C], time float [B]) -> [B, H, W, C or 2C]; a variance in the second half
        is not used. Its times lie between those it was trained on, so the embedding of the time
        must be a smooth function.
      continuous: of the schedule it was trained on.
      parameterization: what its first C channels are, or its name, a key of `PARAMETERIZATIONS`.
        mu is defined at t >= 0 only.

    Raises:
      UsageError: an unknown parameterisation.
    """
    if isinstance(parameterization, str):
        parameterization = choose("parameterization", parameterization, PARAMETERIZATIONS)
    to_eps = EPS_FROM.get(parameterization.name)

    def eps(x: chex.Array, t: chex.Array) -> chex.Array:
        return to_eps(continuous, x, t, network(x, continuous.time_scale * t)[..., : x.shape[-1]])

    def eps_of_level(x: chex.Array, t: chex.Array) -> chex.Array:
        level = noise_level(continuous, t)
        half_log_snr = jnp.log(level.sqrt_alphas_bar / level.sqrt_one_minus_alphas_bar)
        levels = single_levels(half_log_snr, continuous.time_scale * t)
        return predicted(network, parameterization, levels, x)[1]

    return eps if to_eps else eps_of_level


def predicted(
    network: Network, parameterization: Parameterization, levels: Schedule, x: chex.Array
) -> tuple[chex.Array, chex.Array]:
    """Return x_0 and ε that a network predicts at x [B, *D], row i at level i of `levels`."""
    rows = jnp.arange(len(x))
    output = network(parameterization.network_input(levels, x, rows), levels.timesteps)
    value = output[..., : x.shape[-1]]
    x_0 = parameterization.to_x_0(levels, x, rows, value)
    return x_0, parameterization.eps_of(levels, x, rows, value, x_0)


def probability_flow(
    eps: EpsFunction, continuous: ContinuousSchedule, *, start: float = 0.0
) -> Flow:
    """dx/dt = -½ β(t) (x - ε(x, t) / √(1-ᾱ(t))) (Song et al. 2021, eq. 13).

    The flow runs from `start` to T-1.

    Args:
      eps: a model of the noise at real t.
      continuous: its schedule.
      start: the time of the data, in (-1, T-1). At 0, the first t that a network is trained on, the
        flow's density is that of data with the noise of the first step; below 0 a network is
        evaluated outside its training, and towards -1 the score of real data grows without bound.

    Raises:
      UsageError: a start outside (-1, T-1).
    """
    end = continuous.num_timesteps - 1
    if not -1 < start < end:
        raise UsageError(
            f"The flow cannot start at t = {start}: choose a time above -1 and below {end}; 0 is "
            "usual."
        )

    def velocity(x: chex.Array, t: chex.Array) -> chex.Array:
        level = noise_level(continuous, t)
        score = -eps(x, t) / over(level.sqrt_one_minus_alphas_bar, x)
        return -0.5 * over(level.beta, x) * (x + score)

    return Flow(velocity, float(start), float(end))
