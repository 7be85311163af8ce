"""Images made from a picture: started from it (SDEdit) or painted over it (RePaint).

The picture may have any size: it is resized on its shorter side and cropped at the centre, as in
training; the mask, which must have its size, likewise. The algorithms are in `samplers.editing`. A
model over latents edits the picture's latents: those whose pixels the mask touches are painted, and
the picture itself is kept where the mask is black.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data.transforms import to_model_range
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.samplers.editing import repaint, start_from
from ddpm_jax.samplers.loop import Sampler
from ddpm_jax.tasks.editing_settings import Editing, Inpainting
from ddpm_jax.tasks.image_generator import ImageGenerator, KnownPicture
from ddpm_jax.tasks.photos import describe_picture, read_mask, read_photo
from ddpm_jax.tasks.sampling import at_size, generator_with, make_generator, with_defaults
from ddpm_jax.tasks.sampling_settings import Sampling
from ddpm_jax.tasks.walks import sampler_over, times_in, walked_in

MIDDLE_GREY = 128
REPAINT_STEPS = 250  # Lugmayr et al. 2022, section 5; all T where there are fewer


def check_one_picture(editing: Editing, inpainting: Inpainting) -> None:
    """Refuse to start from a picture and to paint over one at once.

    Raises:
      UsageError: see above.
    """
    if editing.image is not None and inpainting.image is not None:
        raise UsageError("init_image and inpaint are two ways to use a picture: give one of them.")


def make_any(
    trained: TrainedModel, sampling: Sampling, editing: Editing, inpainting: Inpainting
) -> ImageGenerator:
    """Return the generator of images from the picture in one of the settings, if any.

    Raises:
      UsageError: as `make_generator`, `make_editor` and `make_painter`.
    """
    if editing.image is not None:
        return make_editor(trained, sampling, editing)
    if inpainting.image is not None:
        return make_painter(trained, sampling, inpainting)
    return make_generator(trained, sampling)


def make_editor(trained: TrainedModel, sampling: Sampling, editing: Editing) -> ImageGenerator:
    """Return the generator of images that start from a noised picture (Meng et al. 2022).

    Raises:
      UsageError: no picture, or one that cannot be used; what `sampling.make_generator` raises.
    """
    trained, sampling = at_size(trained, sampling), with_defaults(trained.model, sampling)
    model = trained.model
    photo = read_photo("init_image", editing.image, model.image_shape)
    chain, times = walked_in(model, sampling)
    times = start_from(times, editing.strength, truncated=sampling.has_diffusers_levels)
    sampler, record = sampler_over(model, sampling, chain, times)
    record |= describe_picture("init_image", editing.image) | {"strength": editing.strength}
    # The sampler's own table may have more noise levels, as EDM's has.
    x_0 = _x_0(trained, photo, editing.latent_noise)
    picture = KnownPicture(x_0, chain.at(times))
    generator = generator_with(trained, sampling, sampler, record)
    return _from_picture(generator, picture, {"original": photo})


def make_painter(
    trained: TrainedModel, sampling: Sampling, inpainting: Inpainting
) -> ImageGenerator:
    """Return the generator of images that keep a picture where its mask is black.

    The sampler is RePaint or, if set or the model reads texts, `sampling.sampler`; then the known
    pixels are kept in the denoiser.

    Raises:
      UsageError: a picture or mask that cannot be used, a jump out of range, settings of a sampler
        that is not used; what `sampling.make_generator` raises.
    """
    trained = at_size(trained, sampling)
    if inpainting.jump is None and inpainting.resamplings is None:
        sampling = with_defaults(trained.model, sampling)
    model = trained.model
    photo = read_photo("inpaint", inpainting.image, model.image_shape)
    mask = read_mask("mask", inpainting.mask, inpainting.image, model.image_shape)
    sampler, levels, record = _painting_walk(trained, sampling, inpainting)
    record |= describe_picture("inpaint", inpainting.image)
    record |= describe_picture("mask", inpainting.mask)
    if model.conditioning.inpainting:
        painted = painted_input(trained, photo, mask)
        picture = KnownPicture(None, levels, None, photo, mask)
        generator = generator_with(trained, sampling, sampler, record, painted=painted)
        return _from_picture(generator, picture, {"original": photo})
    # The painted part is grey: otherwise it would affect the kept latents through the encoder's
    # attention and norms.
    kept = np.where(mask, MIDDLE_GREY, photo).astype(np.uint8)
    x_0 = _x_0(trained, kept)
    if model.codec.is_exact:
        picture = KnownPicture(x_0, levels, mask)
    else:
        touched = _blocks(mask, x_0.shape).any(axis=(1, 3))
        picture = KnownPicture(x_0, levels, touched, photo, mask)
    generator = generator_with(trained, sampling, sampler, record)
    return _from_picture(generator, picture, {"original": photo, "kept": kept})


def _painting_walk(
    trained: TrainedModel, sampling: Sampling, inpainting: Inpainting
) -> tuple[Sampler, Schedule, dict[str, Any]]:
    """Return (the sampler, the levels that it visits, their record)."""
    model = trained.model
    own = {"jump": inpainting.jump, "resamplings": inpainting.resamplings}
    own = {name: value for name, value in own.items() if value is not None}
    if sampling.sampler is not None:
        if own:
            raise UsageError(
                f"{next(iter(own))} belongs to RePaint's own walk: leave out sampler "
                f"{sampling.sampler}."
            )
        chain, times = walked_in(model, sampling)
        sampler, record = sampler_over(model, sampling, chain, times)
        return sampler, chain.at(times), record
    if model.conditioning.inpainting:
        raise UsageError(
            f"{next(iter(own))} belongs to RePaint, and this model has learned to paint over "
            "pictures itself: leave it out."
        )
    if sampling.options:
        raise UsageError(
            "sampler_options with inpaint belong to a sampler: RePaint has resamplings and jump."
        )
    times = times_in(model, sampling, most=REPAINT_STEPS)
    sampler = repaint(model.chain, times, **own)
    record = {"sampler": "repaint", "steps": len(times), **own}
    return sampler, model.chain.at(times), record


def painted_input(trained: TrainedModel, photo: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return what a network for inpainting is given besides x_t.

    It is as in diffusers' `StableDiffusionInpaintPipeline`, but for the latents, which are means
    here and draws there: the painted part of the picture is grey, 0 in [-1, 1], and the mask of a
    latent that of its first pixel.

    Args:
      trained: the model, of the picture's size.
      photo: uint8 [H, W, C].
      mask: bool [H, W, 1]; True is painted.

    Returns:
      float32 [h, w, 1 + c]: the mask, and the latents of the masked picture.
    """
    space, frozen = trained.model.codec.space, trained.weights.frozen
    masked = jnp.where(mask, 0.0, to_model_range(photo))
    shape = trained.model.image_shape
    encode = trained.programs.get(["latents", *shape], lambda: jax.jit(space.encode))
    z = encode(frozen, masked[None])[0]
    height, width, _ = z.shape
    rows = mask[:: len(mask) // height, :: mask.shape[1] // width]
    return np.concatenate([rows.astype(np.float32), z], axis=-1)


def _from_picture(
    generator: ImageGenerator, picture: KnownPicture, originals: dict[str, np.ndarray]
) -> ImageGenerator:
    return dataclasses.replace(
        generator, picture=picture, originals=originals | generator.originals
    )


def _x_0(trained: TrainedModel, photo: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
    """Return a photo, uint8 [H, W, C], as x_0 of the model: float32 [h, w, c].

    Raises:
      UsageError: noise of another shape than x_0.
    """
    if noise is not None:
        noise = np.asarray(noise, np.float32)
        if noise.shape != trained.model.shape:
            raise UsageError(
                f"latent_noise has the shape {noise.shape}: give {trained.model.shape}."
            )
        noise = noise[None]
    return np.asarray(trained.encode(photo[None], noise))[0]


def _blocks(mask: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the pixels [H, W, 1] that each latent of [h, w, c] stands for: [h, f, w, f, 1]."""
    height, width, _ = shape
    return mask.reshape(height, len(mask) // height, width, mask.shape[1] // width, 1)
