"""Loaded models as objects for Python: `Classifier`, `FirstStage`, and their common base.

A diffusion model's object is `ddpm_jax.api.Model`.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.data.transforms import to_model_range, to_uint8
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.interop.hub import check_push
from ddpm_jax.tasks.exporting import LICENSE
from ddpm_jax.tasks.network_exporting import write_network
from ddpm_jax.tasks.photos import Picture, is_file, read_photo
from ddpm_jax.tasks.publishing import publish
from ddpm_jax.variational.latent_space import Frozen, LatentSpace


class LoadedModel:
    """A model with the weights of one checkpoint.

    Attributes:
      trained: model and weights, for the functions of `experiments` and `tasks`.
    """

    def __init__(self, trained: TrainedModel):
        self.trained = trained

    @property
    def step(self) -> int:
        """Return how many updates the weights have had."""
        return self.trained.step

    @property
    def average(self) -> str:
        """Return which weights these are: "ema", "raw", or "frozen" for a frozen first stage."""
        return self.trained.average

    @property
    def config(self) -> ConfigDict | None:
        """Return the config of the run; None for a network without a run."""
        return getattr(self.trained.model, "config", None)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the data's classes by label; () if they are not known."""
        return self.trained.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (H, W, C) of an image."""
        return self.trained.model.image_shape

    @property
    def params(self) -> Any:
        """Return the parameters of the network, a tree of arrays."""
        return self.trained.params

    def write_network(
        self,
        file: str | os.PathLike,
        form: str = "safetensors",
        *,
        license: str = LICENSE,
        push: str | None = None,
        private: bool = False,
    ) -> None:
        """Write the network alone to a new file: `network_exporting.write_network`.

        Args:
          file: its name ends in .safetensors, or in .pt for OpenAI's code.
          form: "safetensors" (our names), "openai" or "original".
          license, push, private: as in `write_diffusers`; the license is of the card that goes
            with a file that is pushed.

        Raises:
          UsageError: the file exists, or the network has an option that the other project lacks;
            `push` as in `write_diffusers`.
          FailureError: it cannot be written or pushed.
        """
        repo = check_push(push) if push else ""
        builder = write_network(self.trained, file, form)
        if repo:
            publish(file, repo, form, builder=builder, license=license, private=private)

    def __repr__(self) -> str:
        """Return a description of the model in one line."""
        trained, size = self.trained, "x".join(map(str, self.image_shape))
        place = "a network" if trained.directory is None else f"{trained.directory}"
        parts = [f"step {trained.step}, {trained.average} weights", f"images {size}"]
        return f"<{type(self).__name__} of {place}: {', '.join([*parts, *self._facts()])}>"

    def _facts(self) -> list[str]:
        """Return further facts for the description."""
        return []

    def _call(self, name: str, function: Callable[..., Any], *arrays: Any) -> np.ndarray:
        """Return function(weights, *arrays), compiled once for a name and the shapes."""
        program = self.trained.programs.get([name], lambda: jax.jit(function))
        return np.asarray(program(self.trained.weights, *arrays))

    def _pictures(self, pictures: Picture) -> tuple[np.ndarray, bool]:
        """Return pictures as uint8 [n, H, W, C], and whether it was one without that axis."""
        if not is_file(pictures) and np.ndim(pictures) == 4:
            return np.stack([read_photo("image", p, self.image_shape) for p in pictures]), False
        return read_photo("image", pictures, self.image_shape)[None], True


class Classifier(LoadedModel):
    """A classifier of noisy images: `Guidance(classifier=...)` guides by one."""

    def log_probs(self, x_t: Any, t: Any) -> np.ndarray:
        """Return log p(y|x_t) of every class: float32 [B, K].

        Args:
          x_t: float [B, h, w, c], in the space of the model that it guides.
          t: int, or [B], in 0..T-1.
        """
        model = self.trained.model
        times = np.asarray(model.schedule.timesteps)[np.broadcast_to(t, len(x_t))]
        return self._call(
            "log_probs",
            lambda weights, x_t, times: jax.nn.log_softmax(model.apply(weights, x_t, times)),
            np.asarray(x_t, np.float32),
            times,
        )

    def _facts(self) -> list[str]:
        return [f"{self.trained.model.conditioning.num_classes} classes"]


class FirstStage(LoadedModel):
    """An autoencoder whose latents another model may diffuse."""

    def encode(self, images: Picture) -> np.ndarray:
        """Return the latents of images: float32 [n, h, w, c], or [h, w, c] for one.

        For a VAE they are the means of the posterior.

        Args:
          images: uint8 [n, H, W, C], one picture [H, W, C] or [H, W], or the name of a file.

        Raises:
          UsageError: a picture that cannot be used.
        """
        space = self._space()
        photos, one = self._pictures(images)

        def encode(weights: Any, photos: jax.Array) -> jax.Array:
            return space.encode(Frozen(weights.params, np.float32(1)), to_model_range(photos))

        z = self._call("encode", encode, photos)
        return z[0] if one else z

    def decode(self, z: Any) -> np.ndarray:
        """Return the images of latents [n, h, w, c] or [h, w, c]: uint8 [n, H, W, C] or [H, W, C].

        Raises:
          UsageError: latents of another shape.
        """
        space = self._space()
        z, one = check_latents(z, space.shape)

        def decode(weights: Any, z: jax.Array) -> jax.Array:
            return to_uint8(space.decode(Frozen(weights.params, np.float32(1)), z))

        images = self._call("decode", decode, z)
        return images[0] if one else images

    def _space(self) -> LatentSpace:
        return self.trained.model.latent_space(self.image_shape)

    def _facts(self) -> list[str]:
        shape = "x".join(map(str, self._space().shape))
        return [f"{self.trained.model.stage.kind}, latents {shape}"]


def check_latents(z: Any, shape: tuple[int, int, int]) -> tuple[np.ndarray, bool]:
    """Return x_0 or latents as float32 [n, h, w, c], and whether it was one without that axis.

    Raises:
      UsageError: another shape.
    """
    z = np.asarray(z, np.float32)
    if z.shape[-3:] != shape or z.ndim not in (3, 4):
        raise UsageError(f"z has the shape {z.shape}: give {('n', *shape)} or {shape}.")
    return (z[None], True) if z.ndim == 3 else (z, False)
