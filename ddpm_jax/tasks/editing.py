"""Flags -> images made from a picture: `--init_image` (SDEdit) and `--inpaint` with `--mask`
(RePaint), as a `Recipe`.

The picture may have any size: it is resized on its shorter side and cropped at the centre, as in
training; the mask, which must have its size, likewise. What the editing does is `samplers.editing`.
A model over latents edits the picture's latents; those whose pixels the mask touches are painted
anew, and the picture itself is shown where the mask is black.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.cli.command import Parser
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.loading import TrainedModel
from ddpm_jax.limits import MAX_TIMESTEPS
from ddpm_jax.samplers.editing import keep_known, noised, repaint, start_from
from ddpm_jax.tasks import guidance
from ddpm_jax.tasks.photos import named_file, read_mask, read_photo
from ddpm_jax.tasks.sampling import Inputs, Recipe, make_recipe, recipe_of, sampler_of, times_of

MIDDLE_GREY = 128
REPAINT_STEPS = 250  # Lugmayr et al. 2022, section 5; all T where there are fewer
MAX_RESAMPLINGS = 1000  # of a stretch; Lugmayr et al. 2022 have 10


def define_flags(parser: Parser) -> None:
    """Adds the flags of this file to those of sample.py."""
    parser.path(
        "init_image",
        None,
        "Start from this picture instead of noise; see --strength.",
        metavar="FILE",
    )
    parser.number(
        "strength",
        None,
        "With --init_image: how much is generated again, above 0 to 1 (default: 0.8).",
        valid=lambda value: 0 < value <= 1,
        wanted="above 0 and at most 1",
    )
    parser.path("inpaint", None, "Paint over this picture where --mask is white.", metavar="FILE")
    parser.path(
        "mask",
        None,
        "With --inpaint: a picture of the same size, white where to paint.",
        metavar="FILE",
    )
    parser.integer(
        "resamplings",
        None,
        "With --inpaint: how often each stretch of the chain is walked (default: 10).",
        lower=1,
        upper=MAX_RESAMPLINGS,
    )
    parser.integer(
        "jump",
        None,
        "With --inpaint: steps in a stretch, by default a 25th of the chain.",
        lower=1,
        upper=MAX_TIMESTEPS,
    )


def edited(trained: TrainedModel, flags: Any) -> Recipe:
    """The recipe that the flags ask for: that of sampling, unless a picture is given.

    Raises:
      UsageError: two pictures, a flag without the one it belongs to, a file that cannot be used, a
        strength or jump out of range; what `sampling.recipe_of` raises.
    """
    _check_together(flags)
    if flags.init_image:
        return _from_picture(trained, flags)
    if flags.inpaint:
        return _inpainted(trained, flags)
    return recipe_of(trained, flags)


def _check_together(flags: Any) -> None:
    if flags.init_image and flags.inpaint:
        raise UsageError(
            "--init_image and --inpaint are two ways to use a picture: give one of them."
        )
    if flags.strength is not None and not flags.init_image:
        raise UsageError(
            "--strength says how much of --init_image is made anew: give that too, or leave it out."
        )
    for name in ("mask", "resamplings", "jump"):
        if getattr(flags, name) is not None and not flags.inpaint:
            raise UsageError(f"--{name} belongs to --inpaint: give that too, or leave it out.")
    if flags.inpaint and flags.sampler is None and flags.sampler_options:
        raise UsageError(
            "--sampler_options with --inpaint belong to a --sampler: RePaint has --resamplings and "
            "--jump."
        )
    if flags.inpaint and not flags.mask:
        raise UsageError(
            "--inpaint needs --mask: a picture of the same size, white where it is to be painted "
            "anew."
        )


def _from_picture(trained: TrainedModel, flags: Any) -> Recipe:
    """Image-to-image: the picture with the noise of a level, and the sampler from there (Meng et
    al. 2022)."""
    chain = trained.model.chain
    photo = read_photo("--init_image", flags.init_image, trained.model.image_shape)
    strength = 0.8 if flags.strength is None else flags.strength
    times = start_from(times_of(trained.model, flags), strength)
    sampler, record = sampler_of(trained.model, flags, times)
    record |= named_file("init_image", flags.init_image) | {"strength": strength}
    top = chain.at(times)  # the sampler's own table may have levels above it, as EDM's has

    def start(
        schedule: Schedule, keys: chex.PRNGKey, shape: tuple[int, ...], inputs: Inputs
    ) -> chex.Array:
        return noised(top, inputs.image, keys)

    recipe = make_recipe(sampler, guidance.guided(trained, flags), record)
    originals = {"original": photo} | recipe.originals
    return recipe._replace(
        start=start, inputs_of=_with(recipe, image=_x_0(trained, photo)), originals=originals
    )


def _inpainted(trained: TrainedModel, flags: Any) -> Recipe:
    """RePaint, or with --sampler any other way to walk; the known pixels are kept in the
    denoiser."""
    chain = trained.model.chain
    photo = read_photo("--inpaint", flags.inpaint, trained.model.image_shape)
    mask = read_mask("--mask", flags.mask, flags.inpaint, trained.model.image_shape)
    record = named_file("inpaint", flags.inpaint) | named_file("mask", flags.mask)
    if flags.sampler is None:
        steps = flags.steps or min(REPAINT_STEPS, chain.num_timesteps)
        times = times_of(trained.model, flags, steps=steps)
        options = {} if flags.jump is None else {"jump": flags.jump}
        options |= {} if flags.resamplings is None else {"resamplings": flags.resamplings}
        sampler = repaint(chain, times, **options)
        record = {"sampler": "repaint", "steps": len(times), **options} | record
    else:
        for name in ("resamplings", "jump"):
            if getattr(flags, name) is not None:
                raise UsageError(
                    f"--{name} belongs to RePaint's own walk: leave out --sampler {flags.sampler}."
                )
        times = times_of(trained.model, flags)
        sampler, walked = sampler_of(trained.model, flags, times)
        record = walked | record
    top = chain.at(times)

    def start(
        schedule: Schedule, keys: chex.PRNGKey, shape: tuple[int, ...], inputs: Inputs
    ) -> chex.Array:
        return noised(top, jnp.where(inputs.mask, 0.0, inputs.image), keys)

    recipe = make_recipe(sampler, guidance.guided(trained, flags), record)

    def make_denoiser(params: Any, schedule: Schedule, inputs: Inputs) -> Denoiser:
        return keep_known(recipe.make_denoiser(params, schedule, inputs), inputs.image, inputs.mask)

    # What is to be painted over is grey: the encoder's attention and norms would see it in the
    # latents that are kept.
    kept = np.where(mask, MIDDLE_GREY, photo).astype(np.uint8)
    originals = {"original": photo, "kept": kept} | recipe.originals
    painting = recipe._replace(make_denoiser=make_denoiser, start=start, originals=originals)
    image = _x_0(trained, kept)
    if trained.model.codec.is_exact:
        return painting._replace(inputs_of=_with(recipe, image=image, mask=mask))

    def show(params: Any, x: chex.Array, inputs: Inputs) -> chex.Array:
        return jnp.where(inputs.photo_mask, recipe.show(params, x, inputs), inputs.photo)

    touched = _blocks(mask, image.shape).any(axis=(1, 3))
    return painting._replace(
        show=show, inputs_of=_with(recipe, image=image, mask=touched, photo=photo, photo_mask=mask)
    )


def _x_0(trained: TrainedModel, photo: np.ndarray) -> np.ndarray:
    """A photo, uint8 [H, W, C], as the model knows it: float32 [h, w, c]."""
    return np.asarray(jax.jit(trained.model.encode)(trained.weights, photo[None]))[0]


def _blocks(mask: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The pixels [H, W, 1] that each latent of [h, w, c] stands for: [h, f, w, f, 1]."""
    height, width, _ = shape
    return mask.reshape(height, len(mask) // height, width, mask.shape[1] // width, 1)


def _with(recipe: Recipe, **same: np.ndarray) -> Any:
    """The recipe's inputs, and the same picture, or mask, for every image."""

    def inputs_of(indices: np.ndarray) -> Inputs:
        repeated = {
            name: np.repeat(array[None], len(indices), axis=0) for name, array in same.items()
        }
        return recipe.inputs_of(indices)._replace(**repeated)

    return inputs_of
