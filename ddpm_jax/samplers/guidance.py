"""Guidance: a model pushed towards a class, or away from a weaker model: `Denoiser` -> `Denoiser`.

    classifier-free   ε = ε_null + w (ε_cond - ε_null)        Ho & Salimans 2022, eq. 6
    classifier        ε = ε_θ - w √(1-ᾱ_t) ∇ log p(y|x_t)     Dhariwal & Nichol 2021, algorithm 2
    autoguidance      ε = ε_weak + w (ε_θ - ε_weak)           Karras et al. 2024

Ho & Salimans call w - 1 what is w here.

The score is -ε/√(1-ᾱ_t), so the first two sample from p(x_t) p(y|x_t)^w as far as scores can. At a
given x_t, x_0, ε and the mean are affine functions of each other: each is shifted as the shift of ε
implies, so their relations hold as before. The variance is that of the stronger model. Guidance
comes before clipping (`clipping`).

x_t is [B, ...], t int [B]; a scale w is a scalar or one number for each image, [B]. Scales,
intervals and rescaling are data: they may be traced, and another value needs no recompilation.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.denoiser import Denoiser, check_denoiser, check_same_schedule
from ddpm_jax.diffusion.gaussian import extract, over
from ddpm_jax.diffusion.parameterization import Prediction
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import UsageError

# (schedule, x_t, t, labels [B]) -> log p(y|x_t), [B]
LogProb = Callable[[Schedule, chex.Array, chex.Array, chex.Array], chex.Array]


class Interval(NamedTuple):
    """The network's times at which there is guidance (`Schedule.timesteps`), both ends included."""

    low: chex.Array
    high: chex.Array


EVERYWHERE = Interval(0.0, math.inf)


def interval_from_fractions(chain: Chain, low: float, high: float) -> Interval:
    """Return the noise levels between two fractions of the chain, t / (T-1).

    0 is the least noise, 1 the most.

    Because they are levels, not rows, a chain of fewer steps is guided at the same levels
    (Kynkäänniemi et al. 2024).

    Raises:
      UsageError: not 0 <= low < high <= 1.
    """
    if not 0 <= low < high <= 1:
        raise UsageError(
            f"The guidance interval is {low} to {high}: give two fractions of the chain, the less "
            "noisy one first, as in 0.2,0.8; 0,1 is the whole chain."
        )
    if chain.has_levels_between:
        times = np.array([low, high]) * (chain.num_timesteps - 1)
        return Interval(*chain.network_times(times).astype(np.float32))
    last = (chain.num_timesteps - 1) * chain.time_scale
    return Interval(np.float32(low * last), np.float32(high * last))


def classifier_free(
    denoiser: Denoiser,
    condition: Any,
    null: Any,
    *,
    scale: chex.Array | float,
    interval: Interval = EVERYWHERE,
    rescale: chex.Array | float = 0.0,
) -> Denoiser:
    """ε = ε_null + w (ε_cond - ε_null), from one evaluation of 2B images.

    Ho & Salimans 2022, eq. 6.

    Args:
      denoiser: a conditional model, nothing clipped; its network takes a condition.
      condition: of each image: a pytree of leaves [B, ...].
      null: the same tree for no condition.
      scale: w = 1 + the paper's w: 0 is the unconditional model, 1 the conditional one, both to the
        last bit. At 1 the model alone gives the same in half the time.
      interval: outside it the conditional model is not guided (Kynkäänniemi et al. 2024).
      rescale: φ in [0, 1], how far the guided v is rescaled to the standard deviation of the
        conditional one: `_rescaled`.

    Raises:
      UsageError: a scale that is negative or not finite, or φ outside [0, 1].
    """
    check_denoiser(denoiser)
    check_scale(scale)
    check_rescale(rescale)
    both = jax.tree.map(lambda *halves: jnp.concatenate(halves), condition, null)

    def network(x_t: chex.Array, time: chex.Array) -> Any:
        return denoiser.network(jnp.concatenate([x_t, x_t]), jnp.concatenate([time, time]), both)

    def interpret(schedule: Schedule, output: Any, x_t: chex.Array, t: chex.Array) -> Prediction:
        predictions = denoiser.read(output, jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]))
        conditional = Prediction(*(field[: len(x_t)] for field in predictions))
        unconditional = Prediction(*(field[len(x_t) :] for field in predictions))
        w = _scale_at(schedule, t, scale, interval, outside=1.0)
        away = _extrapolated(unconditional, conditional, w)
        return _rescaled(schedule, away, conditional, t, rescale)

    return Denoiser(
        denoiser.schedule,
        network,
        interpret,
        denoiser.predicts_mean,
        network_input=denoiser.network_input,
    )


