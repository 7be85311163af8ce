"""CLIPPINGS: what is done to a predicted x_0 that leaves [-1, 1], under the name a user gives it.

    name      x_0                          ε                    as in
    none      as predicted                 as predicted         Song et al. 2020, the paper
    static    clipped to [-1, 1]           that of the new x_0  the original DDPM and OpenAI's code; our default
    keep_eps  clipped to [-1, 1]           as predicted         diffusers, `clip_sample`
    dynamic   clipped to [-s, s] / s,      that of the new x_0  Saharia et al. 2022 (Imagen), section 2.3
              s = max(1, a percentile of |x_0| of the image)

The mean is that of the new x_0 in all of them: (denoiser, schedule) -> `Denoiser`. With `keep_mean`
it stays as the network said it: what the original code does where the network predicts μ. Clipping
comes after guidance.
"""

import chex
import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.parameterization import Denoiser, Prediction, clip_x_0, with_x_0
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import UsageError

PERCENTILE = 99.5  # the default of diffusers; the paper leaves it open


def unclipped(denoiser: Denoiser, schedule: Schedule, *, keep_mean: bool = False) -> Denoiser:
    """The denoiser as it is."""
    del schedule, keep_mean
    return denoiser


def clip_keeping_eps(
    denoiser: Denoiser, schedule: Schedule, *, keep_mean: bool = False
) -> Denoiser:
    """Clips the predicted x_0 to [-1, 1] and leaves ε: the two no longer add up to x_t."""

    def clipped(x_t: chex.Array, t: chex.Array) -> Prediction:
        prediction = denoiser(x_t, t)
        replaced = with_x_0(schedule, prediction, jnp.clip(prediction.x_0, -1, 1), x_t, t)
        return replaced._replace(
            eps=prediction.eps, mean=prediction.mean if keep_mean else replaced.mean
        )

    return clipped


def threshold(
    denoiser: Denoiser,
    schedule: Schedule,
    *,
    keep_mean: bool = False,
    percentile: chex.Array | float = PERCENTILE,
) -> Denoiser:
    """Dynamic thresholding: clips x_0 to [-s, s] and divides by s (Saharia et al. 2022, section
    2.3).

    s is the percentile of |x_0| over the pixels and channels of the image, but at least 1: strong
    guidance saturates single pixels and leaves the others their contrast. 100 clips nothing and
    scales every image into [-1, 1]; diffusers also holds s below its `sample_max_value`, whose
    default, 1, makes it static clipping.

    Args:
      denoiser: see above.
      schedule: the chain it is built on.
      keep_mean: see above.
      percentile: in (0, 100]; may be traced.

    Raises:
      UsageError: the percentile is outside its range.
    """
    if not isinstance(percentile, jax.core.Tracer) and not 0 < percentile <= 100:
        raise UsageError(
            f"The percentile of dynamic thresholding is {percentile}: choose a number above 0 and "
            "up to 100."
        )

    def thresholded(x_t: chex.Array, t: chex.Array) -> Prediction:
        prediction = denoiser(x_t, t)
        pixels = tuple(range(1, x_t.ndim))
        s = jnp.maximum(
            1, jnp.percentile(jnp.abs(prediction.x_0), percentile, axis=pixels, keepdims=True)
        )
        replaced = with_x_0(schedule, prediction, jnp.clip(prediction.x_0, -s, s) / s, x_t, t)
        return replaced._replace(mean=prediction.mean) if keep_mean else replaced

    return thresholded


CLIPPINGS = {
    "none": unclipped,
    "static": clip_x_0,
    "keep_eps": clip_keeping_eps,
    "dynamic": threshold,
}
