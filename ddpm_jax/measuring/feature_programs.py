"""A network's features of images, in batches of one size over the local devices."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import numpy as np

from ddpm_jax.distributed import pmap
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.evaluation.features import Extracted

# (parameters, float32 [B, H, W, C]) -> (features [B, D], logits [B, K] or None); traced
Apply = Callable[[Any, jax.Array], tuple[jax.Array, jax.Array | None]]
Prepare = Callable[[np.ndarray], np.ndarray]  # on the host; the result has the batch's axis too


def batched(
    apply: Apply, params: Any, prepare: Prepare, *, batch_size: int
) -> Callable[[np.ndarray], Extracted]:
    """Return the `extract` of a `FeatureNetwork`.

    One program is compiled for the first batch: the last one is filled up with its last image.
    While the devices compute a batch, the host prepares the next.

    Args:
      apply: the network; it maps each image by itself.
      params: its parameters, which lie on every local device.
      prepare: what the network is given, of uint8 [B, H, W, C].
      batch_size: images at a time, rounded up to a multiple of the local devices.

    Raises:
      UsageError: batch_size below 1.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}: choose at least 1.")
    devices = jax.local_device_count()
    size = -(-batch_size // devices) * devices
    mapped, shared = pmap.map_examples(apply), pmap.replicate(params)

    def extract(images: np.ndarray) -> Extracted:
        chex.assert_type(images, np.uint8)
        chex.assert_rank(images, 4)
        pending, parts = None, []
        for start in range(0, len(images), size):
            rows = np.minimum(np.arange(start, start + size), len(images) - 1)
            running = mapped(shared, pmap.shard(prepare(images[rows])))
            if pending is not None:
                parts.append(pmap.unshard(pending))
            pending = running
        parts.append(pmap.unshard(pending))
        features, logits = zip(*parts, strict=True)
        found = Extracted(
            _joined(features, len(images)),
            None if logits[0] is None else _joined(logits, len(images)),
        )
        if not np.isfinite(found.features).all():
            raise FailureError(
                "The network's features of an image are not finite: use another file of weights."
            )
        return found

    return extract


def _joined(parts: tuple[np.ndarray, ...], count: int) -> np.ndarray:
    return np.concatenate(parts)[:count].astype(np.float32)
