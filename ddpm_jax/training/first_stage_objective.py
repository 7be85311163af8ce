"""The objective of a first stage: reconstruction, and the terms of its kind.

The network is `models.autoencoder`.

    ae    -log p(x|z)
    vae   -log p(x|z) + w KL(q(z|x) || N(0, I))               (Kingma and Welling 2014)
    vq    -log p(x|z) + |sg[z_e] - e|² + b |z_e - sg[e]|²     (van den Oord et al. 2017)

all divided by the number of dimensions of an image: nats per dimension. A perceptual and an
adversarial term may be added (`perceptual_adversarial`).
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ddpm_jax.data.transforms import random_flip, to_model_range
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.models.discriminator import without_discriminator
from ddpm_jax.randomness import example_keys
from ddpm_jax.training.objective import Objective, Sums
from ddpm_jax.training.perceptual_adversarial import (
    NO_TERMS,
    PerceptualAdversarial,
    TermsAux,
    initial_adaptive_weight,
    next_adaptive_weight,
    reconstruct,
    terms_metrics,
)
from ddpm_jax.variational import evidence, quantization
from ddpm_jax.variational.first_stage import KINDS, FirstStage, Latent
from ddpm_jax.variational.quantization import Dictionary

CODEBOOKS = {
    "averages": "exponential moving averages of the vectors",
    "gradient": "by the second term of the loss",
}


class FirstStageOptions(NamedTuple):
    """Weights of the terms, and how the codebook is learned."""

    beta: float = 1.0  # of the KL
    kl_warmup_steps: int = 0  # over which its weight rises to beta
    free_nats: float = 0.0  # of the KL of each latent channel
    commitment: float = 0.25  # b
    codebook: str = "averages"  # a key of CODEBOOKS
    codebook_decay: float = 0.99  # of the averages
    # vectors per update below which a code is given a new place; 0 for never
    restart_below: float = 0.0


class FirstStageState(NamedTuple):
    """What the objective remembers from step to step."""

    step: chex.Array  # int32 scalar, updates done
    dictionary: Dictionary | tuple = ()


class AdversarialState(NamedTuple):
    """A `FirstStageState` with the last weight of the adversarial term.

    It is a class of its own because a checkpoint stores every field, and checkpoints of first
    stages without this term lack this one.
    """

    step: chex.Array
    dictionary: Dictionary | tuple
    adaptive_weight: chex.Array  # λ, scalar


class FirstStageAux(NamedTuple):
    """Per-example results, leaves [B, ...]."""

    nll: chex.Array  # -log p(x|z), in nats per dimension of the image
    kl: chex.Array  # in nats of the whole image
    bits: chex.Array  # the sum of both, in bits per dimension
    mse: chex.Array  # of the decoded image, in squared levels of 0..255
    vectors: chex.Array | tuple = ()  # z_e [B, h, w, c]
    index: chex.Array | tuple = ()  # of its codes, [B, h, w]
    order: chex.Array | tuple = ()  # uniform draws, [B, h, w]: which vectors replace dead codes
    terms: TermsAux = TermsAux()


def first_stage_objective(
    first_stage: FirstStage,
    options: FirstStageOptions,
    *,
    flip: bool,
    terms: PerceptualAdversarial = NO_TERMS,
) -> Objective:
    """Return the objective over batches {"image": uint8 [B, H, W, C]}.

    Metrics: `nll` in nats per dimension of the image, `mse` in squared levels of 0..255; for a VAE
      `kl` in nats per image; `bits_per_dim` where it is a code length; for a VQ-VAE the
      `perplexity` of the batch's codes; and those of `perceptual_adversarial.terms_metrics`. With
      an adversarial term the parameters have a subtree `discriminator`.

    Raises:
      UsageError: an option out of its range.
    """
    kind = first_stage.kind
    _check(kind, options)
    averages = kind == "vq" and options.codebook == "averages"

    def loss_fn(params, frozen, state, batch, key, index):
        x = to_model_range(batch["image"])
        if flip:
            x = random_flip(x, example_keys(key, "flip", index))
        noise_keys, dropout_keys = (example_keys(key, name, index) for name in ("eps", "dropout"))
        latent = first_stage.latent(params, x, noise_keys, dropout_keys)
        decoded, terms_loss, terms_aux = reconstruct(
            terms,
            first_stage,
            params,
            frozen,
            state,
            x=x,
            z=latent.z,
            dropout_keys=dropout_keys,
        )
        nll, kl = -first_stage.log_likelihood(decoded, x), first_stage.kl(latent)
        mse = first_stage.squared_error(decoded, x)
        num_dims, total = x[0].size, jnp.sum(kl, axis=(1, 2, 3))
        aux = FirstStageAux(
            nll / num_dims,
            total,
            evidence.bits_per_dim(nll + total, num_dims),
            mse,
            terms=terms_aux,
        )
        loss = nll
        if kind == "vae":
            weight = evidence.kl_weight(
                state.step, beta=options.beta, warmup_steps=options.kl_warmup_steps
            )
            loss = loss + weight * evidence.free_nats(kl, options.free_nats)
        if kind == "vq":
            loss = loss + _codebook_terms(latent, options)
            draws = jax.vmap(lambda k: jax.random.uniform(k, latent.z.shape[1:3]))(noise_keys)
            aux = aux._replace(vectors=latent.encoded, index=latent.codes.index, order=draws)
        return loss / num_dims + terms_loss, jax.lax.stop_gradient(aux)

    def init(params: Any) -> FirstStageState | AdversarialState:
        dictionary = quantization.make_dictionary(params["codebook"]) if averages else ()
        state = FirstStageState(jnp.zeros((), jnp.int32), dictionary)
        if not terms.adversarial_weight:
            return state
        return AdversarialState(*state, initial_adaptive_weight())

    def update(
        state: FirstStageState | AdversarialState, aux: FirstStageAux
    ) -> FirstStageState | AdversarialState:
        dictionary = state.dictionary
        if averages:
            vectors, order = aux.vectors.reshape(-1, aux.vectors.shape[-1]), aux.order.reshape(-1)
            dictionary = quantization.update_dictionary(
                dictionary, vectors, aux.index.reshape(-1), decay=options.codebook_decay
            )
            if options.restart_below:
                dictionary, _ = quantization.restart_dead(
                    dictionary, vectors, order, least=options.restart_below
                )
        state = state._replace(step=state.step + 1, dictionary=dictionary)
        if not terms.adversarial_weight:
            return state
        return state._replace(adaptive_weight=next_adaptive_weight(aux.terms))

    def metrics(aux: FirstStageAux) -> Sums:
        means = {"nll": aux.nll, "mse": aux.mse}
        if kind == "vae":
            means["kl"] = aux.kl
        if kind != "ae" and first_stage.family.discrete:
            means["bits_per_dim"] = aux.bits
        sums = {name: (jnp.sum(values), jnp.float32(values.size)) for name, values in means.items()}
        if kind == "vq":
            counts = quantization.usage(aux.index, first_stage.num_codes)
            sums["perplexity"] = (quantization.perplexity(counts), jnp.float32(1))
        return sums | terms_metrics(aux.terms)

    def project_params(params: Any, state: FirstStageState | AdversarialState) -> Any:
        if not averages:
            return params
        return {**params, "codebook": quantization.dictionary_codebook(state.dictionary)}

    return Objective(
        init=init,
        loss=loss_fn,
        update=update,
        metrics=metrics,
        project_params=project_params,
        averaged=without_discriminator if terms.adversarial_weight else lambda params: params,
    )


def _codebook_terms(latent: Latent, options: FirstStageOptions) -> chex.Array:
    """Return the losses that tie encoder and codebook together: [B].

    With moving averages only the encoder has one; otherwise the codebook too.
    """
    terms = options.commitment * quantization.commitment_loss(latent.encoded, latent.codes.codes)
    if options.codebook == "gradient":
        terms = terms + quantization.codebook_loss(latent.encoded, latent.codes.codes)
    return jnp.sum(terms, axis=(1, 2, 3))


def _check(kind: str, options: FirstStageOptions) -> None:
    choose("kind of first stage", kind, KINDS)
    choose("way to learn a codebook", options.codebook, CODEBOOKS)
    for name in ("beta", "kl_warmup_steps", "free_nats", "commitment", "restart_below"):
        if getattr(options, name) < 0:
            raise UsageError(f"{name} is {getattr(options, name)}: it must be at least 0.")
    if not 0 <= options.codebook_decay < 1:
        raise UsageError(f"codebook_decay is {options.codebook_decay}: it must be in [0, 1).")
