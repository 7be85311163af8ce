"""Progressive coding and generation (Ho et al. 2020, section 4.3), and interpolation (section 4.4).

Algorithm 3 of the paper sends an image as x_T, x_{T-1}, ... x_0, each drawn from q given the image
and the one before and coded under p at the cost of a term of the bound; the receiver of x_t
(algorithm 4) shows the x_0 predicted from it. The x_t sent have the distribution q(x_t|x_0), so
rate and distortion are sums and rows of the table of the bound (`bound`, `tally`): no other run
over the data is needed. The code itself is not implemented: no practical one is known.

The x_0 predicted along one chain of samples is part of every chain
(`samplers.loop.Samples.frames_x_0`).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import randomness
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.gaussian import q_sample
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.evaluation.tally import Summary
from ddpm_jax.generation import dispatch
from ddpm_jax.generation.generating import pixels
from ddpm_jax.randomness import base_key
from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.loop import Sampler

HALF_RANGE = 127.5  # grey levels in a unit of [-1, 1]


class RateDistortion(NamedTuple):
    """K points of the curve by rising rate: float64 [K] except t."""

    t: np.ndarray  # int64, decreasing: the x_t received
    rate: np.ndarray  # bits/dim received by then: L_T + the terms at all later t
    rmse: np.ndarray  # of the x_0 predicted from x_t, in grey levels of 0..255
    rmse_standard_error: np.ndarray  # over images


def rate_distortion(summary: Summary) -> RateDistortion:
    """Return the curve of Ho et al. 2020, figure 5: rate and distortion at each visited t.

    rate(t) = L_T + Σ over s > t of the term at s, so rate(T-1) = L_T and rate(0) = the bound
    without the decoder's term: the "rate" of the paper's table 4, whose "distortion" is that term.
    rmse(t) = 127.5 √(mean over images and dimensions of (x_0 - predicted x_0)²).
    """
    later = np.cumsum(summary.contributions[::-1])[::-1] - summary.contributions
    t = np.flatnonzero(summary.visits)[::-1]
    root = np.sqrt(summary.mse[t])
    with np.errstate(divide="ignore", invalid="ignore"):  # an error of 0 has no direction
        error = np.where(root > 0, HALF_RANGE * summary.mse_standard_error[t] / (2 * root), 0.0)
    return RateDistortion(t, summary.prior + later[t], HALF_RANGE * root, error)


def from_timestep(schedule: Schedule, t: int) -> Sampler:
    """Return ancestral sampling that starts at x_t instead of x_T: rows t, t-1 .. 0.

    Raises:
      UsageError: `t` is not in 0..T-1.
    """
    if not 0 <= t < schedule.num_timesteps:
        raise UsageError(
            f"t is {t}: the chain has the timesteps 0 (least noise) to "
            f"{schedule.num_timesteps - 1}, choose one of them."
        )
    whole = ancestral(schedule)
    return whole._replace(rows=whole.rows[-(t + 1) :], evaluations=t + 1)


class Interpolation(NamedTuple):
    """Images between two others: lambdas [N], images uint8 [N, H, W, C]."""

    lambdas: np.ndarray
    images: np.ndarray


def make_interpolate(
    make_denoiser: Callable[[Any], Denoiser],
    schedule: Schedule,
    *,
    t: int,
    steps: int,
    show: Callable[[Any, chex.Array], chex.Array] = pixels,
) -> Callable[..., Interpolation]:
    """Return interpolate(params, pair, *, seed) -> `Interpolation`, compiled once.

    It interpolates two images in the latent space at t (Ho et al. 2020, section 4.4, figure 8).

    Both are encoded by q(x_t|x_0), and x̄_t = (1-λ) x_t + λ x'_t is decoded by the reverse chain.
    The two share the ε of the encoding, so that x̄_t has the noise level of t at every λ (with
    independent ε the variance would fall to half in the middle); all λ share the noise of the
    chain, so that neighbours differ by λ alone. Large t gives varied and new images, small t a
    blend of the two.

    Args:
      make_denoiser: params -> `Denoiser`.
      schedule: that of the walked chain, whole or respaced.
      t: the level of the interpolation, 0..T-1 of `schedule`.
      steps: N, the number of λ from 0 to 1, both included; at least 2.
      show: (params, x_0 [N, h, w, c]) -> their images uint8 [N, H, W, C].

    Raises:
      UsageError: `t` or `steps` out of range.

    Interpolate is given the x_0 of the two images, float32 [2, h, w, c], and the seed of both
    noises. It raises:
      FailureError: an image that is not finite.
    """
    if steps < 2:
        raise UsageError(
            f"The number of interpolation steps is {steps}: choose at least 2, the two ends."
        )
    lambdas = np.linspace(0, 1, steps)
    sample = dispatch.make_sample(make_denoiser, from_timestep(schedule, t))
    show = jax.jit(show)

    @jax.jit
    def start(key, pair, lambdas):
        keys = randomness.image_keys(key, jnp.zeros(steps, jnp.int32))
        eps = jnp.broadcast_to(randomness.initial_noise(keys[:1], pair.shape[1:]), pair.shape)
        return mix(q_sample(schedule, pair, jnp.full(2, t), eps), lambdas), keys

    def interpolate(params: Any, pair: chex.Array, *, seed: int) -> Interpolation:
        chex.assert_type(pair, np.float32)
        chex.assert_shape(pair, (2, None, None, None))
        x_t, keys = start(base_key(seed), pair, lambdas.astype(np.float32))
        return Interpolation(lambdas, _to_images(show, params, sample(params, x_t, keys).x_0))

    return interpolate


def mix(x_t: chex.Array, lambdas: chex.Array) -> chex.Array:
    """Return (1-λ) x_t[0] + λ x_t[1] for each λ: [2, ...], [N] -> [N, ...]."""
    weight = lambdas.reshape((-1,) + (1,) * (x_t.ndim - 1))
    return (1 - weight) * x_t[:1] + weight * x_t[1:]


class SharedLatents(NamedTuple):
    """Samples from K moments of one chain, the noisiest first."""

    t: np.ndarray  # int64 [K]
    latents: np.ndarray  # uint8 [K, H, W, C]: the chain's x_t
    images: np.ndarray  # uint8 [K, N, H, W, C]: draws from p(x_0|x_t)


def samples_sharing_latents(
    make_denoiser: Callable[[Any], Denoiser],
    schedule: Schedule,
    params: Any,
    shape: tuple[int, int, int],
    *,
    num_latents: int,
    num_samples: int,
    seed: int,
    show: Callable[[Any, chex.Array], chex.Array] = pixels,
) -> SharedLatents:
    """Walk one chain, then N times from each of K of its moments (Ho et al. 2020, figure 7).

    The N samples of a row have in common what x_t determines: nothing at t = T-1, nearly everything
    at small t. The chain is that of image 0 of the seed; the moments are evenly spaced: t = 999,
    749, 499, 249 for K = 4 and T = 1000.

    Args:
      make_denoiser: params -> `Denoiser`.
      schedule: that of the walked chain, whole or respaced.
      params: parameters.
      shape: (h, w, c) of x_0.
      num_latents: K, 1..T.
      num_samples: N, at least 1.
      seed: of the noise.
      show: as in `make_interpolate`.

    Raises:
      UsageError: more moments than the chain has.
      FailureError: an image that is not finite.
    """
    num_timesteps = schedule.num_timesteps
    if not 1 <= num_latents <= num_timesteps:
        raise UsageError(
            f"{num_latents} latents are asked for: the chain has {num_timesteps}, choose 1 to so "
            "many."
        )
    walk, show = functools.partial(dispatch.sample, make_denoiser), jax.jit(show)
    keys = randomness.image_keys(base_key(seed), jnp.arange(1 + num_latents * num_samples))
    of_rows = keys[1:].reshape(num_latents, num_samples)
    x_T = randomness.initial_noise(keys[:1], shape)
    # The last frame is the sample of the chain; the other frames are the x_t before their rows.
    chain = walk(ancestral(schedule), params, x_T, keys[:1], num_frames=num_latents + 1)
    latents = chain.frames_x_t[:-1, 0]
    rows = np.round(np.linspace(0, num_timesteps, num_latents + 1)).astype(int)[:-1]
    t = num_timesteps - 1 - rows
    images = [
        walk(
            from_timestep(schedule, s), params, jnp.tile(x_t, (num_samples, 1, 1, 1)), row_keys
        ).x_0
        for s, x_t, row_keys in zip(t, latents, of_rows, strict=True)
    ]
    drawn = _to_images(show, params, jnp.concatenate(images))
    return SharedLatents(
        t,
        np.asarray(show(params, latents)),
        drawn.reshape(num_latents, num_samples, *drawn.shape[1:]),
    )


def _to_images(
    show: Callable[[Any, chex.Array], chex.Array], params: Any, x_0: chex.Array
) -> np.ndarray:
    if not jnp.all(jnp.isfinite(x_0)):
        raise FailureError(
            "An image came out as not-a-number or infinite: the weights have diverged, so use an "
            "earlier checkpoint."
        )
    return np.asarray(show(params, x_0))
