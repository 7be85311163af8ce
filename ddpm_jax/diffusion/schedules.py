"""Beta schedules and the table of all quantities derived from one.

A schedule is a list of T variances beta_t of the forward step q(x_t|x_{t-1}). All tables are
computed once, in float64 with NumPy, and rounded to float32 at the end: in float32 the cumulative
products lose digits that the bound needs. Respacing, the choice of a subset of the chain, is here
too; walking it is in `ddpm_jax.samplers`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UsageError, choose

PUBLISHED_TIMESTEPS = 1000  # the T that published end points are meant for


def linear_betas(
    num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02
) -> np.ndarray:
    """beta_t rises linearly (Ho et al. 2020, section 4). Returns float64 [T]."""
    return np.linspace(beta_start, beta_end, num_timesteps, dtype=np.float64)


def quad_betas(num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """sqrt(beta_t) rises linearly (the original DDPM code's "quad"). Returns float64 [T]."""
    return np.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=np.float64) ** 2


def scaled_linear_betas(
    num_timesteps: int, beta_start: float = 0.00085, beta_end: float = 0.012
) -> np.ndarray:
    """The curve of `quad_betas` with the end points of latent diffusion (Rombach et al. 2022).

    Returns float64 [T].
    """
    return quad_betas(num_timesteps, beta_start, beta_end)


def const_betas(num_timesteps: int, beta_end: float = 0.02) -> np.ndarray:
    """beta_t = beta_end at every t (the original DDPM code's "const"). Returns float64 [T]."""
    return np.full(num_timesteps, beta_end, dtype=np.float64)


def jsd_betas(num_timesteps: int) -> np.ndarray:
    """beta_t = 1 / (T - t), t = 0..T-1 (Sohl-Dickstein et al. 2015, section 2.4.1).

    Returns float64 [T].

    The last step destroys the signal completely: alphas_bar[T-1] = 0.
    """
    return 1.0 / np.linspace(num_timesteps, 1, num_timesteps, dtype=np.float64)


def warmup_betas(
    num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02, *, fraction: float
) -> np.ndarray:
    """beta_t rises linearly over the first `fraction` of the chain, then stays constant.

    The original code's "warmup10/50".
    """
    betas = np.full(num_timesteps, beta_end, dtype=np.float64)
    num_warmup = int(num_timesteps * fraction)
    betas[:num_warmup] = np.linspace(beta_start, beta_end, num_warmup, dtype=np.float64)
    return betas


def cosine_betas(num_timesteps: int, offset: float = 0.008, max_beta: float = 0.999) -> np.ndarray:
    """alphas_bar follows a squared cosine (Nichol & Dhariwal 2021, eq. 17). Returns float64 [T].

    alphas_bar(u) = cos²((u + s) / (1 + s) · π/2) / cos²(s / (1 + s) · π/2) at u = (t+1)/T with s =
    `offset`; beta_t is held at or below `max_beta` so that the last step keeps some signal.
    """
    u = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    alphas_bar = np.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
    return np.minimum(1 - alphas_bar[1:] / alphas_bar[:-1], max_beta)


def sigmoid_betas(
    num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02
) -> np.ndarray:
    """beta_t rises along a logistic curve over [-6, 6] (Xu et al. 2022, GeoDiff).

    Returns float64 [T].

    Elsewhere "sigmoid" is a logistic curve of alphas_bar: `sigmoid_alphas_bar_betas`.
    """
    logits = np.linspace(-6, 6, num_timesteps, dtype=np.float64)
    return beta_start + (beta_end - beta_start) / (1 + np.exp(-logits))


def sigmoid_alphas_bar_betas(
    num_timesteps: int, start: float = -3.0, end: float = 3.0, max_beta: float = 0.999
) -> np.ndarray:
    """alphas_bar falls along a logistic curve (Jabri et al. 2022, "sigmoid"). Returns float64 [T].

    alphas_bar(u) = (σ(e) - σ(s + u (e - s))) / (σ(e) - σ(s)) at u = (t+1)/T with s = `start` and e
    = `end`; beta_t is held at or below `max_beta` so that the last step keeps some signal.
    """
    u = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    curve = 1 / (1 + np.exp(-(start + u * (end - start))))
    alphas_bar = (curve[-1] - curve) / (curve[-1] - curve[0])
    return np.minimum(1 - alphas_bar[1:] / alphas_bar[:-1], max_beta)


