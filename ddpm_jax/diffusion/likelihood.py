"""The terms of the variational bound in bits per dimension: L_T, L_{t-1} and L_0.

Ho et al. 2020, eq. 5.

-log p(x_0) is at most L_T plus one term for each t. Every term is averaged over the dimensions of
an example and divided by log 2. A term is indexed by the 0-based t of its x_t: at t = 0 it is the
decoder's (the paper's L_0), at t > 0 the divergence between q(x_{t-1}|x_t,x_0) and p(x_{t-1}|x_t).
"""

import math

import chex
import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.gaussian import Gaussian, q_mean_variance, q_posterior
from ddpm_jax.diffusion.parameterization import Prediction
from ddpm_jax.diffusion.schedules import Schedule

HALF_BIN = 1 / 255  # data has 256 levels, 2/255 apart on [-1, 1]
EDGE = 0.999  # beyond it lies only the first or the last level, whose bins extend to infinity
MIN_PROBABILITY = 1e-12  # keeps the logarithm finite
# bits/dim: the rounding of a bound quoted to two decimals, as in the papers
NEGLIGIBLE_PRIOR = 0.005


def mean_over_dims(x: chex.Array) -> chex.Array:
    """Return the mean over all axes but the first: [B, ...] -> [B]."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def normal_kl(
    mean_1: chex.Array, log_variance_1: chex.Array, mean_2: chex.Array, log_variance_2: chex.Array
) -> chex.Array:
    """KL(N(mean_1, var_1) || N(mean_2, var_2)) per element, in nats.

    The arguments broadcast against each other.

    Late in the chain the variances differ by parts in 1e5, and e^d - 1 - d of their log-ratio d
    would keep no digits; expm1 keeps them, where the original code's L_T is off by 6e-5 of its
    value.
    """
    log_ratio = log_variance_1 - log_variance_2
    return 0.5 * (
        jnp.expm1(log_ratio) - log_ratio + jnp.square(mean_1 - mean_2) * jnp.exp(-log_variance_2)
    )


def approx_standard_normal_cdf(x: chex.Array) -> chex.Array:
    """Φ(x) ≈ (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2, within 3e-4.

    The approximation that the original code integrates with.

    Written as a logistic function, which keeps its relative accuracy far into the lower tail.
    """
    return jax.nn.sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))


def discretized_gaussian_log_likelihood(
    x: chex.Array, mean: chex.Array, log_scale: chex.Array
) -> chex.Array:
    """Log-probability, in nats per element, of 8-bit data under a binned Gaussian.

    The Gaussian is integrated over each bin (Ho et al. 2020, eq. 13).

    Args:
      x: data on the 256 levels of [-1, 1].
      mean: of the Gaussian, the shape of x.
      log_scale: log standard deviation, the shape of x.

    Returns:
      log ∫ N(u; mean, scale²) du over the bin of x, the shape of x; the outer bins extend to ±∞.

    The original code subtracts two values near 1 where the bin lies above the mean, and loses all
    digits of a probability near 1e-7. Here the bin is mirrored into the lower tail first: the same
    function, exact to float32.
    """
    chex.assert_equal_shape([x, mean, log_scale])
    centered = x - mean
    inverse_scale = jnp.exp(-log_scale)
    lower_tail = -jnp.abs(centered)
    inner = approx_standard_normal_cdf(
        inverse_scale * (lower_tail + HALF_BIN)
    ) - approx_standard_normal_cdf(inverse_scale * (lower_tail - HALF_BIN))
    first = approx_standard_normal_cdf(inverse_scale * (centered + HALF_BIN))
    last = approx_standard_normal_cdf(inverse_scale * (HALF_BIN - centered))
    probability = jnp.where(x < -EDGE, first, jnp.where(x > EDGE, last, inner))
    return jnp.log(jnp.maximum(probability, MIN_PROBABILITY))


def bound_term(
    schedule: Schedule, prediction: Prediction, x_0: chex.Array, x_t: chex.Array, t: chex.Array
) -> chex.Array:
    """One term of the bound in bits/dim: the decoder at t = 0, KL(q || p) at t > 0.

    Args:
      schedule: tables.
      prediction: the model at (x_t, t).
      x_0: [B, H, W, C], 8-bit data scaled to [-1, 1].
      x_t: a draw from q(x_t|x_0).
      t: int [B] in 0..T-1.

    Returns:
      float32 [B]. (Ho et al. 2020, eq. 5: L_{t-1} and L_0.)
    """
    q = q_posterior(schedule, x_0, x_t, t)
    kl = mean_over_dims(normal_kl(q.mean, q.log_variance, prediction.mean, prediction.log_variance))
    nll = -mean_over_dims(
        discretized_gaussian_log_likelihood(
            x_0, prediction.mean, log_scale=0.5 * prediction.log_variance
        )
    )
    return jnp.where(t == 0, nll, kl) / math.log(2.0)


def prior_term(schedule: Schedule, x_0: chex.Array) -> chex.Array:
    """L_T = KL(q(x_T|x_0) || N(0, I)) in bits/dim, float32 [B].

    It has no parameters, and is about 1e-5 for the linear schedule.
    """
    t = jnp.full(x_0.shape[:1], schedule.num_timesteps - 1)
    q: Gaussian = q_mean_variance(schedule, x_0, t)
    return mean_over_dims(
        normal_kl(q.mean, q.log_variance, jnp.zeros_like(x_0), jnp.zeros_like(x_0))
    ) / math.log(2.0)


def prior_term_of_unit_data(schedule: Schedule) -> float:
    """L_T in bits/dim of data whose mean square is 1: -½ log2(1-ᾱ_T).

    It is the largest possible for data in [-1, 1].

    2.9e-5 for the linear schedule of 1000 steps, 0.0034 for `scaled_linear`, the largest of the
    published ones.
    """
    return -0.5 * float(schedule.log_one_minus_alphas_bar[-1]) / math.log(2.0)


def prior_warning(schedule: Schedule) -> str | None:
    """Return a warning that a chain ends before x_T is noise, with the numbers and the remedy.

    Samples start from N(0, I) and so lack what x_T still holds of the data: their mean and standard
    deviation differ from those of the data, however well the network is trained.

    Args:
      schedule: the whole chain, not traced.

    Returns:
      The sentence, without a full stop; None where L_T is below `NEGLIGIBLE_PRIOR`.
    """
    bits = prior_term_of_unit_data(schedule)
    if bits < NEGLIGIBLE_PRIOR:
        return None
    return (
        f"the chain of {schedule.num_timesteps} steps ends at alphas_bar_T = "
        f"{float(schedule.alphas_bar[-1]):.2g}, and x_T is not noise alone: L_T is {bits:.2g} "
        f"bits/dim for data of mean square 1, where less than {NEGLIGIBLE_PRIOR} would be "
        "negligible, so samples will have another mean and spread than the data; set scale_betas, "
        "which scales published betas to the number of steps, or choose a larger beta_end, more "
        "steps or the cosine schedule"
    )
