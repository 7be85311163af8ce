"""A whole CLIP, its image tower and its text encoder, to compare pictures with texts."""

import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UsageError, say
from ddpm_jax.interop.clip_image import image_encoder_from_config, image_params_from_transformers
from ddpm_jax.interop.diffusers_directory import read_json
from ddpm_jax.interop.hub import resolve
from ddpm_jax.interop.weight_files import find_weights
from ddpm_jax.models.image_encoder import MEAN, STD, ImageEncoder, normalized
from ddpm_jax.monitoring.results import weights_digest
from ddpm_jax.text.text_model import TextModel, load_text_model

AT_A_TIME = 16  # pictures or texts that a device encodes
_BICUBIC = 3  # Pillow's number


@dataclasses.dataclass(frozen=True)
class Clip:
    """CLIP with its parameters; features of pictures and texts have length 1."""

    text: TextModel
    encoder: ImageEncoder
    params: Any  # of the image encoder
    sha256: str  # `weights_digest` of both

    def of_images(self, images: np.ndarray) -> np.ndarray:
        """Encode pictures uint8 [n, H, W, C], C 1 or 3: float32 [n, P]."""
        encode = functools.partial(_image_features, self.encoder, self.params)
        return _in_parts(encode, images)

    def of_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts: float32 [n, P].

        Words beyond the length that the encoder takes are cut, with a warning.
        """
        for warning in self.text.tokenizer.cut_warnings(texts):
            say(f"warning: CLIP: {warning}", file=sys.stderr)
        encode = functools.partial(_text_features, self.text.encoder, self.text.params)
        return _in_parts(encode, self.text.tokenizer(texts))


def load_clip(checkpoint: str | os.PathLike) -> Clip:
    """Read the encoders, the tokenizer and what is known of the pictures' preparation.

    Args:
      checkpoint: the directory of a `CLIPModel` of transformers, or its name on the hub.

    Raises:
      UsageError: there is none, a file is damaged, or the pictures are prepared otherwise than for
        CLIP.
      FailureError: the hub cannot be reached.
    """
    path = resolve(checkpoint, folders=())
    if not (path / "config.json").is_file():
        raise UsageError(f"{path} holds no CLIP of transformers: there is no config.json.")
    config = read_json(path / "config.json")
    if config.get("model_type") != "clip":
        raise UsageError(
            f"{path} holds no whole CLIP: a picture is compared with a text by both encoders of a "
            "CLIPModel."
        )
    encoder = image_encoder_from_config(config)
    _check_preparation(path, encoder)
    text = load_text_model(path)
    params = image_params_from_transformers(find_weights(path), encoder)
    params = jax.tree.map(jnp.asarray, params)
    return Clip(text, encoder, params, weights_digest((text.params, params)))


def _check_preparation(path: pathlib.Path, encoder: ImageEncoder) -> None:
    """Refuse a preprocessor_config.json, if any, that is not what `normalized` computes.

    Raises:
      UsageError: it is not.
    """
    if not (path / "preprocessor_config.json").is_file():
        return
    config = read_json(path / "preprocessor_config.json")
    wanted = {"image_mean": MEAN, "image_std": STD, "resample": _BICUBIC}
    sizes = {name: encoder.image_size for name in ("shortest_edge", "height", "width")}
    for name, value in wanted.items():
        if not np.allclose(config.get(name, value), value, atol=1e-6):
            raise _not_prepared_so(path, name, config[name])
    for name in ("size", "crop_size"):
        found = config.get(name, {})
        found = {"shortest_edge": found} if isinstance(found, int) else found
        if any(sizes.get(side) != size for side, size in found.items()):
            raise _not_prepared_so(path, name, config[name])


def _not_prepared_so(path: pathlib.Path, name: str, value: Any) -> UsageError:
    return UsageError(
        f"{path}/preprocessor_config.json has {name} = {value}, which is not CLIP's: pictures "
        "would be given to it otherwise than in its training."
    )


def _in_parts(encode: Any, rows: np.ndarray) -> np.ndarray:
    """Encode rows [n, ...] a part at a time, the last one filled up with its last row."""
    parts = []
    for start in range(0, len(rows), AT_A_TIME):
        part = np.minimum(np.arange(start, start + AT_A_TIME), len(rows) - 1)
        parts.append(np.asarray(encode(rows[part])))
    return np.concatenate(parts)[: len(rows)]


@functools.partial(jax.jit, static_argnums=0)
def _image_features(encoder: ImageEncoder, params: Any, images: jax.Array) -> jax.Array:
    pictures = jnp.broadcast_to(images, (*images.shape[:3], 3)) / 255.0
    pictures = normalized(pictures, encoder.image_size)
    return _unit(encoder.apply({"params": params}, pictures).projected)


@functools.partial(jax.jit, static_argnums=0)
def _text_features(encoder: Any, params: Any, tokens: jax.Array) -> jax.Array:
    return _unit(encoder.apply({"params": params}, tokens).projected)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