def _warmup(fraction: float) -> Callable[..., np.ndarray]:
    return lambda num_timesteps, **end_points: warmup_betas(
        num_timesteps, **end_points, fraction=fraction
    )


BETA_SCHEDULES: dict[str, Callable[..., np.ndarray]] = {
    "linear": linear_betas,
    "quad": quad_betas,
    "const": const_betas,
    "jsd": jsd_betas,
    "warmup10": _warmup(0.1),
    "warmup50": _warmup(0.5),
    "cosine": cosine_betas,
    "scaled_linear": scaled_linear_betas,
    "sigmoid": sigmoid_betas,
    "sigmoid_alphas_bar": sigmoid_alphas_bar_betas,
}

# The end points that each schedule takes; a schedule that is not here has none.
_END_POINTS = dict.fromkeys(
    ("linear", "quad", "warmup10", "warmup50", "scaled_linear", "sigmoid"), 2
) | {"const": 1}


def make_betas(
    name: str,
    num_timesteps: int,
    *,
    beta_start: float | None = None,
    beta_end: float | None = None,
    scale_betas: bool = False,
    zero_terminal_snr: bool = False,
) -> np.ndarray:
    """Return the betas of the schedule `name`.

    Args:
      name: a key of `BETA_SCHEDULES`.
      num_timesteps: T, at least 2.
      beta_start: beta at t = 0, in (0, 1); None for the published value. Not taken by const, jsd,
        cosine and sigmoid_alphas_bar.
      beta_end: beta at t = T-1, in (0, 1]; None for the published value. Not taken by jsd, cosine
        and sigmoid_alphas_bar.
      scale_betas: whether the end points are those of a chain of 1000 steps, and the T steps are
        scaled to add as much noise as these: `scaled_betas`. Otherwise they are those of the T
        steps. Not taken by jsd, cosine and sigmoid_alphas_bar, which depend on T by themselves.
      zero_terminal_snr: end at alphas_bar = 0: `zero_terminal_snr_betas`.

    Returns:
      float64 [T], each in (0, 1].

    Raises:
      UsageError: unknown name, T < 2, an argument the schedule does not take or an end point
        outside its range.
    """
    schedule = choose("beta schedule", name, BETA_SCHEDULES)
    check_num_timesteps(num_timesteps)
    given = {k: v for k, v in (("beta_start", beta_start), ("beta_end", beta_end)) if v is not None}
    taken = ("beta_end", "beta_start")[: _END_POINTS.get(name, 0)]
    for key, value in given.items():
        if key not in taken:
            raise UsageError(f"The {name} schedule takes no {key}: leave it unset (it is {value}).")
        if not 0 < value <= 1:
            raise UsageError(f"{key} is {value}: a beta lies in (0, 1].")
    if scale_betas and not taken:
        raise UsageError(
            f"The {name} schedule follows the number of timesteps by itself: leave scale_betas "
            "false."
        )
    betas = schedule(num_timesteps, **given)
    betas = scaled_betas(betas) if scale_betas else betas
    return zero_terminal_snr_betas(betas) if zero_terminal_snr else betas


def zero_terminal_snr_betas(betas: np.ndarray) -> np.ndarray:
    """Shift and scale √ᾱ linearly, so that its last value is 0 and its first unchanged.

    Lin et al. 2024, algorithm 1: x_T is then noise alone, as in sampling. The network must predict
    x_0, v or the velocity, and what it has learned at the last step is new.

    Args:
      betas: float64 [T], each in (0, 1), the last in (0, 1].

    Returns:
      float64 [T], the last 1.
    """
    signal = np.sqrt(np.cumprod(1 - betas))
    alphas_bar = ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2
    # β_t of neighbours in the list, β_0 as it was.
    return np.append(betas[0], 1 - alphas_bar[1:] / alphas_bar[:-1])


