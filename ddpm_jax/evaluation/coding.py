"""Images -> latents -> images by a first stage, in batches of one size over the local devices.

The meaning of the latents is in `variational.first_stage`; the file that stores them is in
`latent_file`.
"""

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data.transforms import to_model_range, to_uint8
from ddpm_jax.distributed import pmap
from ddpm_jax.errors import FailureError
from ddpm_jax.randomness import ENCODING, base_key, fold_in_each
from ddpm_jax.variational.first_stage import FirstStage


class Latents(NamedTuple):
    """The latents of N images, on the host."""

    latents: np.ndarray  # float32 [N, h, w, c], what the decoder takes
    # float32 [N, h, w, c], of the posterior that `latents` are drawn from; else None
    mean: np.ndarray | None = None
    log_variance: np.ndarray | None = None  # float32 [N, h, w, c], of a VAE's posterior
    codes: np.ndarray | None = None  # int32 [N, h, w], of a VQ-VAE


def encode(
    first_stage: FirstStage,
    params: Any,
    images: Iterable[np.ndarray],
    *,
    batch_size: int,
    seed: int | None = None,
) -> Iterator[Latents]:
    """Yield the `Latents` of images, a batch at a time.

    Args:
      first_stage: see the class.
      params: its parameters.
      images: each uint8 [H, W, C], all of one shape; they are read as they are needed.
      batch_size: images at a time, rounded up to a multiple of the local devices; the last batch is
        padded.
      seed: for draws from the posterior of a VAE, where that of image i is a function of the seed
        and i; None for its mean.

    Raises:
      FailureError: a latent that is not finite.
    """

    def of_device(shared: Any, examples: Any) -> tuple[Latents, jax.Array]:
        params, key = shared
        images, index = examples
        keys = None if seed is None else fold_in_each(key, index)
        latent = first_stage.latent(params, to_model_range(images), keys)
        posterior = latent.encoded if first_stage.kind == "vae" else None
        found = Latents(
            latent.z,
            posterior.mean if posterior is not None and seed is not None else None,
            posterior.log_variance if posterior is not None else None,
            None if latent.codes is None else latent.codes.index,
        )
        return found, _finite(latent.z)

    key = jax.random.fold_in(base_key(seed or 0), ENCODING)
    yield from _map(of_device, (params, key), images, batch_size)


def decode(
    first_stage: FirstStage, params: Any, latents: Iterable[np.ndarray], *, batch_size: int
) -> Iterator[np.ndarray]:
    """Yield the images of latents float32 [h, w, c] as uint8 [n, H, W, C], a batch at a time.

    For a VQ-VAE every vector is first replaced by the nearest code. Other arguments and errors are
    those of `encode`.
    """

    def of_device(params: Any, examples: Any) -> tuple[jax.Array, jax.Array]:
        z, _ = examples
        image = first_stage.image(first_stage.decoded(params, first_stage.nearest_codes(params, z)))
        return to_uint8(image), _finite(image)

    yield from _map(of_device, params, latents, batch_size)


def _map(
    function: Callable[[Any, Any], tuple[Any, jax.Array]],
    shared: Any,
    rows: Iterable[np.ndarray],
    batch_size: int,
) -> Iterator[Any]:
    """Yield the results for rows on the host.

    `function` is called as function(shared, (rows, their numbers)) with batches of one size; it
    returns the results, and which of them are finite, bool [B].
    """
    devices = jax.local_device_count()
    size = -(-batch_size // devices) * devices
    mapped = pmap.map_examples(function)
    for start, batch in _batched(rows, size):
        filled = np.stack(batch + batch[-1:] * (size - len(batch)))
        index = np.arange(start, start + size, dtype=np.int32)
        found, finite = pmap.unshard(mapped(shared, pmap.shard((filled, index))))
        if not finite.all():
            raise FailureError(
                f"The network's output for number {start + np.argmin(finite)} is not finite: use "
                "an earlier checkpoint if the weights have diverged."
            )
        yield jax.tree.map(operator.itemgetter(slice(len(batch))), found)


def _batched(rows: Iterable[np.ndarray], size: int) -> Iterator[tuple[int, list[np.ndarray]]]:
    start, batch = 0, []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield start, batch
            start, batch = start + size, []
    if batch:
        yield start, batch


def _finite(x: jax.Array) -> jax.Array:
    return jnp.isfinite(x).all(axis=(1, 2, 3))
