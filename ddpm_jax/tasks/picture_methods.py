"""Methods of a diffusion model that take pictures: edit, inpaint, interpolate, reconstruct."""

from typing import Any

import numpy as np

from ddpm_jax.tasks import interpolation, reconstruction
from ddpm_jax.tasks.call_arguments import sampling_from
from ddpm_jax.tasks.editing_settings import Editing, Inpainting, Interpolation
from ddpm_jax.tasks.image_arrays import Trajectory, make_images, make_trajectory
from ddpm_jax.tasks.loaded_models import LoadedModel
from ddpm_jax.tasks.photos import Picture, read_photo
from ddpm_jax.tasks.picture_editing import make_editor, make_painter
from ddpm_jax.tasks.sampling import make_generator
from ddpm_jax.tasks.walks import times_in


class PictureMethods(LoadedModel):
    """Methods of a model that take pictures; `settings` are those of `Model.sample`."""

    def edit(
        self,
        photo: Picture,
        *,
        strength: float = 0.8,
        n: int = 1,
        seed: int = 0,
        batch_size: int = 64,
        noise: Any = None,
        step_noise: Any = None,
        latent_noise: Any = None,
        trajectory: bool = False,
        **settings: Any,
    ) -> np.ndarray | Trajectory:
        """Make n images that start from a picture with noise (SDEdit): uint8 [n, H, W, C].

        Args:
          photo: the picture.
          strength: how much is generated again, above 0 to 1.
          n, seed, batch_size, noise, step_noise, trajectory, settings: as in `sample`.
          latent_noise: float [h, w, c], standard normal, for a model over latents: the picture's
            latent is the sample of its distribution with this noise, in place of the mean.

        Raises:
          UsageError: a picture that cannot be used, a strength out of range, settings as in
            `sample`.
        """
        editing = Editing(image=photo, strength=strength, latent_noise=latent_noise)
        generator = make_editor(self.trained, sampling_from(**settings), editing)
        make = make_trajectory if trajectory else make_images
        return make(
            generator, n, seed=seed, batch_size=batch_size, noise=noise, step_noise=step_noise
        )

    def inpaint(
        self,
        photo: Picture,
        mask: Picture,
        *,
        resamplings: int | None = None,
        jump: int | None = None,
        n: int = 1,
        seed: int = 0,
        batch_size: int = 64,
        noise: Any = None,
        step_noise: Any = None,
        trajectory: bool = False,
        **settings: Any,
    ) -> np.ndarray | Trajectory:
        """Make n images that keep a picture except where its mask is white: uint8 [n, H, W, C].

        Args:
          photo: the picture.
          mask: bool or uint8 [H, W] of its size, or a file; True or white is painted.
          resamplings: how often RePaint walks each stretch of the chain; 10 by default.
          jump: steps in a stretch; by default a 25th of the chain.
          n, seed, batch_size, noise, step_noise, trajectory, settings: as in `sample`; a sampler
            replaces RePaint.

        Raises:
          UsageError: a picture or mask that cannot be used, settings as in `sample`.
        """
        inpainting = Inpainting(image=photo, mask=mask, resamplings=resamplings, jump=jump)
        generator = make_painter(self.trained, sampling_from(**settings), inpainting)
        make = make_trajectory if trajectory else make_images
        return make(
            generator, n, seed=seed, batch_size=batch_size, noise=noise, step_noise=step_noise
        )

    def interpolate(
        self,
        a: Picture | int,
        b: Picture | int,
        *,
        n: int = 11,
        t: int | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> np.ndarray:
        """Make n images on the way from a to b, both ends included: uint8 [n, H, W, C].

        Args:
          a, b: two pictures, or two seeds, whose x_T are the ends of an arc.
          n: at least 2.
          t: of the x_t in which two pictures are interpolated; by default half of the chain.
          seed: of the noise that all images have in common.
          settings: as in `sample`.

        Raises:
          UsageError: pictures that cannot be used, or a t that the chain does not have.
        """
        generator = make_generator(self.trained, sampling_from(**settings))
        if isinstance(a, int) and isinstance(b, int):
            way = Interpolation(seeds=(a, b), t=t, steps=n)
            return interpolation.interpolate_seeds(generator, way, seed=seed).draw().images
        way = Interpolation(images=(a, b), t=t, steps=n)
        return interpolation.interpolate(generator, way, seed=seed).draw().images[1:-1]

    def reconstruct(
        self, photo: Picture, *, corrections: int = 0, **settings: Any
    ) -> reconstruction.Reconstructed:
        """Turn a picture into its own x_T by DDIM inversion, and back by DDIM.

        Args:
          photo: the picture.
          corrections: for each inversion step, each at the cost of one more evaluation.
          settings: steps, spacing, labels and guidance, as in `sample`.

        Raises:
          UsageError: a picture that cannot be used, another sampler, a clipping.
        """
        sampling = reconstruction.decided(sampling_from(**settings))
        generator = make_generator(self.trained, sampling)
        photo = read_photo("photo", photo, self.image_shape)
        times = times_in(self.trained.model, sampling)
        return reconstruction.reconstruct(generator, photo, times, corrections=corrections)
