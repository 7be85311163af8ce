"""Drawings of a model's latent space: interpolations, and samples that share an x_t.

Each function reads its pictures and checks the settings; the computation is left to `Drawing.draw`,
so that an existing file of the same name can be checked first. The mathematics is in
`evaluation.progressive` and `samplers`.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ddpm_jax.evaluation import progressive
from ddpm_jax.files import as_path
from ddpm_jax.randomness import base_key, image_keys, initial_noise
from ddpm_jax.samplers.editing import slerp
from ddpm_jax.tasks import names
from ddpm_jax.tasks.editing_settings import Interpolation
from ddpm_jax.tasks.image_generator import ImageGenerator
from ddpm_jax.tasks.photos import Picture, describe_picture, is_file, read_photo

LATENTS = 4  # rows of shared_latents.png; T = 1000 gives the t of Ho et al. 2020, figure 7
SHARING = 8  # samples in a row


class Drawn(NamedTuple):
    """A finished drawing."""

    images: np.ndarray  # uint8 [N, H, W, C], row by row
    columns: int
    results: dict[str, Any]  # for the record
    said: str  # to the user
    over: Sequence[str] = ()  # labels of the columns
    before: Sequence[str] = ()  # labels of the rows


class Drawing(NamedTuple):
    """A drawing to be made."""

    name: str  # the beginning of its file's name; it differs if the files read differ
    settings: dict[str, Any]  # those besides the checkpoint and `Sampling`
    draw: Callable[[], Drawn]


def interpolate(generator: ImageGenerator, interpolation: Interpolation, *, seed: int) -> Drawing:
    """Interpolate between two pictures through x_t (Ho et al. 2020, figure 8).

    Raises:
      UsageError: a picture that cannot be used, or a t that the chain does not have.
    """
    trained, schedule = generator.trained, generator.sampler.schedule
    t = schedule.num_timesteps // 2 if interpolation.t is None else interpolation.t
    pictures, steps = list(map(in_place, interpolation.images)), interpolation.steps
    shape = trained.model.image_shape
    run = generator.kept_with_inputs(
        ["interpolate", t, steps],
        lambda bare: progressive.make_interpolate(
            bare.denoiser_of_any_batch, schedule, t=t, steps=steps, show=bare.decode
        ),
    )
    pair = np.stack([read_photo("interpolate", picture, shape) for picture in pictures])
    said = [describe_picture("picture", picture) for picture in pictures]
    settings = {
        "images": [picture["picture"] for picture in said],
        "sha256": [picture["picture_sha256"] for picture in said],
        "t": t,
    }

    def draw() -> Drawn:
        x_0 = trained.encode(pair)
        found = run(generator.params, x_0, seed=seed)
        row = np.concatenate([pair[:1], found.images, pair[1:]])
        first, last = settings["images"]
        said = f"{first}, {steps} images at t = {t} with λ from 0 to 1, {last}"
        lambdas = [f"λ = {value:.2g}" for value in found.lambdas]
        over = [_stem(first), *lambdas, _stem(last)]
        return Drawn(row, len(row), {"lambdas": found.lambdas}, said, over)

    stems = "_".join([*map(names.stem, settings["images"]), digest(settings)])
    return Drawing(f"interpolate_{stems}_t{t}_n{steps}", settings, draw)


def interpolate_seeds(
    generator: ImageGenerator, interpolation: Interpolation, *, seed: int
) -> Drawing:
    """Interpolate along the arc between the x_T of two seeds.

    All images have the noise of image 0 of `seed`.
    """
    first, last = interpolation.seeds
    steps = interpolation.steps
    lambdas = np.linspace(0, 1, steps)

    def draw() -> Drawn:
        ends = [
            initial_noise(
                image_keys(base_key(seed), jnp.zeros(1, int)), generator.trained.model.shape
            )
            for seed in (first, last)
        ]
        x_T = np.asarray(slerp(jnp.concatenate(ends), jnp.asarray(lambdas, jnp.float32)))
        # Image 0's key and condition for all: they differ in x_T alone.
        same = np.zeros(steps, int)
        inputs = generator.inputs(same, noise=x_T)
        images = generator.generate(generator.params, base_key(seed), same, inputs=inputs).images
        record = generator.record
        said = f"{steps} images from seed {first} to seed {last}, {record['sampler']}"
        over = [f"seed {first}", *(f"λ = {value:.2g}" for value in lambdas[1:-1]), f"seed {last}"]
        said = f"{said}, {record['steps']} steps"
        return Drawn(images, steps, {"lambdas": lambdas}, said, over)

    return Drawing(f"interpolate_seeds_{first}_{last}_n{steps}", {"seeds": [first, last]}, draw)


def share_latents(generator: ImageGenerator, *, seed: int) -> Drawing:
    """Draw samples that share the x_t of one chain, at four t (Ho et al. 2020, figure 7)."""
    schedule = generator.sampler.schedule

    def draw() -> Drawn:
        shared = progressive.samples_sharing_latents(
            generator.denoiser_of_any_batch,
            schedule,
            generator.params,
            generator.trained.model.shape,
            num_latents=min(LATENTS, schedule.num_timesteps),
            num_samples=SHARING,
            seed=seed,
            show=generator.decode,
        )
        rows = np.concatenate([shared.latents[:, None], shared.images], axis=1)
        moments = ", ".join(map(str, shared.t))
        said = f"x_t of one chain at t = {moments}, and {SHARING} samples that share it"
        over = ["x_t", *(f"sample {i}" for i in range(SHARING))]
        before = [f"t = {t}" for t in shared.t]
        images = rows.reshape(-1, *rows.shape[2:])
        return Drawn(images, SHARING + 1, {"t": shared.t}, said, over, before)

    return Drawing("shared_latents", {}, draw)


def in_place(picture: Picture) -> Picture:
    """Return a file's name as a path; an array unchanged."""
    return as_path(picture) if is_file(picture) else picture


def digest(settings: dict[str, Any]) -> str:
    """Return a digest that distinguishes files of one name, by folder and by content."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def _stem(picture: str) -> str:
    return os.path.splitext(os.path.basename(picture))[0]