def scaled_betas(betas: np.ndarray) -> np.ndarray:
    """1 - (1-β)^(1000/T): T steps that together add as much noise as 1000 on the same curve.

    A step of the chain is one of dx = -½ β(u) x du + √β(u) dw over 1/T of its time, so α_t is
    exp(-∫β) over it: the power 1000/T. The final alphas_bar is that of 1000 steps for every T, up
    to the resolution of the curve by T points, and every beta stays below 1. To first order it is β
    1000/T, the rule of Improved DDPM's code, by which the linear schedule has a beta above 1 where
    T < 20.

    Args:
      betas: float64 [T], each in (0, 1]: the published curve at T points.

    Returns:
      float64 [T]; `betas` itself where T is 1000.
    """
    longer = PUBLISHED_TIMESTEPS / len(betas)
    if longer == 1:
        return betas
    with np.errstate(divide="ignore"):  # a beta of 1 stays 1
        return -np.expm1(longer * np.log1p(-betas))


class Schedule(NamedTuple):
    """A pytree of [T] tables, indexed by t = 0 (least noise) .. T-1; float32 on the device.

    Notation of Ho et al. 2020: alpha_t = 1 - beta_t, alphas_bar_t the product of alphas up to t,
    alphas_bar_{-1} = 1.
    """

    # the network's time at row t; differs from t in a respaced or rescaled chain. [T, 2] of the
    # sampler `mean_flow`: and the time of the level that the step leads to
    timesteps: chex.Array
    betas: chex.Array
    alphas_bar: chex.Array
    alphas_bar_prev: chex.Array  # alphas_bar[t-1]
    sqrt_alphas_bar: chex.Array
    sqrt_one_minus_alphas_bar: chex.Array
    log_one_minus_alphas_bar: chex.Array
    sqrt_recip_alphas_bar: chex.Array  # sqrt(1 / alphas_bar)
    sqrt_recipm1_alphas_bar: chex.Array  # sqrt(1 / alphas_bar - 1)
    snr: chex.Array  # alphas_bar / (1 - alphas_bar)
    posterior_mean_coef1: chex.Array  # of x_0 in the mean of q(x_{t-1}|x_t, x_0), eq. 7
    posterior_mean_coef2: chex.Array  # of x_t in it
    # Of the trained step; in a respaced chain the walked step has other numbers.
    trained_mean_coef1: chex.Array  # posterior_mean_coef1 of the whole chain at this t
    trained_mean_coef2: chex.Array
    posterior_variance: chex.Array  # beta tilde, eq. 7; 0 at t = 0
    posterior_log_variance_clipped: chex.Array  # its log, with the value of t = 1 at t = 0
    # log beta_t, with the log posterior variance of t = 1 at t = 0
    fixed_large_log_variance: chex.Array
    log_betas: chex.Array
    half_log_snr: chex.Array  # λ = log(√ᾱ / √(1-ᾱ)), falling with t; -inf where alphas_bar is 0
    trained_posterior_variance: chex.Array  # beta tilde of the whole chain at this t

    @property
    def num_timesteps(self) -> int:
        """T, the number of rows."""
        return self.betas.shape[0]

    @property
    def sigma(self) -> chex.Array:
        """σ = √(1-ᾱ) / √ᾱ, the noise relative to data of unchanged scale, [T]; inf at ᾱ = 0."""
        exp = np.exp if isinstance(self.half_log_snr, np.ndarray) else jnp.exp
        return exp(-self.half_log_snr)


