"""What makes reconstructions sharp: the perceptual and the adversarial term of a first stage's
objective.

    p d(x, x̂) + [step ≥ start] (w λ L_G + L_D)                               (Esser, Rombach and Ommer 2021, eq. 6)

beside nats per dimension. x̂ is the image that is shown, on [-1, 1]; d the perceptual distance, L_G
and L_D the losses of `variational.adversarial`. Autoencoder and discriminator are one tree of
parameters, and one gradient serves both exactly: L_G has the discriminator's parameters stopped,
L_D the reconstruction. The networks are in `models`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ddpm_jax.training.objective import Sums
from ddpm_jax.variational import adversarial
from ddpm_jax.variational.first_stage import Decoded, FirstStage

DISCRIMINATOR = "discriminator"  # what its parameters are called, beside the autoencoder's
LAST_LAYER = ("decoder", "conv_out", "kernel")


class Sharpness(NamedTuple):
    """How both terms are made and weighed; by default there are none."""

    perceptual_weight: float = 0.0  # p, nats per dimension for a distance of 1
    # (frozen, x, x̂ [B, ...]) -> [B]
    distance: Callable[[Any, chex.Array, chex.Array], chex.Array] | None = None
    adversarial_weight: float = 0.0  # w
    # (params, x [B, ...]) -> logits [B, h, w, 1]
    discriminate: Callable[[Any, chex.Array], chex.Array] | None = None
    start_step: int = 0  # updates before the adversarial term begins
    # path of the parameter by whose gradients λ weighs L_G
    last_layer: tuple[str, ...] = LAST_LAYER

    @property
    def has_terms(self) -> bool:
        """Whether there is one."""
        return bool(self.perceptual_weight or self.adversarial_weight)


PLAIN = Sharpness()


class SharpnessAux(NamedTuple):
    """Per-example results, leaves [B, ...]; () of a term that is not there."""

    perceptual: chex.Array | tuple = ()  # d
    discriminator: chex.Array | tuple = ()  # L_D
    generator: chex.Array | tuple = ()  # L_G
    logit_real: chex.Array | tuple = ()  # mean over the patches
    logit_fake: chex.Array | tuple = ()
    weight: chex.Array | tuple = ()  # the λ that was used
    # Gradients by the last layer, [B, *its shape]: every example has the mean over those it was
    # computed with, so that the mean over the batch is that of the batch, however it was split.
    of_reconstruction: chex.Array | tuple = ()
    of_generator: chex.Array | tuple = ()


class Sharpened(NamedTuple):
    """A reconstruction, and what the two terms say of it."""

    decoded: Decoded
    loss: chex.Array  # [B], to be added to nats per dimension
    aux: SharpnessAux


def sharpen(
    sharpness: Sharpness,
    first_stage: FirstStage,
    params: Any,
    state: Any,
    *,
    x: chex.Array,
    z: chex.Array,
    dropout_keys: chex.PRNGKey | None,
) -> Sharpened:
    """Decodes latents and holds the result against the images.

    λ is one number of the whole batch, over all devices, which this function does not see. So it
    uses the λ of the step before, and returns what the next one is made of (`next_weight`).

    Args:
      sharpness: which terms there are.
      first_stage: of the autoencoder.
      params: its parameters, with an adversarial term the discriminator's beside them.
      state: what the objective remembers: `step`, with a perceptual term `frozen`, with an
        adversarial one `adaptive_weight`, λ.
      x: the images, [B, H, W, C] in [-1, 1].
      z: their latents.
      dropout_keys: of the decoder, [B].
    """
    if not sharpness.adversarial_weight:
        decoded = first_stage.decoded(params, z, dropout_keys)
        distance = _distance(sharpness, state, x, first_stage.image(decoded))
        return Sharpened(
            decoded, sharpness.perceptual_weight * distance, _aux_of(sharpness, distance)
        )

    # The same forward pass gives the image and, linear in it, the map from its gradient to that of
    # the last layer.
    decoded, to_last_layer = jax.vjp(
        lambda last: first_stage.decoded(
            _replaced(params, sharpness.last_layer, last), z, dropout_keys
        ),
        _at(params, sharpness.last_layer),
    )
    critic, stopped = params[DISCRIMINATOR], jax.lax.stop_gradient(params[DISCRIMINATOR])

    def reconstruction_loss(decoded: Decoded) -> chex.Array:
        distance = _distance(sharpness, state, x, first_stage.image(decoded))
        return (
            -first_stage.log_likelihood(decoded, x) / x[0].size
            + sharpness.perceptual_weight * distance
        )

    def generator_loss(decoded: Decoded) -> chex.Array:
        return adversarial.generator_loss(
            sharpness.discriminate(stopped, first_stage.image(decoded))
        )

    def by_last_layer(loss: Callable[[Decoded], chex.Array]) -> chex.Array:
        (gradient,) = to_last_layer(
            jax.grad(lambda decoded: jnp.mean(loss(decoded)))(jax.lax.stop_gradient(decoded))
        )
        return jnp.broadcast_to(gradient[None], (len(x), *gradient.shape))

    shown = first_stage.image(decoded)
    real = sharpness.discriminate(critic, x)
    fake = sharpness.discriminate(critic, jax.lax.stop_gradient(shown))
    distance = _distance(sharpness, state, x, shown)
    of_critic, of_generator = adversarial.discriminator_loss(real, fake), generator_loss(decoded)
    begun = adversarial.has_started(state.step, sharpness.start_step)
    loss = sharpness.perceptual_weight * distance
    loss = loss + begun * (
        sharpness.adversarial_weight * state.adaptive_weight * of_generator + of_critic
    )
    aux = _aux_of(sharpness, distance)._replace(
        discriminator=of_critic,
        generator=of_generator,
        logit_real=jnp.mean(real, axis=(1, 2, 3)),
        logit_fake=jnp.mean(fake, axis=(1, 2, 3)),
        weight=jnp.broadcast_to(state.adaptive_weight, distance.shape),
        of_reconstruction=by_last_layer(reconstruction_loss),
        of_generator=by_last_layer(generator_loss),
    )
    return Sharpened(decoded, loss, aux)


def first_weight(sharpness: Sharpness) -> chex.Array | tuple:
    """λ before it was ever measured: 0, so that a start at step 0 leaves L_G out of that step."""
    return jnp.zeros(()) if sharpness.adversarial_weight else ()


def next_weight(sharpness: Sharpness, aux: SharpnessAux) -> chex.Array | tuple:
    """λ from the results of the whole batch."""
    if not sharpness.adversarial_weight:
        return ()
    gradients = (
        jnp.mean(gradient, axis=0) for gradient in (aux.of_reconstruction, aux.of_generator)
    )
    return adversarial.adaptive_weight(*gradients)


def sharpness_metrics(aux: SharpnessAux) -> Sums:
    """The means of what there is, by the names that they have in the records."""
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


def without_discriminator(params: Any) -> Any:
    """The autoencoder's parameters: those that averages are kept of, and that are used after
    training."""
    return {name: leaves for name, leaves in params.items() if name != DISCRIMINATOR}


def _distance(sharpness: Sharpness, state: Any, x: chex.Array, shown: chex.Array) -> chex.Array:
    return (
        sharpness.distance(state.frozen, x, shown)
        if sharpness.perceptual_weight
        else jnp.zeros(len(x))
    )


def _aux_of(sharpness: Sharpness, distance: chex.Array) -> SharpnessAux:
    return SharpnessAux(perceptual=distance if sharpness.perceptual_weight else ())


def _at(params: Any, path: tuple[str, ...]) -> chex.Array:
    for name in path:
        params = params[name]
    return params


def _replaced(params: Any, path: tuple[str, ...], leaf: chex.Array) -> Any:
    name, *rest = path
    return {**params, name: _replaced(params[name], tuple(rest), leaf) if rest else leaf}
