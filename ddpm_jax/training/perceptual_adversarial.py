"""The perceptual and the adversarial term of a first stage's objective.

    p d(x, x̂) + [step ≥ start] (w λ L_G + L_D)         (Esser, Rombach and Ommer 2021, eq. 6)

added to nats per dimension. x̂ is the decoded image, in [-1, 1]; d the perceptual distance, L_G and
L_D the losses of `variational.adversarial`. Autoencoder and discriminator are one tree of
parameters, and one gradient serves both exactly: L_G has the discriminator's parameters stopped,
L_D the reconstruction. The networks are in `models`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ddpm_jax.models.discriminator import DISCRIMINATOR
from ddpm_jax.training.objective import Sums
from ddpm_jax.variational import adversarial
from ddpm_jax.variational.first_stage import Decoded, FirstStage

LAST_LAYER = ("decoder", "conv_out", "kernel")


class PerceptualAdversarial(NamedTuple):
    """Functions and weights of both terms; a weight of 0, the default, leaves a term out."""

    perceptual_weight: float = 0.0  # p, nats per dimension for a distance of 1
    # (frozen, x, x̂ [B, ...]) -> [B]
    distance: Callable[[Any, chex.Array, chex.Array], chex.Array] | None = None
    adversarial_weight: float = 0.0  # w
    # (params, x [B, ...]) -> logits [B, h, w, 1]
    discriminate: Callable[[Any, chex.Array], chex.Array] | None = None
    start_step: int = 0  # updates before the adversarial term begins
    # path of the parameter by whose gradients λ weighs L_G
    last_layer: tuple[str, ...] = LAST_LAYER


NO_TERMS = PerceptualAdversarial()


class TermsAux(NamedTuple):
    """Per-example results, leaves [B, ...]; () for a term that is left out."""

    perceptual: chex.Array | tuple = ()  # d
    discriminator: chex.Array | tuple = ()  # L_D
    generator: chex.Array | tuple = ()  # L_G
    logit_real: chex.Array | tuple = ()  # mean over the patches
    logit_fake: chex.Array | tuple = ()
    weight: chex.Array | tuple = ()  # the λ that was used
    # Gradients with respect to the last layer, [B, *its shape]: every example has the mean over
    # those it was computed with, so the mean over the batch does not depend on how it was split.
    reconstruction_gradient: chex.Array | tuple = ()
    generator_gradient: chex.Array | tuple = ()


class Reconstruction(NamedTuple):
    """A reconstruction and the two terms computed from it."""

    decoded: Decoded
    loss: chex.Array  # [B], to be added to nats per dimension
    aux: TermsAux


def reconstruct(
    terms: PerceptualAdversarial,
    first_stage: FirstStage,
    params: Any,
    frozen: Any,
    state: Any,
    *,
    x: chex.Array,
    z: chex.Array,
    dropout_keys: chex.PRNGKey | None,
) -> Reconstruction:
    """Decode latents and compare the result with the images.

    λ is one number for the whole batch over all devices, which this function does not see. So it
    uses the λ of the step before, and returns the gradients from which `next_adaptive_weight`
    computes the next one.

    Args:
      terms: both terms.
      first_stage: of the autoencoder.
      params: its parameters; with an adversarial term also the discriminator's.
      frozen: weights of the perceptual distance, () without it.
      state: what the objective remembers: `step`, and with an adversarial term
        `adaptive_weight`, λ.
      x: the images, [B, H, W, C] in [-1, 1].
      z: their latents.
      dropout_keys: of the decoder, [B].
    """
    if not terms.adversarial_weight:
        decoded = first_stage.decoded(params, z, dropout_keys)
        distance = _distance(terms, frozen, x, first_stage.image(decoded))
        return Reconstruction(decoded, terms.perceptual_weight * distance, _aux(terms, distance))

    # The same forward pass gives the image and, linear in it, the map from its gradient to that of
    # the last layer.
    decoded, to_last_layer = jax.vjp(
        lambda last: first_stage.decoded(
            _replaced(params, terms.last_layer, last), z, dropout_keys
        ),
        _at(params, terms.last_layer),
    )
    critic, stopped = params[DISCRIMINATOR], jax.lax.stop_gradient(params[DISCRIMINATOR])

    def reconstruction_loss(decoded: Decoded) -> chex.Array:
        distance = _distance(terms, frozen, x, first_stage.image(decoded))
        return (
            -first_stage.log_likelihood(decoded, x) / x[0].size + terms.perceptual_weight * distance
        )

    def generator_loss(decoded: Decoded) -> chex.Array:
        return adversarial.generator_loss(terms.discriminate(stopped, first_stage.image(decoded)))

    def by_last_layer(loss: Callable[[Decoded], chex.Array]) -> chex.Array:
        (gradient,) = to_last_layer(
            jax.grad(lambda decoded: jnp.mean(loss(decoded)))(jax.lax.stop_gradient(decoded))
        )
        return jnp.broadcast_to(gradient[None], (len(x), *gradient.shape))

    shown = first_stage.image(decoded)
    real = terms.discriminate(critic, x)
    fake = terms.discriminate(critic, jax.lax.stop_gradient(shown))
    distance = _distance(terms, frozen, x, shown)
    discriminator_term = adversarial.discriminator_loss(real, fake)
    generator_term = generator_loss(decoded)
    begun = adversarial.has_started(state.step, terms.start_step)
    loss = terms.perceptual_weight * distance
    loss = loss + begun * (
        terms.adversarial_weight * state.adaptive_weight * generator_term + discriminator_term
    )
    aux = _aux(terms, distance)._replace(
        discriminator=discriminator_term,
        generator=generator_term,
        logit_real=jnp.mean(real, axis=(1, 2, 3)),
        logit_fake=jnp.mean(fake, axis=(1, 2, 3)),
        weight=jnp.broadcast_to(state.adaptive_weight, distance.shape),
        reconstruction_gradient=by_last_layer(reconstruction_loss),
        generator_gradient=by_last_layer(generator_loss),
    )
    return Reconstruction(decoded, loss, aux)


def initial_adaptive_weight() -> chex.Array:
    """Return λ before the first measurement: 0, which leaves L_G out of step 0."""
    return jnp.zeros(())


def next_adaptive_weight(aux: TermsAux) -> chex.Array:
    """Return λ from the results of the whole batch."""
    gradients = (
        jnp.mean(gradient, axis=0)
        for gradient in (aux.reconstruction_gradient, aux.generator_gradient)
    )
    return adversarial.adaptive_weight(*gradients)


def terms_metrics(aux: TermsAux) -> Sums:
    """Return the means of the terms in use, by their names in the records."""
    named = {
        "perceptual": aux.perceptual,
        "discriminator_loss": aux.discriminator,
        "generator_loss": aux.generator,
        "logit_real": aux.logit_real,
        "logit_fake": aux.logit_fake,
        "adaptive_weight": aux.weight,
    }
    return {
        name: (jnp.sum(x), jnp.float32(x.size))
        for name, x in named.items()
        if not isinstance(x, tuple)
    }


def _distance(
    terms: PerceptualAdversarial, frozen: Any, x: chex.Array, shown: chex.Array
) -> chex.Array:
    if not terms.perceptual_weight:
        return jnp.zeros(len(x))
    return terms.distance(frozen, x, shown)


def _aux(terms: PerceptualAdversarial, distance: chex.Array) -> TermsAux:
    return TermsAux(perceptual=distance if terms.perceptual_weight else ())


def _at(params: Any, path: tuple[str, ...]) -> chex.Array:
    for name in path:
        params = params[name]
    return params


def _replaced(params: Any, path: tuple[str, ...], leaf: chex.Array) -> Any:
    name, *rest = path
    return {**params, name: _replaced(params[name], tuple(rest), leaf) if rest else leaf}