def make_schedule(
    betas: np.ndarray,
    *,
    timesteps: np.ndarray | None = None,
    lambdas: np.ndarray | None = None,
    time_scale: float = 1.0,
    dtype=np.float32,
) -> Schedule:
    """Build every table from the betas, in float64, and round to `dtype`.

    Args:
      betas: float64 [T], each in (0, 1), the last in (0, 1].
      timesteps: strictly increasing times to keep, int or float [N], in 0..T-1; None keeps all. The
        kept steps form a chain of their own with the same q(x_t|x_0): beta' = 1 - alphas_bar_t /
        alphas_bar_s, with s the kept step before t (Nichol & Dhariwal 2021, section 4). Between two
        indices `half_log_snr` is linear in t.
      lambdas: `half_log_snr` at `timesteps`, float64 [N], strictly falling, where it is not the
        chain's; the times are then those of the network alone, and may repeat. None: the chain's.
      time_scale: the network's time is t times this; Improved DDPM's code has 1000 / T.
      dtype: of the tables; float64 serves tests.

    Returns:
      The `Schedule` of N rows. The network's time in row i is timesteps[i] * time_scale.

    Raises:
      UsageError: too few betas, betas outside their range, or timesteps that are not increasing,
        leave 0..T-1, or have more than one level at which alphas_bar is 0.
    """
    betas = np.asarray(betas, np.float64)
    check_betas(betas)
    alphas_bar, own_lambdas = np.cumprod(1 - betas), half_log_snr(betas)
    trained = _trained_step(betas, alphas_bar)
    whole = np.arange(betas.size)
    if timesteps is None:
        timesteps, lambdas = whole, own_lambdas
    else:
        timesteps = np.asarray(timesteps)
        if lambdas is None:
            _check_timesteps(timesteps, betas.size)
        trained = {name: np.interp(timesteps, whole, table) for name, table in trained.items()}
        if lambdas is None:
            betas, alphas_bar, lambdas = _keep(timesteps, betas, alphas_bar, own_lambdas)
        else:
            betas = step_variance(lambdas, np.append(np.inf, lambdas[:-1]))
            alphas_bar = np.exp(-np.logaddexp(0, -2 * lambdas))
    tables = _tables(betas, alphas_bar) | {"half_log_snr": lambdas} | trained
    # an alphas_bar below 1e-38 is 0 in float32, and its reciprocal inf
    with np.errstate(over="ignore"):
        tables = {name: table.astype(dtype) for name, table in tables.items()}
    # times have at least the precision of float32
    times = (timesteps * time_scale).astype(np.promote_types(dtype, np.float32))
    return Schedule(timesteps=times, **tables)


def schedule_from_lambdas(
    lambdas: np.ndarray, network_times: np.ndarray, *, dtype=np.float32
) -> Schedule:
    """Build every table of a chain that has these levels and no trained step but its own.

    Args:
      lambdas: `half_log_snr`, float64 [N], strictly falling, the last perhaps -inf (pure noise).
      network_times: what the network is given at each, [N].
      dtype: of the tables.
    """
    betas = step_variance(lambdas, np.append(np.inf, lambdas[:-1]))
    alphas_bar = np.exp(-np.logaddexp(0, -2 * lambdas))
    tables = _tables(betas, alphas_bar) | _trained_step(betas, alphas_bar)
    with np.errstate(over="ignore"):  # as in `make_schedule`
        tables = {name: table.astype(dtype) for name, table in tables.items()}
        # Of small noise, which 1 - ᾱ of a rounded ᾱ would lose.
        noise = np.exp(-0.5 * np.logaddexp(0, 2 * lambdas))
        tables["sqrt_one_minus_alphas_bar"] = noise.astype(dtype)
    times = np.asarray(network_times).astype(np.promote_types(dtype, np.float32))
    return Schedule(timesteps=times, half_log_snr=lambdas.astype(dtype), **tables)


def single_levels(lambdas: chex.Array, network_times: chex.Array) -> Schedule:
    """Return the tables of B levels that form no chain; may be traced.

    Args:
      lambdas: `half_log_snr`, [B], in any order, perhaps infinite.
      network_times: what the network is given at each, [B].

    Returns:
      A `Schedule` of B rows. What belongs to a step (betas, posteriors) is NaN.
    """
    alphas_bar, one_minus = jax.nn.sigmoid(2 * lambdas), jax.nn.sigmoid(-2 * lambdas)
    levels = {
        "timesteps": network_times,
        "alphas_bar": alphas_bar,
        "sqrt_alphas_bar": jnp.sqrt(alphas_bar),
        "sqrt_one_minus_alphas_bar": jnp.sqrt(one_minus),
        "log_one_minus_alphas_bar": jax.nn.log_sigmoid(-2 * lambdas),
        "sqrt_recip_alphas_bar": 1 / jnp.sqrt(alphas_bar),
        "sqrt_recipm1_alphas_bar": jnp.exp(-lambdas),
        "snr": jnp.exp(2 * lambdas),
        "half_log_snr": lambdas,
    }
    unknown = jnp.full_like(lambdas, jnp.nan)
    return Schedule(**{name: levels.get(name, unknown) for name in Schedule._fields})


def check_num_timesteps(num_timesteps: Any) -> None:
    """Refuse a number of timesteps that makes no chain.

    Raises:
      UsageError: less than two, or no whole number.
    """
    is_whole = isinstance(num_timesteps, int | np.integer) and not isinstance(num_timesteps, bool)
    if not is_whole:
        raise UsageError(f"num_timesteps is {num_timesteps!r}: it must be a whole number.")
    if num_timesteps < 2:
        raise UsageError(f"num_timesteps is {num_timesteps}: a chain needs at least 2 timesteps.")


