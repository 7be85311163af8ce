"""Gaussian mixtures, over vectors or whole images, whose diffusion is known in closed form.

Belongs here: the density, q(x_t), the optimal predictions, the exact reverse step and the
`Denoiser` made of them: the oracle against which samplers, bounds and likelihoods are tested. Does
not: the flow in real time (`flow`).

With q(x_0) = Σ_k w_k N(m_k, v_k I) every q(x_t) is a mixture of the same kind, because Ho et al.
2020, eq. 4 maps a Gaussian to a Gaussian; everything else is Bayes' rule between two Gaussians,
component by component:

    q(x_t)          = Σ_k w_k N(√ᾱ_t m_k, V_k I),                 V_k = ᾱ_t v_k + 1 - ᾱ_t
    r_k(x_t)        = p(k|x_t) ∝ w_k N(x_t; √ᾱ_t m_k, V_k I)
    ∇ log q(x_t)    = -Σ_k r_k (x_t - √ᾱ_t m_k) / V_k
    E[x_0|x_t]      =  Σ_k r_k (m_k + √ᾱ_t v_k / V_k (x_t - √ᾱ_t m_k))
    E[ε|x_t]        = -√(1-ᾱ_t) ∇ log q(x_t)
    q(x_{t-1}|x_t)  =  Σ_k r_k N(√ᾱ_{t-1} m_k + √α_t V'_k / V_k (x_t - √ᾱ_t m_k), β_t V'_k / V_k I)

where V'_k is V_k at t-1.

Shapes: K components; an example has any shape *D, [D] or [H, W, C]. t is int [B], 0-based.
Functions compute in the dtype of their arguments.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.denoiser import Denoiser, Network, from_function
from ddpm_jax.diffusion.gaussian import alpha, extract, over, q_posterior
from ddpm_jax.diffusion.parameterization import PARAMETERIZATIONS, Prediction, V
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.diffusion.variance import VARIANCES
from ddpm_jax.errors import UsageError, choose


class GaussianMixture(NamedTuple):
    """Σ_k w_k N(m_k, v_k I); a pytree.

    `reverse_posterior` returns a batch of them, with a leading axis on every field.
    """

    weights: chex.Array  # [K], sum to 1
    means: chex.Array  # [K, *D]
    variances: chex.Array  # [K], of every dimension of a component


class Optimal(NamedTuple):
    """The predictions that minimise the expected squared error, each of the shape of x_t."""

    x_0: chex.Array  # E[x_0|x_t]
    eps: chex.Array  # E[ε|x_t]
    v: chex.Array  # √ᾱ_t E[ε|x_t] - √(1-ᾱ_t) E[x_0|x_t]


def make_mixture(
    weights: Sequence[float] | np.ndarray,
    means: np.ndarray,
    variances: Sequence[float] | np.ndarray,
    *,
    dtype=np.float32,
) -> GaussianMixture:
    """Check and build a mixture.

    Args:
      weights: [K], not negative, with a positive sum, by which they are divided.
      means: [K, *D].
      variances: [K], positive.
      dtype: of the fields; float64 serves tests.

    Raises:
      UsageError: inconsistent shapes, or values out of range.
    """
    weights, means, variances = (
        np.asarray(array, np.float64) for array in (weights, means, variances)
    )
    if (
        weights.ndim != 1
        or weights.shape != variances.shape
        or means.ndim < 2
        or means.shape[:1] != weights.shape
    ):
        raise UsageError(
            "A mixture of K components takes weights [K], means [K, ...] and variances [K], but "
            f"they have shapes {weights.shape}, {means.shape} and {variances.shape}."
        )
    if not (np.all(weights >= 0) and weights.sum() > 0):
        raise UsageError(
            f"The weights of a mixture are {weights.tolist()}: none may be negative, and one is "
            "positive."
        )
    if not np.all(variances > 0):
        raise UsageError(
            f"The variances of a mixture are {variances.tolist()}: they must be positive."
        )
    return GaussianMixture(
        (weights / weights.sum()).astype(dtype),
        np.asarray(means, dtype),
        np.asarray(variances, dtype),
    )


def log_prob(mixture: GaussianMixture, x: chex.Array) -> chex.Array:
    """log Σ_k w_k N(x; m_k, v_k I) in nats: x [B, *D] -> [B].

    A log-sum-exp, so it does not underflow far from the means.
    """
    return jax.vmap(lambda x: jax.nn.logsumexp(_log_joint(mixture, x)))(x)


def score(mixture: GaussianMixture, x: chex.Array) -> chex.Array:
    """∇_x log p(x): x [B, *D] -> [B, *D]."""
    return jax.vmap(lambda x: _score(mixture, x))(x)


def sample(mixture: GaussianMixture, keys: chex.PRNGKey) -> chex.Array:
    """Draw x ~ p: one example for each of keys [N], [N, *D], which depends on its key alone."""

    def draw(key: chex.PRNGKey) -> chex.Array:
        component_key, noise_key = jax.random.split(key)
        k = jax.random.categorical(component_key, jnp.log(mixture.weights))
        means, variances = jnp.asarray(mixture.means), jnp.asarray(mixture.variances)
        return means[k] + jnp.sqrt(variances[k]) * jax.random.normal(
            noise_key, means.shape[1:], means.dtype
        )

    return jax.vmap(draw)(keys)


def diffused(
    mixture: GaussianMixture, sqrt_alphas_bar: chex.Array, sqrt_one_minus_alphas_bar: chex.Array
) -> GaussianMixture:
    """q(x_t), the mixture after the noise of one level.

    Args:
      mixture: q(x_0).
      sqrt_alphas_bar: √ᾱ_t, scalar.
      sqrt_one_minus_alphas_bar: √(1-ᾱ_t), scalar; a separate argument because 1 - ᾱ_t loses its
        digits in float32 at small t.
    """
    return GaussianMixture(
        weights=mixture.weights,
        means=sqrt_alphas_bar * jnp.asarray(mixture.means),
        variances=sqrt_alphas_bar**2 * jnp.asarray(mixture.variances)
        + sqrt_one_minus_alphas_bar**2,
    )


def optimal(
    mixture: GaussianMixture,
    x_t: chex.Array,
    sqrt_alphas_bar: chex.Array,
    sqrt_one_minus_alphas_bar: chex.Array,
) -> Optimal:
    """Return the predictions of a perfect network at x_t.

    Args:
      mixture: q(x_0).
      x_t: [B, *D].
      sqrt_alphas_bar: [B], each example's √ᾱ_t.
      sqrt_one_minus_alphas_bar: [B], each example's √(1-ᾱ_t); 0 is clean data.
    """

    def one_example(x_t, signal, noise):
        q_t = diffused(mixture, signal, noise)
        shrunk = (signal * mixture.variances / q_t.variances)[_over(x_t)] * (x_t[None] - q_t.means)
        x_0 = _average(_responsibilities(q_t, x_t), mixture.means + shrunk)
        # (x_t - √ᾱ_t x_0) / √(1-ᾱ_t) would cancel where there is little noise
        eps = -noise * _score(q_t, x_t)
        return Optimal(x_0=x_0, eps=eps, v=signal * eps - noise * x_0)

    return jax.vmap(one_example)(x_t, sqrt_alphas_bar, sqrt_one_minus_alphas_bar)


def reverse_posterior(
    mixture: GaussianMixture, schedule: Schedule, x_t: chex.Array, t: chex.Array
) -> GaussianMixture:
    """q(x_{t-1}|x_t), the reverse step that p(x_{t-1}|x_t) approximates by one Gaussian.

    At t = 0 it is q(x_0|x_t).

    Args:
      mixture: q(x_0).
      schedule: tables.
      x_t: [B, *D].
      t: int [B] in 0..T-1.

    Returns:
      A batch of mixtures: weights [B, K], means [B, K, *D], variances [B, K].
    """
    signals, noises = (
        jnp.asarray(schedule.sqrt_alphas_bar),
        jnp.asarray(schedule.sqrt_one_minus_alphas_bar),
    )
    signal_prev = jnp.where(t > 0, signals[t - 1], 1)  # x_{-1} is clean data
    noise_prev = jnp.where(t > 0, noises[t - 1], 0)
    step = jnp.sqrt(alpha(schedule, t))

    def one_example(x_t, signal, noise, signal_prev, noise_prev, step, beta):
        q_t = diffused(mixture, signal, noise)
        q_prev = diffused(mixture, signal_prev, noise_prev)
        gain = step * q_prev.variances / q_t.variances
        return GaussianMixture(
            weights=_responsibilities(q_t, x_t),
            means=q_prev.means + gain[_over(x_t)] * (x_t[None] - q_t.means),
            variances=beta * q_prev.variances / q_t.variances,
        )

    betas = jnp.asarray(schedule.betas)[t]
    return jax.vmap(one_example)(x_t, signals[t], noises[t], signal_prev, noise_prev, step, betas)


def moments(mixture: GaussianMixture) -> tuple[chex.Array, chex.Array]:
    """Return the mean and variance of every dimension of one mixture, each of shape *D.

    They are those of the Gaussian that minimises KL(mixture||.).
    """
    mean = _average(mixture.weights, mixture.means)
    spread = jnp.square(mixture.means - mean[None]) + mixture.variances[_over(mean)]
    return mean, _average(mixture.weights, spread)


def exact_denoiser(
    mixture: GaussianMixture, schedule: Schedule, *, variance: str = "moment_matched"
) -> Denoiser:
    """Return the `Denoiser` of a perfect network: its mean is that of q(x_{t-1}|x_t) at every x_t.

    Args:
      mixture: q(x_0).
      schedule: that of the walked chain, whole or respaced.
      variance: `fixed_small`, `fixed_large`, or `moment_matched`: the variance of q(x_{t-1}|x_t) in
        every dimension, the best that a diagonal Gaussian can do (Bao et al. 2022, Analytic-DPM,
        eq. 6, there averaged over x_t).

    Raises:
      UsageError: another variance.
    """
    choose(
        "variance of the exact denoiser",
        variance,
        dict.fromkeys(("fixed_small", "fixed_large", "moment_matched")),
    )

    def predict(x_t: chex.Array, t: chex.Array) -> Prediction:
        signal, noise = (
            jnp.asarray(table)[t]
            for table in (schedule.sqrt_alphas_bar, schedule.sqrt_one_minus_alphas_bar)
        )
        best = optimal(mixture, x_t, signal, noise)
        if variance == "moment_matched":
            log_variance = jnp.log(
                jax.vmap(moments)(reverse_posterior(mixture, schedule, x_t, t))[1]
            )
        else:
            fixed = VARIANCES[variance].log_variance(schedule, x_t, t, None)
            log_variance = jnp.broadcast_to(fixed, x_t.shape)
        return Prediction(
            best.x_0, best.eps, q_posterior(schedule, best.x_0, x_t, t).mean, log_variance
        )

    return from_function(schedule, predict)


def exact_network(
    mixture: GaussianMixture, schedule: Schedule, *, parameterization: str, variance: str
) -> Network:
    """Return the output of a perfect network trained on the whole chain.

    Mean and variance are those of one step.

    `Process.interpret` turns it into the reverse step of any chain. Between two times the
    output is interpolated linearly.

    Args:
      mixture: q(x_0).
      schedule: the whole chain of T steps, not respaced; the network's time is t itself.
      parameterization: what it predicts: a key of `parameterization.PARAMETERIZATIONS`.
      variance: a key of `variance.VARIANCES`. Where it is learned, the second half of the channels
        is the variance of q(x_{t-1}|x_t) in every dimension.

    Raises:
      UsageError: an unknown parameterisation or variance.
    """
    chosen = choose("parameterization", parameterization, PARAMETERIZATIONS)
    learned = choose("variance", variance, VARIANCES).learned

    def at_index(x: chex.Array, t: chex.Array) -> chex.Array:
        x_t = x / chosen.network_input(schedule, jnp.ones_like(x), t)
        signal, noise = (
            jnp.asarray(table)[t]
            for table in (schedule.sqrt_alphas_bar, schedule.sqrt_one_minus_alphas_bar)
        )
        best = optimal(mixture, x_t, signal, noise)
        value = best.v if chosen is V else chosen.target(schedule, x_t, t, best.x_0, best.eps)
        if not learned:
            return value
        one_step = jnp.log(jax.vmap(moments)(reverse_posterior(mixture, schedule, x_t, t))[1])
        if variance == "learned_range":
            low = extract(schedule.posterior_log_variance_clipped, t, x_t)
            one_step = 2 * (one_step - low) / (extract(schedule.log_betas, t, x_t) - low) - 1
        return jnp.concatenate([value, one_step], axis=-1)

    def network(x_t: chex.Array, time: chex.Array) -> chex.Array:
        below = jnp.floor(time).astype(int)
        part = over(time - below, x_t)
        above = jnp.minimum(below + 1, schedule.num_timesteps - 1)
        return (1 - part) * at_index(x_t, below) + part * at_index(x_t, above)

    return network


def _over(x: chex.Array) -> tuple:
    """Return the index that turns a [K] array into [K, 1, ..., 1], for x of shape *D."""
    return (slice(None), *(None,) * x.ndim)


def _log_joint(mixture: GaussianMixture, x: chex.Array) -> chex.Array:
    """log w_k N(x; m_k, v_k I) for one x of shape *D: [K]."""
    squares = jnp.sum(jnp.square(x[None] - mixture.means), axis=tuple(range(1, x.ndim + 1)))
    log_normalizer = x.size * (jnp.log(mixture.variances) + math.log(2 * math.pi))
    return jnp.log(mixture.weights) - 0.5 * (squares / mixture.variances + log_normalizer)


def _responsibilities(mixture: GaussianMixture, x: chex.Array) -> chex.Array:
    """p(k|x) for one x: [K]."""
    return jax.nn.softmax(_log_joint(mixture, x))


def _score(mixture: GaussianMixture, x: chex.Array) -> chex.Array:
    pull = (mixture.means - x[None]) / mixture.variances[_over(x)]
    return _average(_responsibilities(mixture, x), pull)


def _average(weights: chex.Array, values: chex.Array) -> chex.Array:
    """Σ_k weights[k] values[k]: [K], [K, *D] -> *D.

    In full precision where matrix units would round their inputs.
    """
    return jnp.sum(weights[_over(values[0])] * values, axis=0)
