"""The networks in whose features sets of images are compared, by name.

`load_features` makes a `FeatureNetwork` of a name; the metrics of features are in `evaluation`. The
networks of other projects are in `foreign_features`.
"""

import functools
import hashlib
import importlib
import importlib.resources
import io
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from ddpm_jax.annotations import name_of
from ddpm_jax.data.resizing import check_resizing, resized
from ddpm_jax.errors import UsageError, suggest
from ddpm_jax.evaluation.features import Extracted, FeatureNetwork
from ddpm_jax.measuring.feature_programs import batched
from ddpm_jax.measuring.foreign_features import (
    INCEPTION,
    Preparation,
    clip_features,
    dinov2_features,
    inception_features,
)
from ddpm_jax.models.digit_classifier import SIDE, DigitClassifier

FEATURES = {
    "inception": "Inception-v3 of 2015, 2,048 features: the FID's",
    "inception_768": "an earlier layer of it, averaged over pixels",
    "inception_192": "a still earlier one",
    "inception_64": "its first pooling",
    "dinov2": "DINOv2's vision transformer, 384 to 1,536 features: FD-DINOv2",
    "clip": "CLIP's image encoder, features of length 1: CMMD",
    "digits": "a small network that comes with the package, for 8x8 digits",
    "pixels": "the images themselves, on 0..1",
}
_FOREIGN = dict.fromkeys(INCEPTION, inception_features) | {
    "dinov2": dinov2_features,
    "clip": clip_features,
}
BATCH_SIZE = 32
# of red, green and blue in grey (ITU-R BT.601), as in Pillow's conversion
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
Shape = tuple[int, int, int]  # (H, W, C)
_BY_RESIZER = ", or bring them to that by resize, as in resize clean"
_FUNCTION = re.compile(r"[\w.]+:[\w.]+")


