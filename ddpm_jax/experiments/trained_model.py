"""A model with weights, whoever has trained it."""

import dataclasses
import pathlib
from typing import Any

import jax

from ddpm_jax.experiments.denoising import Weights
from ddpm_jax.experiments.models import Model
from ddpm_jax.experiments.programs import Programs
from ddpm_jax.files import absolute
from ddpm_jax.interop.hub import origin
from ddpm_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A model with the weights of one checkpoint."""

    model: Model
    weights: Weights
    step: int
    average: str  # "ema" or "raw"; "frozen": a first stage out of another model's checkpoint
    sha256: str = ""  # `results.weights_digest` of the weights
    class_names: tuple[str, ...] = ()  # of the data it was trained on; () where they are not known
    contents: str = (
        ""  # `dataset_info.DatasetInfo.contents` of that data; "" where they are not known
    )
    directory: pathlib.Path | None = None  # of the run
    tokenizer: Tokenizer | None = None  # of a model that reads texts
    # whether the raw weights were asked for, and are not read for want of an average
    raw_is_chosen: bool = False
    # compiled for this model, at any size
    programs: Programs = dataclasses.field(default_factory=Programs, repr=False, compare=False)

    @property
    def params(self) -> Any:
        """Return the parameters of the network."""
        return self.weights.params

    def encode(self, images: Any, noise: Any = None) -> jax.Array:
        """Return x_0 [B, h, w, c] of images uint8 [B, H, W, C]: the model's `encode`, compiled."""
        program = self.programs.get(
            ["encode", *self.model.image_shape], lambda: jax.jit(self.model.encode)
        )
        return program(self.weights, images, noise)

    @property
    def origin(self) -> str:
        """Return what its files are called in records, from whatever directory they are read."""
        return origin(str(self.directory and absolute(self.directory)))
