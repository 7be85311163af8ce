"""`ImageGenerator`: a model, a sampler, guidance and conditions, which together make images.

`sampling` and `picture_editing` make one from a trained model and settings.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.clipping import CLIPPINGS
from ddpm_jax.diffusion.denoiser import Denoiser, from_function
from ddpm_jax.diffusion.parameterization import Prediction
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.experiments.denoising import Weights
from ddpm_jax.experiments.programs import Programs
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.generation import generating
from ddpm_jax.models.condition import Condition
from ddpm_jax.randomness import initial_noise
from ddpm_jax.samplers.editing import keep_known, noised
from ddpm_jax.samplers.loop import Sampler
from ddpm_jax.tasks import names
from ddpm_jax.tasks.guide import Guide
from ddpm_jax.tasks.prompts import Texts

_PICTURES = ("init_image", "inpaint", "mask", "low_res")
# entries of a record whose values a compiled program is given as arrays
_INPUTS = {
    *("labels", "prompt", "prompts", "negative_prompt"),
    *(f"{name}{of_file}" for name in _PICTURES for of_file in ("", "_sha256")),
}


class KnownPicture(NamedTuple):
    """A picture that every image is made from."""

    x_0: np.ndarray | None  # float32 [h, w, c]; None: the images start from noise alone
    levels: Schedule  # of the times that are walked: the images start at its noisiest
    mask: np.ndarray | None = None  # bool [h, w, 1]: True where it is painted; None: all
    photo: np.ndarray | None = None  # uint8 [H, W, C], kept in the images of a model over latents
    photo_mask: np.ndarray | None = None  # bool [H, W, 1]: True where that is painted


@dataclasses.dataclass(frozen=True, eq=False)
class ImageGenerator:
    """All that determines image i except its noise.

    Methods with arguments `params` and `inputs` are traced: these are arguments of the compiled
    program. `inputs` holds the arrays besides noise that an image depends on, by name, a row for
    each image.
    """

    trained: TrainedModel
    sampler: Sampler
    guide: Guide
    clip: str  # a key of `CLIPPINGS`
    labels: np.ndarray | None  # int32 [K]: image i is of class i mod K; None without classes
    low_res: np.ndarray | None  # float32 [H, W, C], brought to the size of the images
    record: dict[str, Any]  # how to make the same images again
    originals: dict[str, np.ndarray]  # uint8 [H, W, C] each: what the images are made from
    picture: KnownPicture | None = None
    texts: Texts | None = None

    @property
    def params(self) -> dict[str, Any]:
        """Return the arrays that the methods compute with."""
        return {"model": self.trained.weights, "guide": self.guide.params}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (h, w, c) of what diffuses."""
        return self.trained.model.shape

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes by label; () if they are not known."""
        return self.guide.labelled.class_names

    def inputs(self, indices: Sequence[int], **more: np.ndarray) -> dict[str, Any]:
        """Return the inputs of images int [n]; `more` are arrays [n, ...], as `noise`."""
        repeat = functools.partial(_repeat, count=len(indices))
        label = None if self.labels is None else self.labels[np.asarray(indices) % len(self.labels)]
        known = self.trained.model.conditioning
        text, avoided = (None, None) if self.texts is None else self.texts.of_images(indices)
        condition = Condition(label if known.num_classes else None, repeat(self.low_res), text)
        fields = {} if self.picture is None else self.picture._asdict()
        fields.pop("levels", None)
        fields = {name: repeat(array) for name, array in fields.items() if array is not None}
        return {
            "condition": condition if known.names else None,
            "label": label,
            "avoided": avoided,
            **fields,
            **more,
        }

    def denoiser(self, params: Any, schedule: Schedule, inputs: dict[str, Any]) -> Denoiser:
        """Return the denoiser on the sampler's schedule: guided, clipped, known pixels kept."""
        denoiser = self.trained.model.conditional_denoiser(params["model"], schedule)
        given = (inputs[name] for name in ("condition", "label", "avoided"))
        guided = self.guide.guided(denoiser, params["guide"], *given)
        clipped = CLIPPINGS[self.clip](guided)
        return keep_known(clipped, inputs["x_0"], inputs["mask"]) if "mask" in inputs else clipped

    def start(self, keys: jax.Array, inputs: dict[str, Any]) -> jax.Array:
        """Return x_T [B, h, w, c]: noise from `inputs` or keys, added to a picture, if any."""
        noise = inputs.get("noise")
        noise = initial_noise(keys, self.shape) if noise is None else noise
        if "x_0" not in inputs:
            return self.sampler.start_scale * noise
        x_0 = inputs["x_0"]
        x_0 = jnp.where(inputs["mask"], 0.0, x_0) if "mask" in inputs else x_0
        return noised(self.picture.levels, x_0, noise)

    def step_noise(self, inputs: dict[str, Any]) -> jax.Array | None:
        """Return the steps' noise in `inputs`, [N, ..., B, h, w, c]; None for that of the keys."""
        noise = inputs.get("step_noise")
        return None if noise is None else jnp.moveaxis(noise, 0, -4)

    def decode(self, params: Any, x: jax.Array, inputs: dict[str, Any] | None = None) -> jax.Array:
        """Return the images uint8 [B, H, W, C] of x_0, or of an x_t, [B, h, w, c]."""
        images = self.trained.model.decode(params["model"], x)
        if not inputs or "photo" not in inputs:
            return images
        return jnp.where(inputs["photo_mask"], images, inputs["photo"])

    def compiled(self, **options: Any) -> generating.Generate:
        """Return the program that makes images; options are those of `generating.make_generate`."""
        functions = {"decode": self.decode, "start": self.start, "step_noise": self.step_noise}
        arguments = functions | options
        return generating.make_generate(self.denoiser, self.sampler, self.shape, **arguments)

    @property
    def generate(self) -> generating.Generate:
        """Return the program that makes images, compiled once for a size of batch."""
        return self.kept("generate", lambda bare: bare.compiled())

    @property
    def generate_chains(self) -> generating.Generate:
        """Return the program whose images are x_0, not decoded, with all moments of the chains."""
        frames = self.sampler.num_rows + 1
        return self.kept("chains", lambda bare: bare.compiled(decode=_undecoded, num_frames=frames))

    @property
    def decode_all(self) -> Callable[..., jax.Array]:
        """Return `decode`, compiled."""
        return self.kept("decode", lambda bare: jax.jit(bare.decode))

    def kept(
        self, what: str, make: Callable[["ImageGenerator"], Callable[..., Any]]
    ) -> Callable[..., Any]:
        """Return a program that any generator with the same settings but for its inputs can use.

        The settings are those of the record, which must name the sampler.

        Args:
          what: the program is.
          make: returns it, given this generator without weights.
        """
        settings = {name: name in _INPUTS or value for name, value in self.record.items()}
        settings["guidance"] = self.guide.settings
        return self.trained.programs.get([what, settings], lambda: make(self._without_weights()))

    def kept_with_inputs(
        self, what: Any, make: Callable[["ImageGenerator"], Callable[..., Any]]
    ) -> Callable[..., Any]:
        """Return a program that has inputs as constants, as `denoiser_of_any_batch` does.

        The arguments are as in `kept`; `what` is any JSON.
        """
        settings = self.record
        return self.trained.programs.get([what, settings], lambda: make(self._without_weights()))

    def _without_weights(self) -> "ImageGenerator":
        trained, guide = _without_weights(self.trained), self.guide
        second = guide.second and _without_weights(guide.second)
        guide = dataclasses.replace(guide, trained=trained, second=second)
        return dataclasses.replace(self, trained=trained, guide=guide)

    def batches(
        self,
        indices: Sequence[int],
        *,
        seed: int,
        batch_size: int,
        on_rows: Callable[[int, int, int], None] = lambda images, done, total: None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Make images in batches: (indices int [n], uint8 [n, H, W, C]) as they are done.

        The arguments are those of `generating.generate_batches`.
        """
        made = generating.generate_batches(
            self.generate,
            self.params,
            seed=seed,
            indices=indices,
            batch_size=batch_size,
            make_inputs=self.inputs,
            on_rows=on_rows,
        )
        return ((batch, generated.images) for batch, generated in made)

    def denoiser_of_any_batch(self, params: Any) -> Denoiser:
        """Return the denoiser of batches of any size whose images all have image 0's condition."""
        schedule = self.sampler.schedule

        def predict(x_t: jax.Array, t: jax.Array) -> Prediction:
            return self.denoiser(params, schedule, self.inputs(np.zeros(len(x_t), int)))(x_t, t)

        return from_function(schedule, predict)

    def name(self) -> str:
        """Return the name for files of such images: pictures, steps, sampler, and a digest.

        The digest is of the settings that are not the defaults.
        """
        return names.joined(names.what(self.record), names.how(self.record))


def _without_weights(trained: TrainedModel) -> TrainedModel:
    return dataclasses.replace(trained, weights=Weights(()), programs=Programs())


def _undecoded(params: Any, x: jax.Array, inputs: dict[str, Any]) -> jax.Array:
    return x


def _repeat(array: np.ndarray | None, count: int) -> np.ndarray | None:
    return None if array is None else np.repeat(array[None], count, axis=0)
