"""What sample.py's commands on the latent space draw: DRAWINGS, by the name of the flag that asks
for each.

Each function reads its flags and files, refuses what cannot be, and leaves the computing to
`Drawing.draw`. Flags and files on disk are `cli.latents`; the mathematics is
`evaluation.progressive` and `samplers`.
"""

import functools
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.cli.command import BETWEEN
from ddpm_jax.diffusion.denoiser import Denoiser, from_function
from ddpm_jax.diffusion.parameterization import Prediction
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.evaluation import progressive
from ddpm_jax.experiments.loading import TrainedModel
from ddpm_jax.files import as_path, file_sha256
from ddpm_jax.generation import dispatch
from ddpm_jax.randomness import base_key, image_keys, initial_noise
from ddpm_jax.samplers import inversion
from ddpm_jax.samplers.editing import slerp
from ddpm_jax.samplers.loop import Sampler, Samples
from ddpm_jax.tasks import names, photos, sampling
from ddpm_jax.tasks.sampling import Recipe

LATENTS = 4  # rows of shared_latents.png; T = 1000 gives the t of Ho et al. 2020, figure 7
SHARING = 8  # samples in a row
PATH_STEPS = 11  # images from one end to the other


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

    name: str  # how its file begins; different where the files read differ
    settings: dict[str, Any]  # what it is made of, beside the checkpoint and the recipe
    draw: Callable[[], Drawn]


def _interpolate(trained: TrainedModel, recipe: Recipe, flags: Any) -> Drawing:
    """From one picture to another through x_t (Ho et al. 2020, figure 8)."""
    paths, schedule = _paths(flags.interpolate), recipe.sampler.schedule
    t = schedule.num_timesteps // 2 if flags.interpolate_t is None else flags.interpolate_t
    progressive.from_timestep(schedule, t)
    steps = flags.interpolate_steps or PATH_STEPS
    pair = np.stack(
        [photos.read_photo("--interpolate", path, trained.model.image_shape) for path in paths]
    )
    settings = {"images": list(map(str, paths)), "sha256": list(map(file_sha256, paths)), "t": t}

    def draw() -> Drawn:
        found = progressive.interpolate(
            functools.partial(_denoiser, recipe),
            schedule,
            recipe.params,
            jax.jit(trained.model.encode)(trained.weights, pair),
            t=t,
            steps=steps,
            seed=flags.seed,
            show=recipe.show,
        )
        row = np.concatenate([pair[:1], found.images, pair[1:]])
        said = f"{paths[0]}, {steps} images at t = {t} with λ from 0 to 1, {paths[1]}"
        over = [paths[0].stem, *(f"λ = {value:.2g}" for value in found.lambdas), paths[1].stem]
        return Drawn(row, len(row), {"lambdas": found.lambdas}, said, over)

    stems = f"{names.stem(paths[0])}_{names.stem(paths[1])}_{_digest(settings)}"
    return Drawing(f"interpolate_{stems}_t{t}_n{steps}", settings, draw)


def _shared_latents(trained: TrainedModel, recipe: Recipe, flags: Any) -> Drawing:
    """Samples that share the x_t of one chain, at four t (Ho et al. 2020, figure 7)."""
    schedule = recipe.sampler.schedule

    def draw() -> Drawn:
        shared = progressive.samples_sharing_latents(
            functools.partial(_denoiser, recipe),
            schedule,
            recipe.params,
            trained.model.shape,
            num_latents=min(LATENTS, schedule.num_timesteps),
            num_samples=SHARING,
            seed=flags.seed,
            show=recipe.show,
        )
        rows = np.concatenate([shared.latents[:, None], shared.images], axis=1)
        said = f"x_t of one chain at t = {', '.join(map(str, shared.t))}, and {SHARING} samples that share it"
        over, before = (
            ["x_t", *(f"sample {i}" for i in range(SHARING))],
            [f"t = {t}" for t in shared.t],
        )
        return Drawn(
            rows.reshape(-1, *rows.shape[2:]), SHARING + 1, {"t": shared.t}, said, over, before
        )

    return Drawing("shared_latents", {}, draw)


