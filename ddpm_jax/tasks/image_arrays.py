"""Images as arrays, and whole chains of them."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import memory
from ddpm_jax.errors import UsageError
from ddpm_jax.generation.generating import Generate, Generated, generate_batches
from ddpm_jax.limits import MAX_BATCH, MAX_IMAGES, MAX_SEED
from ddpm_jax.randomness import check_settings
from ddpm_jax.settings import Settings, setting
from ddpm_jax.tasks.image_generator import ImageGenerator


class Trajectory(NamedTuple):
    """Images, and all N+1 moments of their chains in the sampler's own numbers."""

    images: np.ndarray  # uint8 [n, H, W, C]
    x_t: np.ndarray  # float32 [N+1, n, h, w, c], noise first; the last is the sample
    x_0: np.ndarray  # float32 [N+1, n, h, w, c]: predicted from the x_t of the same moment


def make_images(
    generator: ImageGenerator,
    count: int,
    *,
    seed: int,
    batch_size: int,
    noise: Any = None,
    step_noise: Any = None,
) -> np.ndarray:
    """Make images 0..count-1: uint8 [count, H, W, C].

    Args:
      generator: how.
      count: at least 1.
      seed: of the noise.
      batch_size: images at a time; the last digits may depend on it.
      noise: float [count, h, w, c] in place of the seed's x_T.
      step_noise: float [N, count, h, w, c], or [N, draws, count, h, w, c], in place of the seed's
        noise of the N rows of the sampler.

    Raises:
      UsageError: a count or batch below 1, or noise of another shape.
      FailureError: an image that is not finite.
    """
    given = _Given(n=count, seed=seed, batch_size=batch_size)
    made = _make(generator, generator.generate, given, noise, step_noise)
    return np.concatenate([batch.images for batch in made])


def make_trajectory(
    generator: ImageGenerator,
    count: int,
    *,
    seed: int,
    batch_size: int,
    noise: Any = None,
    step_noise: Any = None,
) -> Trajectory:
    """Make images 0..count-1 and keep their whole chains; arguments as of `make_images`."""
    given = _Given(n=count, seed=seed, batch_size=batch_size)
    made = _make(generator, generator.generate_chains, given, noise, step_noise)
    x, x_t, x_0 = zip(*made, strict=True)
    inputs = generator.inputs(np.arange(count))
    images = np.asarray(generator.decode_all(generator.params, np.concatenate(x), inputs))
    return Trajectory(images, np.concatenate(x_t, axis=1), np.concatenate(x_0, axis=1))


def _make(
    generator: ImageGenerator, generate: Generate, given: "_Given", noise: Any, step_noise: Any
) -> list[Generated]:
    """Return what a program of the generator made, batch by batch."""
    check_settings()
    arrays = _noise(generator, given.n, noise, step_noise)
    batch_size = min(given.batch_size, given.n)
    with memory.explained(f"making {batch_size} images at a time", "lower batch_size"):
        batches = generate_batches(
            generate,
            generator.params,
            seed=given.seed,
            indices=range(given.n),
            batch_size=batch_size,
            make_inputs=lambda indices: generator.inputs(
                indices, **{name: array[indices] for name, array in arrays.items()}
            ),
        )
        return [made for _, made in batches]


@dataclasses.dataclass(frozen=True)
class _Given(Settings):
    """Which images, and how many of them at a time."""

    n: int = setting(1, "How many.", lower=1, upper=MAX_IMAGES)
    seed: int = setting(0, "Image i is a function of the seed and i.", lower=0, upper=MAX_SEED)
    batch_size: int = setting(1, "Images made at a time.", lower=1, upper=MAX_BATCH)


def _noise(
    generator: ImageGenerator, count: int, noise: Any, step_noise: Any
) -> dict[str, np.ndarray]:
    """Return the noise that is given, a row for each image."""
    images, rows = (count, *generator.shape), generator.sampler.num_rows
    given = {}
    if noise is not None:
        given["noise"] = np.asarray(noise, np.float32)
        if given["noise"].shape != images:
            raise UsageError(f"noise has the shape {given['noise'].shape}: give {images}.")
    if step_noise is not None:
        step_noise = np.asarray(step_noise, np.float32)
        if step_noise.shape[:1] != (rows,) or step_noise.shape[1:][-4:] != images:
            raise UsageError(
                f"step_noise has the shape {step_noise.shape}: give {(rows, *images)}."
            )
        given["step_noise"] = np.moveaxis(step_noise, -4, 0)
    return given
