"""What a network predicts, ε, x_0, v, μ and others, and the maps between them.

Everything downstream (samplers, likelihoods, guidance, editing) takes a `Prediction` and does not
depend on what the network was trained to predict. The variance is in `variance`, the combination of
the two in `process`. x_t is [B, H, W, C]; t int [B], 0-based.

A network may also want its input at another scale: that of the process it was trained on, or of
unit variance. x_t here is always the variance-preserving one, a x_0 + s ε with a = √ᾱ_t, s =
√(1-ᾱ_t), σ = s / a.

name      predicts                               given
eps       ε                                      x_t
x_0       x_0                                    x_t
v         a ε - s x_0                            x_t
mu        the mean of q(x_{t-1}|x_t, x_0)        x_t
edm       (x_0 - c_skip y) / c_out, y = x_0 + σε  c_in y (Karras et al. 2022, table 1 and eq. 7)
score     -ε, that is σ ∇ log p(y)               y (their "VE"; Song et al. 2021)
velocity  ε - x_0                                x_t / (a + s) = (1-τ) x_0 + τ ε, τ = σ / (1+σ)

Their "VP" and "iDDPM" are `eps`.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.gaussian import alpha, extract, q_posterior
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import UsageError


class Prediction(NamedTuple):
    """The model's estimates for one reverse step, each of the shape of x_t."""

    x_0: chex.Array  # the clean image
    eps: chex.Array  # the noise in x_t; √ᾱ_t x_0 + √(1-ᾱ_t) ε = x_t unless a wrapper changes it
    mean: chex.Array  # of p(x_{t-1}|x_t)
    log_variance: chex.Array  # of p(x_{t-1}|x_t)


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
    """x_0 whose posterior q(x_{t-1}|x_t, x_0) has mean μ (Ho et al. 2020, eq. 7 solved for x_0).

    t-1 is one step of the trained chain, in a respaced one too, because that is what the network
    learns to predict.
    """
    from_x_t = extract(schedule.trained_mean_coef2, t, x_t) * x_t
    # Where no signal is left mu does not determine x_0, and the gradient must still be finite.
    x_0_coef = extract(schedule.trained_mean_coef1, t, x_t)
    return (mu - from_x_t) / jnp.maximum(x_0_coef, jnp.finfo(x_0_coef.dtype).tiny)


def mu_from_x_0(schedule: Schedule, x_t: chex.Array, t: chex.Array, x_0: chex.Array) -> chex.Array:
    """μ, the mean of q(x_{t-1}|x_t, x_0) (Ho et al. 2020, eq. 7); x_0 itself at t = 0.

    t-1 as in `x_0_from_mu`.
    """
    from_x_t = extract(schedule.trained_mean_coef2, t, x_t) * x_t
    return extract(schedule.trained_mean_coef1, t, x_t) * x_0 + from_x_t


def own_step(schedule: Schedule) -> chex.Array:
    """Return where the walked step is the trained one, bool [T]: everywhere in the whole chain."""
    return schedule.trained_mean_coef1 == schedule.posterior_mean_coef1


class Parameterization(NamedTuple):
    """One meaning of a network output, as the two maps between it and x_0.

    The maps are (schedule, x_t, t, array) -> array. x_t links all predictions linearly, so the
    squared error of one is a multiple of that of another.
    """

    name: str
    to_x_0: Callable[[Schedule, chex.Array, chex.Array, chex.Array], chex.Array]
    from_x_0: Callable[[Schedule, chex.Array, chex.Array, chex.Array], chex.Array]
    # (schedule, t) -> (squared error of ε) / (squared error of this) of one prediction, [B]
    eps_error: Callable[[Schedule, chex.Array], chex.Array]
    # (schedule, x_t, t, prediction) -> ε; None: that of the x_0
    to_eps: Callable[[Schedule, chex.Array, chex.Array, chex.Array], chex.Array] | None = None
    # (schedule, x_0, t, ε) -> prediction, where x_t would lose digits; None: `from_x_0`
    from_both: Callable[[Schedule, chex.Array, chex.Array, chex.Array], chex.Array] | None = None
    # (schedule, t, rank) -> [B, 1, ..., 1], what x_t is multiplied by for the network; None: 1
    input_scale: Callable[[Schedule, chex.Array, chex.Array], chex.Array] | None = None

    def eps_of(
        self, schedule: Schedule, x_t: chex.Array, t: chex.Array, value: chex.Array, x_0: chex.Array
    ) -> chex.Array:
        """Return ε of a prediction, whose x_0 is known."""
        if self.to_eps is None:
            return eps_from_x_0(schedule, x_t, t, x_0)
        return self.to_eps(schedule, x_t, t, value)

    def target(
        self,
        schedule: Schedule,
        x_t: chex.Array,
        t: chex.Array,
        x_0: chex.Array,
        eps: chex.Array,
    ) -> chex.Array:
        """Return what a network should predict at x_t, made of x_0 and ε."""
        if self.from_both is None:
            return self.from_x_0(schedule, x_t, t, x_0)
        return self.from_both(schedule, x_0, t, eps)

    def network_input(self, schedule: Schedule, x_t: chex.Array, t: chex.Array) -> chex.Array:
        """Return x_t at the scale that the network wants."""
        if self.input_scale is None:
            return x_t
        return self.input_scale(schedule, x_t, t) * x_t