def load_features(
    name: str | Callable[[np.ndarray], Any],
    *,
    image_shape: Shape,
    weights: str | os.PathLike | None = None,
    resize: str | None = None,
    rounding: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> FeatureNetwork:
    """Return what computes the features of images; nothing compiles before its first call.

    Args:
      name: a key of `FEATURES`, or a function of the user's, which maps uint8 [N, H, W, C] to an
        array [N, D]: itself, or as "module:function", which is imported from the Python path.
      image_shape: (H, W, C) of all images to come.
      weights: of inception, dinov2 and clip: a file or a directory, here or in a bucket.
      resize: a key of `data.resizing.RESIZERS`; None for the network's own.
      rounding: a key of `data.resizing.ROUNDINGS`, after resizing; None for the network's own.
      batch_size: images that the devices compute at a time.

    Returns:
      the network; its record has the digest of the weights, and how images are resized and rounded.

    Raises:
      UsageError: an unknown name, resizer or rounding; weights that are missing, damaged or not the
        network's; images that it does not take; a function that cannot be imported, or whose
        result is no array [N, D].
    """
    if callable(name) or _FUNCTION.fullmatch(name):
        function, name = (name, name_of(name)) if callable(name) else (_imported(name), name)
        _refuse(name, weights=weights, resize=resize, rounding=rounding)
        return _of_function(name, function, image_shape, batch_size)
    if name not in FEATURES:
        raise UsageError(
            f"Unknown features {name!r}: choose one of {', '.join(FEATURES)}, or name a function "
            f"of yours, module:function.{suggest(name, FEATURES)}"
        )
    if name == "pixels":
        _refuse(name, weights=weights, resize=resize, rounding=rounding)
        return _pixels(image_shape)
    if name == "digits":
        _refuse(name, weights=weights)
        return _digits(image_shape, resize, rounding or "none", batch_size)
    preparation = Preparation(image_shape[2], resize, rounding, batch_size)
    return _FOREIGN[name](name, weights, preparation)


def _refuse(name: str, **settings: Any) -> None:
    """Refuse settings that these features do not have.

    Raises:
      UsageError: one of them is given.
    """
    for setting, value in settings.items():
        if value is not None:
            raise UsageError(
                f"{setting} is {str(value)!r}, but the features {name} have no {setting}: leave it "
                "out."
            )


def _pixels(image_shape: Shape) -> FeatureNetwork:
    def extract(images: np.ndarray) -> Extracted:
        return Extracted(images.reshape(len(images), -1).astype(np.float32) / 255)

    return FeatureNetwork("pixels", int(np.prod(image_shape)), extract, {"range": "0..1"})


@functools.lru_cache(maxsize=4)  # with its compiled program
def _digits(
    image_shape: Shape, resize: str | None, rounding: str, batch_size: int
) -> FeatureNetwork:
    if image_shape[2] not in (1, 3) or (resize is None and image_shape != (SIDE, SIDE, 1)):
        raise UsageError(
            f"The features digits are of grey images of {SIDE}x{SIDE} pixels, and these are "
            f"{'x'.join(map(str, image_shape))}: choose others, for example pixels"
            f"{_BY_RESIZER if image_shape[2] in (1, 3) else ''}."
        )
    check_resizing(resize or "clean", rounding)
    data = importlib.resources.files(__package__).joinpath("digit_features.npz").read_bytes()
    with np.load(io.BytesIO(data)) as arrays:
        params = {name: jnp.asarray(arrays[name], jnp.float32) for name in arrays.files}
    network = DigitClassifier()

    def apply(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return tuple(network.apply({"params": params}, x / 127.5 - 1.0))

    def prepare(images: np.ndarray) -> np.ndarray:
        grey = images if images.shape[-1] == 1 else (images @ LUMA)[..., None]
        return resized(grey, SIDE, resizer=resize or "clean", rounding=rounding)

    record = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "input_size": SIDE,
        "resizer": resize,
        "rounding": rounding,
    }
    if image_shape[2] == 3:
        record["grey"] = " + ".join(f"{w:g} {c}" for w, c in zip(LUMA, "RGB", strict=True))
    return FeatureNetwork(
        "digits",
        network.features,
        batched(
            apply,
            unflatten_dict(params, sep="/"),
            prepare,
            batch_size=batch_size,
        ),
        record,
        network.num_classes,
    )


def _of_function(
    name: str, function: Callable[[np.ndarray], Any], image_shape: Shape, batch_size: int
) -> FeatureNetwork:
    """Return the features of a function of the user's, called with batches of one size.

    Raises:
      UsageError: it does not map images as it should.
    """
    try:
        tried = function(np.zeros((batch_size, *image_shape), np.uint8))
    except Exception as error:
        raise UsageError(
            f"{name} fails on black images of shape {[batch_size, *image_shape]} "
            f"({type(error).__name__}: {error}): let it map uint8 [N, H, W, C] to numbers [N, D]."
        ) from error
    dims = _checked(name, tried, batch_size)

    def extract(images: np.ndarray) -> Extracted:
        parts = []
        for start in range(0, len(images), batch_size):
            rows = np.minimum(np.arange(start, start + batch_size), len(images) - 1)
            found = function(images[rows])
            if _checked(name, found, batch_size) != dims:
                raise UsageError(
                    f"{name} returned {np.shape(found)[1]} features where it returned {dims} "
                    "before: let it map every image to as many."
                )
            parts.append(np.asarray(found, np.float32))
        return Extracted(np.concatenate(parts)[: len(images)])

    return FeatureNetwork(name, dims, extract, {"function": name}, is_function=True)


def _imported(name: str) -> Callable[[np.ndarray], Any]:
    module, _, function = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"The features {name} cannot be imported ({error}): name a module on the Python path "
            "and a function in it, module:function."
        ) from error
    if not callable(found):
        raise UsageError(f"{name} is no function: name one that maps images to features.")
    return found


def _checked(name: str, found: Any, count: int) -> int:
    """Return D of features [count, D]; raise `UsageError` if they are none."""
    array = np.asarray(found)
    if array.ndim != 2 or len(array) != count or array.dtype.kind not in "fiu":
        raise UsageError(
            f"{name} returned {array.dtype} {list(array.shape)} for {count} images: let it return "
            f"numbers [{count}, D], a row of features for each image."
        )
    return array.shape[1]
