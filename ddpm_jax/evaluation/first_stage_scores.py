"""Scores of a first stage on images: bounds on their likelihood, errors, codes used.

**Images.** A decoder with a distribution over the 256 levels gives probabilities. One with a
density takes images dequantised as in `dequantization`, u uniform over each bin of width 1/127.5,
so that by Jensen's inequality

    -log P(x) <= E_u[-log p(x + u)] + D log 127.5

and its numbers are bits of 8-bit images as well. Those of a Bernoulli decoder are bits of
black-and-white images.

**Bounds.** With K draws z_k from the posterior (and u_k), `elbo` is the mean of the K bounds, its
KL in closed form; `importance_weighted` the bound of Burda et al. 2016 with K samples, where p(x,
u_k | z_k) p(z_k) / q(z_k|x) are the weights: never below -log P on average, and tighter with larger
K. A VQ-VAE has a deterministic z with a uniform prior: log K for each code of a codebook of K, and
no second bound.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data.sources import Source
from ddpm_jax.data.transforms import to_model_range
from ddpm_jax.distributed import pmap
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.evaluation.batches import image_batches
from ddpm_jax.evaluation.dequantization import dequantize
from ddpm_jax.randomness import (
    DEQUANTIZATION,
    FIRST_STAGE,
    LATENT,
    base_key,
    fold_in_each,
    row_keys,
)
from ddpm_jax.variational import evidence, quantization
from ddpm_jax.variational.first_stage import HALF_RANGE, FirstStage
from ddpm_jax.variational.posterior import log_density, prior_log_density


class Scores(NamedTuple):
    """The scores of N images, on the host, in the order of the data."""

    reconstruction: np.ndarray  # float64 [N, K draws]: -log P(x|z), bits/dim
    kl: np.ndarray  # float64 [N], bits/dim
    importance_weighted: np.ndarray  # float64 [N]: the bound of K samples, bits/dim
    # float64 [N], of the image that the posterior's mean is decoded to, in squared levels of 0..255
    mse: np.ndarray
    kl_per_channel: np.ndarray  # float64 [N, c], nats of all positions of a latent channel
    # int64 [K codes], how often each was chosen, of all images; [0] without a codebook
    codes: np.ndarray

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.kl)

    @property
    def elbo(self) -> np.ndarray:
        """The bound of each draw, bits/dim, [N, K draws]."""
        return self.reconstruction + self.kl[:, None]


class BatchScores(NamedTuple):
    """`Scores` of B images with their codes still apart, float32 on the device."""

    reconstruction: chex.Array  # [B, K]
    kl: chex.Array  # [B]
    importance_weighted: chex.Array  # [B]
    mse: chex.Array  # [B]
    kl_per_channel: chex.Array  # [B, c]
    index: chex.Array  # int32 [B, h w], or [B, 0]


def check_has_elbo(first_stage: FirstStage) -> None:
    """Refuse an autoencoder whose latents have no distribution.

    Raises:
      UsageError: a plain autoencoder.
    """
    if first_stage.kind == "ae":
        raise UsageError(
            "A plain autoencoder has no prior over its latents, so no bound: ask for "
            "reconstruction."
        )


def score(
    first_stage: FirstStage, params: Any, images: chex.Array, keys: chex.PRNGKey, num_draws: int
) -> BatchScores:
    """Score images uint8 [B, H, W, C]; the draws of an image follow from its key in keys [B]."""
    x, num_dims = to_model_range(images), math.prod(images.shape[1:])
    at_mean = first_stage.latent(params, x)
    kl = first_stage.kl(at_mean)
    mse = first_stage.squared_error(first_stage.decoded(params, at_mean.z), x)
    dequantized = not first_stage.family.discrete and first_stage.family.scaled

    def one_draw(draw):
        of_draw = row_keys(keys, draw)
        latent = first_stage.resample(at_mean, row_keys(of_draw, LATENT))
        seen, offset = x, 0.0
        if dequantized:
            u = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:]))(
                row_keys(of_draw, DEQUANTIZATION)
            )
            seen, offset = dequantize(images, u), num_dims * math.log(HALF_RANGE)
        log_p = first_stage.log_likelihood(first_stage.decoded(params, latent.z), seen) - offset
        if first_stage.kind != "vae":
            return log_p, log_p - jnp.sum(kl, axis=(1, 2, 3))
        ratio = prior_log_density(latent.z) - log_density(latent.encoded, latent.z)
        return log_p, log_p + jnp.sum(ratio, axis=(1, 2, 3))

    log_p, log_weights = jax.lax.map(one_draw, jnp.arange(num_draws))
    index = (
        jnp.zeros((len(x), 0), jnp.int32)
        if at_mean.codes is None
        else at_mean.codes.index.reshape(len(x), -1)
    )
    return BatchScores(
        evidence.bits_per_dim(-log_p.T, num_dims),
        evidence.bits_per_dim(jnp.sum(kl, axis=(1, 2, 3)), num_dims),
        evidence.bits_per_dim(-evidence.importance_weighted(log_weights), num_dims),
        mse,
        jnp.sum(kl, axis=(1, 2)),
        index,
    )


def no_scores(num_draws: int, num_channels: int, num_codes: int) -> Scores:
    """Return the `Scores` of no images."""
    shapes = ((0, num_draws), (0,), (0,), (0,), (0, num_channels))
    return Scores(*(np.zeros(shape) for shape in shapes), np.zeros(num_codes, np.int64))


def merge(first: Scores, second: Scores) -> Scores:
    """Return the scores of both sets of images, in this order."""
    rows = (np.concatenate(pair) for pair in zip(first[:-1], second[:-1], strict=True))
    return Scores(*rows, first.codes + second.codes)


def stream_scores(
    first_stage: FirstStage,
    params: Any,
    source: Source,
    *,
    seed: int,
    num_images: int,
    batch_size: int,
    num_draws: int = 1,
    done: int = 0,
    first: int = 0,
) -> Iterator[Scores]:
    """Yield the `Scores` of images done..num_images-1, a batch at a time.

    The other arguments are those of `image_batches`.

    Raises:
      FailureError: a score that is not finite.
    """
    key = jax.random.fold_in(base_key(seed), FIRST_STAGE)

    def of_device(shared, examples):
        params, key = shared
        images, index = examples
        return score(first_stage, params, images, fold_in_each(key, index), num_draws)

    mapped: Callable[..., Any] = pmap.map_examples(of_device)
    for batch in image_batches(
        source, num_images=num_images, batch_size=batch_size, done=done, first=first
    ):
        examples = pmap.shard((batch.images, np.asarray(batch.index, np.int32)))
        found = BatchScores(
            *(part[batch.wanted] for part in pmap.unshard(mapped((params, key), examples)))
        )
        _check_finite(found, batch.index[batch.wanted])
        *rows, index = found
        counts = np.asarray(quantization.usage(index, first_stage.num_codes), np.int64)
        yield Scores(*(np.asarray(row, np.float64) for row in rows), counts)


def _check_finite(found: BatchScores, index: np.ndarray) -> None:
    finite = (
        np.isfinite(found.importance_weighted)
        & np.isfinite(found.mse)
        & np.isfinite(found.reconstruction).all(1)
    )
    if not finite.all():
        raise FailureError(
            f"The bound of image {index[np.argmin(finite)]} is not a finite number: use an earlier "
            "checkpoint if the weights have diverged."
        )