def check_betas(betas: np.ndarray) -> None:
    """Refuse betas that do not make a chain.

    Raises:
      UsageError: fewer than two, or one outside its range.
    """
    if betas.ndim != 1 or betas.size < 2:
        raise UsageError(
            f"betas must be a list of at least two numbers, but have shape {betas.shape}."
        )
    if not (np.all(betas > 0) and np.all(betas[:-1] < 1) and betas[-1] <= 1):
        raise UsageError(
            f"betas must lie in (0, 1), the last in (0, 1], but they span {betas.min()} to "
            f"{betas.max()}: after a beta of 1 nothing is left to diffuse."
        )


def half_log_snr(betas: np.ndarray) -> np.ndarray:
    """λ_t = log(√ᾱ_t / √(1-ᾱ_t)) = -log σ_t of the whole chain, float64 [T]; -inf where ᾱ_t is 0.

    Summed as logarithms: 1 - ᾱ_t of a rounded ᾱ_t near 1 would have lost the digits of a small β.
    """
    with np.errstate(divide="ignore"):  # a last beta of 1 has no logarithm of its alpha
        log_alphas_bar = np.cumsum(np.log1p(-np.asarray(betas, np.float64)))
    return 0.5 * (log_alphas_bar - np.log(-np.expm1(log_alphas_bar)))


def step_variance(lambdas: np.ndarray, lambdas_prev: np.ndarray) -> np.ndarray:
    """1 - ᾱ/ᾱ' of the step from the level λ' up to the noisier λ; 0 where the levels are equal.

    Written as (1-ᾱ) (1 - e^(-2(λ'-λ))): a ratio of two rounded ᾱ loses the digits of a short step.
    """
    lambdas, lambdas_prev = np.broadcast_arrays(lambdas, lambdas_prev)
    apart = np.subtract(
        lambdas_prev, lambdas, out=np.zeros(lambdas.shape), where=lambdas != lambdas_prev
    )
    one_minus_alphas_bar = np.exp(-np.logaddexp(0, 2 * lambdas))
    return one_minus_alphas_bar * -np.expm1(-2 * apart)


