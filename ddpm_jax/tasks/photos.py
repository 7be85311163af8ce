"""Pictures and masks that a user names on the command line, read as the training data is read.

A picture of any size is brought to the model's on its shorter side and cropped at the centre; the
mask that belongs to it has its size and is treated alike, each pixel taking the nearest's value.
What is done with them is `samplers.editing`. A first stage may also be given pictures at their own
size.
"""

import pathlib
import sys

import numpy as np
from PIL import Image

from ddpm_jax.data import images
from ddpm_jax.data.inspection import depth_notes
from ddpm_jax.errors import UsageError, say
from ddpm_jax.files import as_path, file_sha256, is_remote, reporting


def read_photo(
    flag: str, path: str | pathlib.Path, image_shape: tuple[int, int, int]
) -> np.ndarray:
    """The picture as training reads it: colour converted, resized on its shorter side, cropped;
    uint8 [H, W, C].

    Args:
      flag: the one that named the file, for the message: "--init_image".
      path: of a file in any format that Pillow reads.
      image_shape: (H, W, C) of the model, H = W.

    Raises:
      UsageError: no such file, no picture in it, or one smaller than the model's images.
    """
    size, _, channels = image_shape
    image = _decode(flag, path)
    _check_size(flag, path, image.size, size)
    try:
        return images.to_array(image, image_size=size, channels=channels)
    except images.UnreadableImage as error:
        raise _unreadable(flag, path, error) from error


def named_file(flag: str, path: str | pathlib.Path) -> dict[str, str]:
    """What a record says of a file that was used: its name, and the SHA-256 that tells it from
    another of this name."""
    with reporting(path, "read"):
        return {flag: str(path), f"{flag}_sha256": file_sha256(path)}


def read_whole_photo(
    flag: str, path: str | pathlib.Path, *, multiple: int, channels: int
) -> np.ndarray:
    """The picture at its own size, cropped at the centre to multiples of a number: uint8 [H, W,
    channels].

    Raises:
      UsageError: as `read_photo`.
    """
    image = _decode(flag, path)
    _check_size(flag, path, image.size, multiple)
    try:
        return images.to_whole_array(image, multiple=multiple, channels=channels)
    except images.UnreadableImage as error:
        raise _unreadable(flag, path, error) from error


def check_photo(flag: str, path: str | pathlib.Path, size: int) -> None:
    """Looks at a picture's header alone: one of many that will be read when their turn comes.

    Raises:
      UsageError: no such file, none that begins as a picture, or one whose shorter side is below
        `size`.
    """
    _check_there(flag, path)
    try:
        found = images.header(path).size
    except images.UnreadableImage as error:
        raise _unreadable(flag, path, error) from error
    _check_size(flag, path, found, size)


def read_mask(
    flag: str,
    path: str | pathlib.Path,
    photo: str | pathlib.Path,
    image_shape: tuple[int, int, int],
) -> np.ndarray:
    """What is to be painted of a picture: bool [H, W, 1], True where the mask is white.

    Args:
      flag: the one that named the mask: "--mask".
      path: of the mask: white (brighter than middle grey) is painted, black is kept. Of a mask with
        transparent parts what is not to be seen is kept, or painted if nothing of the rest is
        white: see `images.to_mask`.
      photo: the file of the picture that it belongs to; it must have its width and height.
      image_shape: (H, W, C) of the model, H = W.

    Raises:
      UsageError: a file that is missing or no picture, sizes that differ or are below the model's,
        or a mask with nothing white, or nothing else, in the part of the picture that is used.
    """
    size = image_shape[0]
    mask, of_photo = _decode(flag, path), _decode(flag, photo)
    if mask.size != of_photo.size:
        raise UsageError(
            f"{flag}: {path} is {_size(mask.size)}, but {photo} is {_size(of_photo.size)}: give a "
            "mask of the picture's size, white where it is to be painted anew."
        )
    _check_size(flag, path, mask.size, size)
    try:
        erased, white = images.is_erased(mask), images.to_mask(mask, image_size=size)
    except images.UnreadableImage as error:
        raise _unreadable(flag, path, error) from error
    if not white.any():
        raise UsageError(
            f"{flag}: {path} has nothing white in the part that the model sees, so nothing would "
            "be painted anew: make white what is to be painted."
        )
    if white.all():
        raise UsageError(
            f"{flag}: {path} is white in all of the part that the model sees, so nothing of the "
            "picture would be kept: make black what is to be kept."
        )
    if erased:
        _warn(
            f"{flag}: nothing white is to be seen in {path}, so its transparent parts are painted, "
            "as of a picture with parts erased; make strokes white to have them painted instead"
        )
    return white


def _decode(flag: str, path: str | pathlib.Path) -> Image.Image:
    _check_there(flag, path)
    try:
        image = images.decode(path)
    except images.UnreadableImage as error:
        raise _unreadable(flag, path, error) from error
    for note in depth_notes([path] if image.mode.startswith("I;16") else []):
        _warn(f"{flag}: {path}: {note}")
    return image


def _warn(note: str) -> None:
    say(f"warning: {note}.", file=sys.stderr)


def _check_there(flag: str, path: str | pathlib.Path) -> None:
    place = as_path(path)
    with reporting(place, "read"):
        there = place.exists() if is_remote(place) else place.is_file()
    if not there:
        raise UsageError(f"{flag}: there is no file {path}.")


def _unreadable(flag: str, path: str | pathlib.Path, error: Exception) -> UsageError:
    return UsageError(f"{flag}: {path} cannot be read: {error}.")


def _check_size(flag: str, path: str | pathlib.Path, found: tuple[int, int], size: int) -> None:
    if min(found) < size:
        raise UsageError(
            f"{flag}: {path} is {_size(found)}, but images of {size}x{size} are wanted and none is "
            "enlarged: give a larger one."
        )


def _size(found: tuple[int, int]) -> str:
    width, height = found
    return f"{width}x{height}"