def autoguidance(
    denoiser: Denoiser,
    weaker: Denoiser,
    *,
    scale: chex.Array | float,
    interval: Interval = EVERYWHERE,
) -> Denoiser:
    """ε = ε_weak + w (ε - ε_weak): away from a model whose errors are alike but larger.

    Karras et al. 2024.

    Args:
      denoiser: the model, nothing clipped.
      weaker: the same model trained for less, or a smaller one, with the same data, noise levels
        and condition.
      scale: w: 0 is the weaker model, 1 the model itself, both to the last bit.
      interval: outside it the model is not guided.

    Raises:
      UsageError: a scale that is negative or not finite; two models on different schedules.
    """
    check_denoiser(denoiser)
    check_same_schedule(weaker, denoiser.schedule, "the model that it guides")
    check_scale(scale)

    def guide(
        schedule: Schedule, prediction: Prediction, x_t: chex.Array, t: chex.Array
    ) -> Prediction:
        w = _scale_at(schedule, t, scale, interval, outside=1.0)
        return _extrapolated(weaker(x_t, t), prediction, w)

    return denoiser.then(guide)


def classifier_guidance(
    denoiser: Denoiser,
    log_prob: LogProb,
    labels: chex.Array,
    *,
    scale: chex.Array | float,
    interval: Interval = EVERYWHERE,
) -> Denoiser:
    """ε = ε_θ - w √(1-ᾱ_t) ∇ log p(y|x_t) (Dhariwal & Nichol 2021, algorithm 2), for any sampler.

    So x_0 moves by w (1-ᾱ_t)/√ᾱ_t ∇ log p(y|x_t), and the mean by w β_t/√α_t ∇ log p(y|x_t). With
    exact ingredients and w = 1 these are E[ε|x_t, y], E[x_0|x_t, y] and E[x_{t-1}|x_t, y], Bayes'
    rule. Algorithm 1 of the paper, for ancestral sampling, moves the mean by w Σ ∇ log p(y|x_t):
    the same to first order in β_t.

    Args:
      denoiser: the model, nothing clipped; it may be unconditional.
      log_prob: the classifier of noisy images: `class_log_prob`.
      labels: int [B], the class to guide each image to.
      scale: w: 0 is the model alone.
      interval: outside it the model is not guided.

    Raises:
      UsageError: a scale that is negative or not finite; a schedule as in `check_has_signal`.
    """
    check_denoiser(denoiser)
    check_scale(scale)
    check_has_signal(denoiser.schedule)

    def guide(
        schedule: Schedule, prediction: Prediction, x_t: chex.Array, t: chex.Array
    ) -> Prediction:
        log_probs, pullback = jax.vjp(lambda x: log_prob(schedule, x, t, labels), x_t)
        (gradient,) = pullback(jnp.ones_like(log_probs))
        shift = over(_scale_at(schedule, t, scale, interval, outside=0.0), x_t) * gradient
        noise = extract(schedule.sqrt_one_minus_alphas_bar, t, x_t)
        x_0_shift = extract(schedule.sqrt_recipm1_alphas_bar, t, x_t) * noise * shift
        return _moved(schedule, prediction, t, x_0=x_0_shift, eps=-noise * shift)

    return denoiser.then(guide)


def class_log_prob(classifier: Callable[[chex.Array, chex.Array], chex.Array]) -> LogProb:
    """Return log p(y|x_t) of a network (x_t [B, ...], time float [B]) -> logits [B, K]."""

    def log_prob(
        schedule: Schedule, x_t: chex.Array, t: chex.Array, labels: chex.Array
    ) -> chex.Array:
        log_probs = jax.nn.log_softmax(classifier(x_t, _time_at(schedule, t)))
        return jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]

    return log_prob


def check_scale(scale: chex.Array | float) -> None:
    """Refuse a guidance scale that is negative or not finite; a traced one passes.

    Raises:
      UsageError: see above.
    """
    if not isinstance(scale, jax.core.Tracer) and not np.all(
        np.isfinite(scale) & (np.asarray(scale) >= 0)
    ):
        raise UsageError(
            f"The guidance scale is {scale}: give a number that is not negative; 1 is the model "
            "unguided."
        )


