"""Bits/dim of images by the ODE: their means and errors, and the stream of batches of a split."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import chex
import numpy as np

from ddpm_jax.data.sources import Source
from ddpm_jax.evaluation.batches import ReadBatch, image_batches, labels_of
from ddpm_jax.randomness import base_key


class Bits(NamedTuple):
    """Bits/dim of N images on the host, from draws of dequantisation noise and probes."""

    draws: np.ndarray  # float32 [N, draws]: each estimates an upper bound of -log2 P / D
    num_evaluations: np.ndarray  # int32 [N, draws], of the velocity, each with all probes

    @property
    def num_images(self) -> int:
        """Return N."""
        return len(self.draws)

    @property
    def bits_per_dim(self) -> np.ndarray:
        """Return the mean over the draws, float32 [N]."""
        return self.draws.mean(axis=1)

    @property
    def standard_error(self) -> np.ndarray:
        """Return the standard error of that mean, float32 [N]; NaN for a single draw."""
        num_draws = self.draws.shape[1]
        if num_draws == 1:
            return np.full(len(self.draws), np.nan, np.float32)
        return self.draws.std(axis=1, ddof=1) / np.float32(math.sqrt(num_draws))


class Evaluate(Protocol):
    """(params, key, images uint8 [B, H, W, C], index int [B], labels) -> `Bits`."""

    def __call__(
        self,
        params: Any,
        key: chex.PRNGKey,
        images: np.ndarray,
        index: np.ndarray,
        labels: np.ndarray | None = None,
    ) -> Bits: ...


def no_bits(num_draws: int) -> Bits:
    """Return the `Bits` of no images."""
    return Bits(np.zeros((0, num_draws), np.float32), np.zeros((0, num_draws), np.int32))


def merge(first: Bits, second: Bits) -> Bits:
    """Return the bits of both sets of images, in this order."""
    return Bits(*(np.concatenate(pair) for pair in zip(first, second, strict=True)))


def stream_bits(
    evaluate: Evaluate,
    params: Any,
    source: Source,
    *,
    seed: int,
    num_images: int,
    batch_size: int,
    done: int = 0,
    first: int = 0,
    read: ReadBatch = labels_of,
) -> Iterator[Bits]:
    """Yield the `Bits` of images done..num_images-1, a batch at a time.

    `evaluate` is from `likelihood_ode.make_bits_per_dim`, `params` are its parameters, `seed` is
    that of dequantisation and probes, `read` gives what `make_condition` is given of a batch; the
    other arguments, and the errors, are those of `image_batches`.
    """
    key = base_key(seed)
    batches = image_batches(
        source, num_images=num_images, batch_size=batch_size, done=done, first=first
    )
    for batch in batches:
        found = evaluate(params, key, batch.images, batch.index, read(batch))
        yield Bits(*(part[batch.wanted] for part in found))
