"""CLIPPINGS: treatments of a predicted x_0 that leaves [-1, 1], by name.

    name      x_0                      ε                    as in
    none      as predicted             as predicted         Song et al. 2020, the paper
    static    clipped to [-1, 1]       that of the new x_0  the original DDPM and OpenAI's code
    keep_eps  clipped to [-1, 1]       as predicted         diffusers, `clip_sample`
    dynamic   clipped to [-s, s] / s,  that of the new x_0  Saharia et al. 2022, section 2.3
              s = max(1, a percentile of |x_0| of the image)

`static` is our default; `dynamic` is that of Imagen.

Each is a function `Denoiser` -> `Denoiser`. The mean is that of the new x_0, except for a network
that predicts μ, whose mean stays as predicted, as in the original code. Clipping comes after
guidance.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.denoiser import Denoiser, check_denoiser
from ddpm_jax.diffusion.parameterization import Prediction, with_x_0
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import UsageError

PERCENTILE = 99.5  # the default of diffusers; the paper leaves it open


def unclipped(denoiser: Denoiser) -> Denoiser:
    """Return the denoiser unchanged."""
    check_denoiser(denoiser)
    return denoiser


def static(denoiser: Denoiser) -> Denoiser:
    """Clip x_0 to [-1, 1], and derive ε and the mean from it again."""
    return _with(denoiser, lambda x_0: jnp.clip(x_0, -1, 1))


def keep_eps(denoiser: Denoiser) -> Denoiser:
    """Clip x_0 to [-1, 1] and leave ε: the two no longer add up to x_t."""
    return _with(denoiser, lambda x_0: jnp.clip(x_0, -1, 1), keeps_eps=True)


def threshold(denoiser: Denoiser, *, percentile: chex.Array | float = PERCENTILE) -> Denoiser:
    """Clip x_0 to [-s, s] and divide by s: dynamic thresholding (Saharia et al. 2022, section 2.3).

    s is the percentile of |x_0| over the pixels and channels of the image, but at least 1: strong
    guidance saturates single pixels and leaves the others their contrast. 100 clips nothing and
    scales every image into [-1, 1]; diffusers also holds s below its `sample_max_value`, whose
    default, 1, makes it static clipping.

    Args:
      denoiser: see above.
      percentile: in (0, 100]; may be traced.

    Raises:
      UsageError: the percentile is outside its range.
    """
    if not isinstance(percentile, jax.core.Tracer) and not 0 < percentile <= 100:
        raise UsageError(
            f"The percentile of dynamic thresholding is {percentile}: choose a number above 0 and "
            "up to 100."
        )

    def into_range(x_0: chex.Array) -> chex.Array:
        pixels = tuple(range(1, x_0.ndim))
        s = jnp.maximum(1, jnp.percentile(jnp.abs(x_0), percentile, axis=pixels, keepdims=True))
        return jnp.clip(x_0, -s, s) / s

    return _with(denoiser, into_range)


def _with(
    denoiser: Denoiser, change: Callable[[chex.Array], chex.Array], *, keeps_eps: bool = False
) -> Denoiser:
    """Return the denoiser whose x_0 is changed, with everything that follows from it."""
    check_denoiser(denoiser)

    def clip(
        schedule: Schedule, prediction: Prediction, x_t: chex.Array, t: chex.Array
    ) -> Prediction:
        replaced = with_x_0(schedule, prediction, change(prediction.x_0), x_t, t)
        return replaced._replace(
            eps=prediction.eps if keeps_eps else replaced.eps,
            mean=prediction.mean if denoiser.predicts_mean else replaced.mean,
        )

    return denoiser.then(clip)


CLIPPINGS: dict[str, Callable[[Denoiser], Denoiser]] = {
    "none": unclipped,
    "static": static,
    "keep_eps": keep_eps,
    "dynamic": threshold,
}