def check_rescale(rescale: chex.Array | float) -> None:
    """Refuse a share of rescaling outside [0, 1]; a traced one passes.

    Raises:
      UsageError: see above.
    """
    if not isinstance(rescale, jax.core.Tracer) and not 0 <= rescale <= 1:
        raise UsageError(f"The guidance rescaling is {rescale}: give a share in [0, 1]; 0 is none.")


def check_has_signal(schedule: Schedule) -> None:
    """Refuse a chain whose first x_t holds nothing of x_0, so that no classifier can guide it.

    Raises:
      UsageError: alphas_bar reaches 0; a traced schedule is not checked.
    """
    if not isinstance(schedule.alphas_bar, jax.core.Tracer) and schedule.alphas_bar[-1] == 0:
        raise UsageError(
            "This schedule ends at alphas_bar = 0, where a classifier sees nothing of the image: "
            "choose classifier-free guidance, or a schedule that keeps some signal."
        )


def _scale_at(
    schedule: Schedule,
    t: chex.Array,
    scale: chex.Array | float,
    interval: Interval,
    *,
    outside: float,
) -> chex.Array:
    """Return w in the interval and `outside` elsewhere, [B]."""
    time = _time_at(schedule, t)
    return jnp.where((interval.low <= time) & (time <= interval.high), scale, outside)


def _time_at(schedule: Schedule, t: chex.Array) -> chex.Array:
    """Return the network's time of x_t, [B]; of a mean flow, without that of the step's end."""
    times = jnp.asarray(schedule.timesteps)
    return (times[:, 0] if times.ndim == 2 else times)[t]


def _extrapolated(weak: Prediction, strong: Prediction, scale: chex.Array) -> Prediction:
    """(1-w) weak + w strong: the formulas above, but exact at w = 0 and at w = 1.

    The variance is that of `strong`.
    """

    def mix(weak: chex.Array, strong: chex.Array) -> chex.Array:
        w = over(scale, weak)
        return (1 - w) * weak + w * strong

    return strong._replace(
        x_0=mix(weak.x_0, strong.x_0),
        eps=mix(weak.eps, strong.eps),
        mean=mix(weak.mean, strong.mean),
    )


def _rescaled(
    schedule: Schedule,
    guided: Prediction,
    conditional: Prediction,
    t: chex.Array,
    rescale: chex.Array | float,
) -> Prediction:
    """φ v σ_cond/σ_guided + (1-φ) v, σ the standard deviation over an image.

    Lin et al. 2024, eq. 15 and 16.

    v = √ᾱ_t ε - √(1-ᾱ_t) x_0 is what the models of that paper predict, and what is rescaled here
    whatever the network predicts: rescaling ε would shift x_0 far where there is much noise,
    rescaling x_0 would shift ε far where there is little.
    """
    signal = extract(schedule.sqrt_alphas_bar, t, guided.eps)
    noise = extract(schedule.sqrt_one_minus_alphas_bar, t, guided.eps)
    v, v_conditional = (
        signal * prediction.eps - noise * prediction.x_0 for prediction in (guided, conditional)
    )
    shift = rescale * (_spread_ratio(v_conditional, v) - 1) * v
    return _moved(schedule, guided, t, x_0=-noise * shift, eps=signal * shift)


def _spread_ratio(of: chex.Array, to: chex.Array) -> chex.Array:
    """Return each image's standard deviation in `of` over that in `to`, [B, 1, ..., 1].

    1 where the latter is 0.
    """
    wanted, has = (jnp.std(x, axis=tuple(range(1, x.ndim)), keepdims=True) for x in (of, to))
    return jnp.where(has > 0, wanted / jnp.where(has > 0, has, 1), 1)


def _moved(
    schedule: Schedule, prediction: Prediction, t: chex.Array, *, x_0: chex.Array, eps: chex.Array
) -> Prediction:
    """Add consistent shifts to x_0 and ε, and the one they imply to the mean.

    Ho et al. 2020, eq. 7.
    """
    mean = extract(schedule.posterior_mean_coef1, t, x_0) * x_0
    return prediction._replace(
        x_0=prediction.x_0 + x_0, eps=prediction.eps + eps, mean=prediction.mean + mean
    )