def _identity(schedule: Schedule, x_t: chex.Array, t: chex.Array, x_0: chex.Array) -> chex.Array:
    return x_0


def _eps_error_per_mu_error(schedule: Schedule, t: chex.Array) -> chex.Array:
    row = jax.tree.map(lambda table: jnp.asarray(table)[t], schedule)
    own = own_step(row)
    # SNR_t / c², c = √ᾱ_{t-1} β_t / (1-ᾱ_t) (eq. 7), has α_t ᾱ_{t-1} above and ᾱ_{t-1} below.
    one_step = alpha(schedule, t) * jnp.square(row.sqrt_one_minus_alphas_bar / row.betas)
    longer = row.sqrt_alphas_bar / jnp.where(
        own, 1, row.sqrt_one_minus_alphas_bar * row.trained_mean_coef1
    )
    return jnp.where(own, one_step, jnp.square(longer))


# Both errors are multiples of that of x_0, and each ratio is written without their common factor,
# which vanishes at the end of a chain: SNR/SNR for ε, SNR/(SNR + 1) = ᾱ_t for v.
EPS = Parameterization(
    "eps",
    x_0_from_eps,
    eps_from_x_0,
    lambda s, t: jnp.ones_like(jnp.asarray(s.snr)[t]),
    to_eps=lambda schedule, x_t, t, eps: eps,
    from_both=lambda schedule, x_0, t, eps: eps,
)
X_0 = Parameterization("x_0", _identity, _identity, lambda s, t: jnp.asarray(s.snr)[t])
V = Parameterization("v", x_0_from_v, v_from_x_0, lambda s, t: jnp.asarray(s.alphas_bar)[t])
MU = Parameterization("mu", x_0_from_mu, mu_from_x_0, _eps_error_per_mu_error)

SCORE = Parameterization(
    "score",
    lambda schedule, x_t, t, value: x_0_from_eps(schedule, x_t, t, -value),
    lambda schedule, x_t, t, x_0: -eps_from_x_0(schedule, x_t, t, x_0),
    EPS.eps_error,
    to_eps=lambda schedule, x_t, t, value: -value,
    from_both=lambda schedule, x_0, t, eps: -eps,
    input_scale=lambda schedule, x_t, t: extract(schedule.sqrt_recip_alphas_bar, t, x_t),
)


def signal_and_noise(
    schedule: Schedule, x: chex.Array, t: chex.Array
) -> tuple[chex.Array, chex.Array]:
    """Return a = √ᾱ_t and s = √(1-ᾱ_t), [B, 1, ..., 1] each."""
    return (
        extract(schedule.sqrt_alphas_bar, t, x),
        extract(schedule.sqrt_one_minus_alphas_bar, t, x),
    )