def _keep(
    timesteps: np.ndarray, betas: np.ndarray, alphas_bar: np.ndarray, lambdas: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (β, ᾱ, λ) of the chain of these times; between two indices λ is linear in t.

    At an index ᾱ is the value of the table, and so is β where the step before is kept as well.
    """
    below, above = np.floor(timesteps).astype(int), np.ceil(timesteps).astype(int)
    part = timesteps - below
    with np.errstate(invalid="ignore"):  # 0 times an infinite λ, which `where` does not take
        lambdas = np.where(
            part > 0, (1 - part) * lambdas[below] + part * lambdas[above], lambdas[below]
        )
    if np.isneginf(lambdas[:-1]).any():
        raise UsageError(
            f"The timesteps to keep have several levels without signal: {timesteps.tolist()} may "
            f"have one above {betas.size - 2}, the last index at which this schedule keeps some."
        )
    own = (part == 0) & (np.diff(timesteps, prepend=-1) == 1)
    walked = step_variance(lambdas, np.append(np.inf, lambdas[:-1]))
    return (
        np.where(own, betas[below], walked),
        np.where(part > 0, np.exp(-np.logaddexp(0, -2 * lambdas)), alphas_bar[below]),
        lambdas,
    )


def _check_timesteps(timesteps: np.ndarray, num_timesteps: int) -> None:
    if timesteps.ndim != 1 or timesteps.size < 1 or np.any(np.diff(timesteps) <= 0):
        raise UsageError(
            f"The timesteps to keep must be strictly increasing, not {timesteps.tolist()}."
        )
    if timesteps[0] < 0 or timesteps[-1] >= num_timesteps:
        raise UsageError(
            f"The timesteps to keep must lie in 0..{num_timesteps - 1}, not {timesteps.tolist()}."
        )


def _mean_coefs(betas: np.ndarray, alphas_bar: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of x_0 and x_t in the mean of q(x_{t-1}|x_t, x_0) (Ho et al. 2020, eq. 7)."""
    alphas_bar_prev = np.concatenate([[1.0], alphas_bar[:-1]])
    x_0_coef = betas * np.sqrt(alphas_bar_prev) / (1 - alphas_bar)
    return x_0_coef, (1 - alphas_bar_prev) * np.sqrt(1 - betas) / (1 - alphas_bar)


def _posterior_variance(betas: np.ndarray, alphas_bar: np.ndarray) -> np.ndarray:
    """β̃ of q(x_{t-1}|x_t, x_0) (Ho et al. 2020, eq. 7); 0 at t = 0."""
    return betas * (1 - np.concatenate([[1.0], alphas_bar[:-1]])) / (1 - alphas_bar)


def _trained_step(betas: np.ndarray, alphas_bar: np.ndarray) -> dict[str, np.ndarray]:
    """Return the coefficients of the whole chain's step at each t, by their names in `Schedule`.

    Between two indices they are interpolated linearly: correct for a network whose output is linear
    there.
    """
    x_0_coef, x_t_coef = _mean_coefs(betas, alphas_bar)
    return {
        "trained_mean_coef1": x_0_coef,
        "trained_mean_coef2": x_t_coef,
        "trained_posterior_variance": _posterior_variance(betas, alphas_bar),
    }


def _tables(betas: np.ndarray, alphas_bar: np.ndarray) -> dict[str, np.ndarray]:
    alphas_bar_prev = np.concatenate([[1.0], alphas_bar[:-1]])
    posterior_variance = _posterior_variance(betas, alphas_bar)
    # beta tilde is 0 at t = 0, so its log takes the next value; a chain of one step has no next
    # value and takes beta.
    first = posterior_variance[1] if betas.size > 1 else betas[0]
    # alphas_bar reaches 0 in chains that destroy the signal (jsd); there x_0 cannot be recovered
    # from eps: 1/0 = inf.
    with np.errstate(divide="ignore"):
        recip_alphas_bar = 1 / alphas_bar
    return {
        "betas": betas,
        "alphas_bar": alphas_bar,
        "alphas_bar_prev": alphas_bar_prev,
        "sqrt_alphas_bar": np.sqrt(alphas_bar),
        "sqrt_one_minus_alphas_bar": np.sqrt(1 - alphas_bar),
        "log_one_minus_alphas_bar": np.log(1 - alphas_bar),
        "sqrt_recip_alphas_bar": np.sqrt(recip_alphas_bar),
        "sqrt_recipm1_alphas_bar": np.sqrt(recip_alphas_bar - 1),
        "snr": alphas_bar / (1 - alphas_bar),
        **dict(
            zip(
                ("posterior_mean_coef1", "posterior_mean_coef2"),
                _mean_coefs(betas, alphas_bar),
                strict=True,
            )
        ),
        "posterior_variance": posterior_variance,
        "posterior_log_variance_clipped": np.log(np.append(first, posterior_variance[1:])),
        "fixed_large_log_variance": np.log(np.append(first, betas[1:])),
        "log_betas": np.log(betas),
    }


def same_schedule(one: Schedule, other: Schedule) -> bool:
    """Return whether all tables are the same: the same objects if traced, else equal values."""

    def same(a: chex.Array, b: chex.Array) -> bool:
        if a is b:
            return True
        if isinstance(a, jax.core.Tracer) or isinstance(b, jax.core.Tracer):
            return False
        a, b = np.asarray(a), np.asarray(b)
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)

    return all(map(same, one, other))


def spaced_timesteps(num_timesteps: int, steps: int) -> np.ndarray:
    """Return `steps` indices evenly spaced over 0..T-1 with both ends kept.

    int64, increasing; [T-1] for one step.

    This is the spacing of Improved DDPM (Nichol & Dhariwal 2021, section 4). The "leading" spacing
    of other libraries leaves out t = T-1 and so starts the reverse chain from noise of the wrong
    variance.

    Raises:
      UsageError: `steps` is not in 1..T.
    """
    if not 1 <= steps <= num_timesteps:
        raise UsageError(
            f"steps is {steps}: the chain has {num_timesteps} timesteps, so choose 1 to "
            f"{num_timesteps}."
        )
    if steps == 1:
        return np.array([num_timesteps - 1])
    return np.round(np.linspace(0, num_timesteps - 1, steps)).astype(np.int64)
