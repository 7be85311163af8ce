"""A picture, its x_T by DDIM inversion, and its reconstruction by DDIM from that."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.generation import dispatch
from ddpm_jax.samplers import inversion
from ddpm_jax.samplers.loop import Sampler, Samples
from ddpm_jax.tasks import names
from ddpm_jax.tasks.editing_settings import Reconstruction
from ddpm_jax.tasks.image_generator import ImageGenerator
from ddpm_jax.tasks.interpolation import Drawing, Drawn, digest, in_place
from ddpm_jax.tasks.photos import describe_picture, read_photo
from ddpm_jax.tasks.sampling_settings import Sampling
from ddpm_jax.tasks.walks import times_in


class Reconstructed(NamedTuple):
    """The x_T of a picture, and its reconstruction."""

    x_T: np.ndarray  # float32 [h, w, c]
    image: np.ndarray  # uint8 [H, W, C]
    rmse: float  # root mean squared error of x_0, in units of the codec
    shown: np.ndarray  # uint8 [3, H, W, C]: x_0, x_T and the reconstructed x_0, decoded


def decided(sampling: Sampling) -> Sampling:
    """Return the settings of a reconstruction: DDIM, nothing clipped.

    Raises:
      UsageError: they set another sampler or clipping.
    """
    if sampling.sampler not in (None, "ddim"):
        raise UsageError(
            f"reconstruct walks up and down by DDIM: leave out sampler {sampling.sampler}."
        )
    if sampling.clip not in (None, "none"):
        raise UsageError(
            "reconstruct clips nothing, since what is clipped has no way back: leave out clip "
            f"{sampling.clip}."
        )
    return dataclasses.replace(sampling, sampler="ddim", clip="none")


def reconstruct(
    generator: ImageGenerator, photo: np.ndarray, times: np.ndarray, *, corrections: int
) -> Reconstructed:
    """Invert a photo, uint8 [H, W, C], to its x_T and go back over the same times, [N].

    Raises:
      FailureError: the result is not finite.
    """
    trained = generator.trained
    params = generator.params

    def walk(denoiser: Denoiser, sampler: Sampler, x: jax.Array) -> Samples:
        upwards = isinstance(sampler.rows, inversion.UpwardRows)
        run = generator.kept_with_inputs(
            ["reconstruct", upwards, times.tolist(), corrections],
            lambda bare: dispatch.make_sample(bare.denoiser_of_any_batch, sampler),
        )
        return run(params, x)

    x_0 = trained.encode(photo[None])
    found = inversion.reconstruct(
        generator.denoiser_of_any_batch(params),
        trained.model.chain,
        times,
        x_0,
        corrections=corrections,
        walk=walk,
    )
    rmse = trained.model.codec.half_range * float(found.rmse[0])
    if not np.isfinite(rmse):
        raise FailureError(
            "The reconstruction came out as not-a-number or infinite: take more steps or fewer "
            "corrections, or, where plain samples fail too, an earlier checkpoint."
        )
    shown = generator.decode_all(params, jnp.concatenate([x_0, found.x_T, found.x_0]))
    shown = np.asarray(shown)
    return Reconstructed(np.asarray(found.x_T[0]), shown[2], rmse, shown)


def draw_reconstruction(
    generator: ImageGenerator, sampling: Sampling, reconstruction: Reconstruction
) -> Drawing:
    """Return the drawing of a picture, its x_T and its reconstruction.

    Raises:
      UsageError: a picture that cannot be used.
    """
    model, corrections = generator.trained.model, reconstruction.corrections
    picture = in_place(reconstruction.image)
    photo = read_photo("reconstruct", picture, model.image_shape)
    times = times_in(model, sampling)
    said = describe_picture("reconstruct", picture)
    path = said["reconstruct"]
    settings = {
        "reconstruct": path,
        "sha256": said["reconstruct_sha256"],
        "corrections": corrections,
    }
    latents, unit = not model.codec.is_exact, model.codec.unit

    def draw() -> Drawn:
        found = reconstruct(generator, photo, times, corrections=corrections)
        # For latents, the reconstruction by the first stage alone comes second.
        images = np.concatenate([photo[None], found.shown if latents else found.shown[1:]])
        said = (
            f"{path}, its x_T and its reconstruction in {len(times)} steps with {corrections} "
            f"corrections, x_0 not clipped (--clip none): root mean squared error {found.rmse:.3g} "
            f"{unit}"
        )
        over = ["original", *(["first stage"] if latents else []), "its x_T", "reconstruction"]
        results = {f"rmse_{unit.replace(' ', '_')}": found.rmse}
        return Drawn(images, len(images), results, said, over)

    name = f"reconstruct_{names.stem(path)}_{digest(settings)}_c{corrections}"
    return Drawing(name, settings, draw)
