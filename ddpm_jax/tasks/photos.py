"""Pictures and masks that a user gives, read as the training data is read.

A picture is the name of a file, or an array: uint8 [H, W, C] or [H, W]. It is resized on its
shorter side to the model's size and cropped at the centre. Its mask, of the same size, is treated
alike, with nearest-neighbour interpolation. Editing itself is in `samplers.editing`. A first stage
may also be given pictures at their own size.
"""

import hashlib
import os
import pathlib
import sys
from typing import Any

import numpy as np
from PIL import Image

from ddpm_jax.data import images
from ddpm_jax.data.inspection import depth_notes
from ddpm_jax.errors import UsageError, say
from ddpm_jax.files import as_path, file_sha256, is_remote, reporting

Picture = str | os.PathLike | np.ndarray


def is_file(picture: Picture) -> bool:
    """Return whether a picture is given by the name of a file."""
    return isinstance(picture, str | os.PathLike)


def read_photo(name: str, picture: Picture, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Return a picture as training reads it: uint8 [H, W, C], resized until one side fits, cropped.

    Args:
      name: of the setting that gave it, for messages: "init_image".
      picture: a file in any format that Pillow reads, or uint8 [H, W, C] or [H, W]; its colours are
        converted.
      image_shape: (H, W, C) of the model.

    Raises:
      UsageError: no such file, no picture in it, or one smaller than the model's images.
    """
    *size, channels = image_shape
    image = _decode(name, picture)
    _check_size(name, picture, image.size, tuple(size))
    try:
        return images.to_array(image, image_size=tuple(size), channels=channels)
    except images.UnreadableImage as error:
        raise _unreadable(name, picture, error) from error


def describe_picture(name: str, picture: Picture) -> dict[str, str]:
    """Return the entries of a record about a picture: its name and its digest."""
    if is_file(picture):
        with reporting(picture, "read"):
            return {name: str(picture), f"{name}_sha256": file_sha256(picture)}
    pixels = np.ascontiguousarray(picture)
    said = f"{pixels.dtype.str}{pixels.shape}".encode()
    return {name: "array", f"{name}_sha256": hashlib.sha256(said + pixels.tobytes()).hexdigest()}


def read_whole_photo(name: str, path: Picture, *, multiple: int, channels: int) -> np.ndarray:
    """Return a picture at its own size, cropped at the centre: uint8 [H, W, channels].

    Height and width become multiples of `multiple`.

    Raises:
      UsageError: as `read_photo`.
    """
    image = _decode(name, path)
    _check_size(name, path, image.size, multiple)
    try:
        return images.to_whole_array(image, multiple=multiple, channels=channels)
    except images.UnreadableImage as error:
        raise _unreadable(name, path, error) from error


def check_photo(name: str, path: str | pathlib.Path, size: int) -> None:
    """Check a picture by its header alone: one of many that will be read later.

    Raises:
      UsageError: no such file, none that begins as a picture, or one whose shorter side is below
        `size`.
    """
    _check_there(name, path)
    try:
        found = images.header(path).size
    except images.UnreadableImage as error:
        raise _unreadable(name, path, error) from error
    _check_size(name, path, found, size)


def read_mask(
    name: str, mask: Picture, photo: Picture, image_shape: tuple[int, int, int]
) -> np.ndarray:
    """Return the mask of a picture: bool [H, W, 1], True where it is white, to be painted.

    Args:
      name: of the setting that gave the mask, for messages: "mask".
      mask: white (brighter than middle grey) or True is painted, black is kept. Transparent parts
        of a mask are kept, or painted if nothing of the rest is white: see `images.to_mask`.
      photo: the picture that it belongs to; it must have its width and height.
      image_shape: (H, W, C) of the model.

    Raises:
      UsageError: a file that is missing or no picture, sizes that differ or are below the model's,
        or a mask with nothing white, or nothing else, in the part of the picture that is used.
    """
    size = image_shape[:2]
    image, of_photo = _decode(name, mask), _decode(name, photo)
    if image.size != of_photo.size:
        raise UsageError(
            f"{name}: {_shown(mask)} is {_size(image.size)}, but {_shown(photo)} is "
            f"{_size(of_photo.size)}: give a mask of the picture's size, white where it is to be "
            "painted."
        )
    _check_size(name, mask, image.size, size)
    try:
        erased, white = images.is_erased(image), images.to_mask(image, image_size=size)
    except images.UnreadableImage as error:
        raise _unreadable(name, mask, error) from error
    _check_mask(name, mask, white)
    if erased:
        _warn(
            f"{name}: nothing white is to be seen in {_shown(mask)}, so its transparent parts are "
            "painted, as of a picture with parts erased; make strokes white to have them painted "
            "instead"
        )
    return white


def _check_mask(name: str, mask: Picture, white: np.ndarray) -> None:
    if not white.any():
        raise UsageError(
            f"{name}: {_shown(mask)} has nothing white in the part that the model sees, so nothing "
            "would be painted: make white what is to be painted."
        )
    if white.all():
        raise UsageError(
            f"{name}: {_shown(mask)} is white in all of the part that the model sees, so nothing "
            "of the picture would be kept: make black what is to be kept."
        )


def _decode(name: str, path: Picture) -> Image.Image:
    if not is_file(path):
        return _from_array(name, path)
    _check_there(name, path)
    try:
        image = images.decode(path)
    except images.UnreadableImage as error:
        raise _unreadable(name, path, error) from error
    for note in depth_notes([path] if image.mode.startswith("I;16") else []):
        _warn(f"{name}: {path}: {note}")
    return image


def _from_array(name: str, array: Any) -> Image.Image:
    array = np.asarray(array)
    if array.dtype == bool:
        array = np.uint8(255) * array
    array = array[..., None] if array.ndim == 2 else array
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        raise UsageError(
            f"{name} is an array of {array.dtype} {array.shape}: give uint8 [H, W, C] with 1, 3 or "
            "4 channels, [H, W] for grey, or the name of a file."
        )
    return images.from_array(np.ascontiguousarray(array))


def _shown(picture: Picture) -> str:
    return str(picture) if is_file(picture) else "the array"


def _warn(note: str) -> None:
    say(f"warning: {note}.", file=sys.stderr)


def _check_there(name: str, path: str | pathlib.Path) -> None:
    place = as_path(path)
    with reporting(place, "read"):
        there = place.exists() if is_remote(place) else place.is_file()
    if not there:
        raise UsageError(f"{name}: there is no file {path}.")


def _unreadable(name: str, path: Picture, error: Exception) -> UsageError:
    return UsageError(f"{name}: {_shown(path)} cannot be read: {error}.")


def _check_size(name: str, path: Picture, found: tuple[int, int], size: images.Size) -> None:
    if not images.fits(found, size):
        height, width = (size, size) if isinstance(size, int) else size
        raise UsageError(
            f"{name}: {_shown(path)} is {_size(found)}, but images of {width}x{height} are wanted "
            "and none is enlarged: give a larger one."
        )


def _size(found: tuple[int, int]) -> str:
    width, height = found
    return f"{width}x{height}"