def _velocity() -> Parameterization:
    """u = ε - x_0, the velocity of (1-τ) x_0 + τ ε in τ (Lipman et al. 2023; Liu et al. 2023)."""

    def to_x_0(schedule, x_t, t, u):
        a, s = signal_and_noise(schedule, x_t, t)
        return (x_t - s * u) / (a + s)

    def to_eps(schedule, x_t, t, u):
        a, s = signal_and_noise(schedule, x_t, t)
        return (x_t + a * u) / (a + s)

    def from_x_0(schedule, x_t, t, x_0):
        a, s = signal_and_noise(schedule, x_t, t)
        return (x_t - (a + s) * x_0) / s

    def input_scale(schedule, x_t, t):
        a, s = signal_and_noise(schedule, x_t, t)
        return 1 / (a + s)

    def eps_error(schedule, t):
        tables = schedule.sqrt_alphas_bar, schedule.sqrt_one_minus_alphas_bar
        a, s = (jnp.asarray(table)[t] for table in tables)
        return jnp.square(a / (a + s))

    return Parameterization(
        "velocity",
        to_x_0,
        from_x_0,
        eps_error,
        to_eps=to_eps,
        from_both=lambda schedule, x_0, t, eps: eps - x_0,
        input_scale=input_scale,
    )


SIGMA_DATA = 0.5  # Karras et al. 2022, table 1: of images in [-1, 1]


def edm_parameterization(sigma_data: float = SIGMA_DATA) -> Parameterization:
    """F, of unit variance like its input, for data of standard deviation d (Karras et al. 2022).

    With q = s² + d² a², which is the variance of x_t, table 1 of the paper is

        x_0 = (d² a x_t) / q + (s d / √q) F,    F = (s / d x_0 - d a ε) / √q,    input x_t / √q

    and their loss, λ(σ) ‖D - x_0‖² with λ = 1 / c_out², is the squared error of F. No term is a
    difference of large numbers at any σ.

    Raises:
      UsageError: a standard deviation that is not positive.
    """
    if not sigma_data > 0:
        raise UsageError(f"sigma_data is {sigma_data}: a standard deviation is positive, 0.5, say.")
    d = sigma_data

    def parts(schedule, x, t):
        a, s = signal_and_noise(schedule, x, t)
        return a, s, jnp.square(s) + jnp.square(d * a)

    def to_x_0(schedule, x_t, t, value):
        a, s, q = parts(schedule, x_t, t)
        return d**2 * a / q * x_t + s * d / jnp.sqrt(q) * value

    def from_x_0(schedule, x_t, t, x_0):
        a, s, q = parts(schedule, x_t, t)
        return (x_0 - d**2 * a / q * x_t) * jnp.sqrt(q) / (s * d)

    def to_eps(schedule, x_t, t, value):
        a, s, q = parts(schedule, x_t, t)
        return s / q * x_t - a * d / jnp.sqrt(q) * value

    def from_both(schedule, x_0, t, eps):
        a, s, q = parts(schedule, x_0, t)
        return (s / d * x_0 - d * a * eps) / jnp.sqrt(q)

    def eps_error(schedule, t):
        tables = schedule.sqrt_alphas_bar, schedule.sqrt_one_minus_alphas_bar
        a, s = (jnp.asarray(table)[t] for table in tables)
        return jnp.square(d * a) / (jnp.square(s) + jnp.square(d * a))

    return Parameterization(
        "edm",
        to_x_0,
        from_x_0,
        eps_error,
        to_eps=to_eps,
        from_both=from_both,
        input_scale=lambda schedule, x_t, t: jax.lax.rsqrt(parts(schedule, x_t, t)[2]),
    )


VELOCITY = _velocity()
PARAMETERIZATIONS = {
    choice.name: choice for choice in (EPS, X_0, V, MU, edm_parameterization(), SCORE, VELOCITY)
}


def convert(
    schedule: Schedule,
    x_t: chex.Array,
    t: chex.Array,
    value: chex.Array,
    *,
    source: Parameterization,
    target: Parameterization,
) -> chex.Array:
    """Convert `value`, an estimate in the parameterisation `source`, to `target`.

    Both have the shape of x_t.
    """
    if source is target:
        return value
    return target.from_x_0(schedule, x_t, t, source.to_x_0(schedule, x_t, t, value))


def with_x_0(
    schedule: Schedule, prediction: Prediction, x_0: chex.Array, x_t: chex.Array, t: chex.Array
) -> Prediction:
    """Replace the predicted x_0 and what follows from it, eps and the mean; keep the variance."""
    return prediction._replace(
        x_0=x_0,
        eps=eps_from_x_0(schedule, x_t, t, x_0),
        mean=q_posterior(schedule, x_0, x_t, t).mean,
    )