def _interpolate_seeds(trained: TrainedModel, recipe: Recipe, flags: Any) -> Drawing:
    """Samples on the arc between the x_T of two seeds, all with the noise of image 0 of --seed."""
    first, last = flags.interpolate_seeds
    if first == last:
        raise UsageError(
            f"--interpolate_seeds {first},{last}: between a seed and itself all images are the "
            "same, give two."
        )
    steps = flags.interpolate_steps or PATH_STEPS
    shape = trained.model.shape
    lambdas = np.linspace(0, 1, steps)
    along = recipe._replace(
        make_denoiser=lambda params, schedule, inputs: recipe.make_denoiser(
            params, schedule, inputs[0]
        ),
        start=lambda schedule, keys, shape, inputs: inputs[1],
        edit=lambda sampler, inputs: recipe.edit(sampler, inputs[0]),
    )

    def draw() -> Drawn:
        ends = [
            initial_noise(image_keys(base_key(seed), jnp.zeros(1, int)), shape)
            for seed in (first, last)
        ]
        x_T = np.asarray(slerp(jnp.concatenate(ends), jnp.asarray(lambdas, jnp.float32)))
        same = np.zeros(steps, int)  # image 0's key and condition for all: they differ in x_T alone
        inputs = (recipe.inputs_of(same), x_T)
        images = along.generator(shape)(
            recipe.params, base_key(flags.seed), same, inputs=inputs
        ).images
        said = f"{steps} images from seed {first} to seed {last}, {recipe.record['sampler']}"
        over = [f"seed {first}", *(f"λ = {value:.2g}" for value in lambdas[1:-1]), f"seed {last}"]
        return Drawn(
            images, steps, {"lambdas": lambdas}, f"{said}, {recipe.record['steps']} steps", over
        )

    return Drawing(f"interpolate_seeds_{first}_{last}_n{steps}", {"seeds": [first, last]}, draw)


def _reconstruct(trained: TrainedModel, recipe: Recipe, flags: Any) -> Drawing:
    """A picture, the x_T that DDIM inversion finds for it, and what DDIM makes of that."""
    model, path = trained.model, as_path(flags.reconstruct)
    photo = photos.read_photo("--reconstruct", path, model.image_shape)
    times, corrections = sampling.times_of(model, flags), flags.corrections or 0
    settings = {"reconstruct": str(path), "sha256": file_sha256(path), "corrections": corrections}
    latents = not model.codec.is_exact
    scale, unit = model.codec.half_range, model.codec.unit

    make_denoiser = functools.partial(_denoiser, recipe)

    def walk(denoiser: Denoiser, sampler: Sampler, x: chex.Array, keys: chex.PRNGKey) -> Samples:
        return dispatch.sample(make_denoiser, sampler, recipe.params, x, keys)

    def back_and_forth() -> tuple[inversion.Reconstruction, chex.Array]:
        x_0 = jax.jit(model.encode)(trained.weights, photo[None])
        denoiser = make_denoiser(recipe.params)
        found = inversion.reconstruct(
            denoiser, model.chain, times, x_0, corrections=corrections, walk=walk
        )
        return found, jax.jit(recipe.show)(
            recipe.params, jnp.concatenate([x_0, found.x_T, found.x_0])
        )

    def draw() -> Drawn:
        found, shown = back_and_forth()
        rmse = scale * float(found.rmse[0])
        if not np.isfinite(rmse):
            raise FailureError(
                "The reconstruction came out as not-a-number or infinite: take more --steps or "
                "fewer --corrections, or, where plain samples fail too, an earlier checkpoint."
            )
        # Of latents, what the first stage alone makes of the photo stands between.
        images = np.concatenate([photo[None], shown if latents else shown[1:]])
        said = (
            f"{path}, its x_T and its reconstruction in {len(times)} steps with {corrections} "
            f"corrections, x_0 not clipped (--clip none): root mean squared error {rmse:.3g} {unit}"
        )
        over = ["original", *(["first stage"] if latents else []), "its x_T", "reconstruction"]
        return Drawn(images, len(images), {f"rmse_{unit.replace(' ', '_')}": rmse}, said, over)

    return Drawing(
        f"reconstruct_{names.stem(path)}_{_digest(settings)}_c{corrections}", settings, draw
    )


DRAWINGS: dict[str, Callable[[TrainedModel, Recipe, Any], Drawing]] = {
    "interpolate": _interpolate,
    "shared_latents": _shared_latents,
    "interpolate_seeds": _interpolate_seeds,
    "reconstruct": _reconstruct,
}


def _denoiser(recipe: Recipe, params: Any) -> Denoiser:
    """The recipe's denoiser for batches of any size, all of them of image 0's condition."""

    def predict(x_t: Any, t: Any) -> Prediction:
        inputs = recipe.inputs_of(np.zeros(len(x_t), int))
        return recipe.make_denoiser(params, recipe.sampler.schedule, inputs)(x_t, t)

    return from_function(recipe.sampler.schedule, predict)


def _paths(value: str) -> list[pathlib.Path]:
    paths = value.split(BETWEEN)
    if len(paths) != 2:  # --interpolate=A
        raise UsageError("--interpolate needs two image files, as in --interpolate a.png b.png.")
    return [as_path(path) for path in paths]


def _digest(settings: dict[str, Any]) -> str:
    """Tells files of one name apart: those of different folders, and the same file before and after
    a change."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
