"""One picture -> uint8 [image_size, image_size, channels], the whole picture, or a mask.

Resizing is done as in the code of Dhariwal & Nichol (2021, arXiv:2105.05233), which much of the
field has adopted, so that statistics of the data agree: the picture is halved with a box filter
while its shorter side is at least twice the target, resized to the target with an antialiased
bicubic filter, and cropped at the centre. Nothing is enlarged unless requested.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ddpm_jax.errors import FailureError
from ddpm_jax.files import NotAFile, as_path, is_remote, open_file, reporting

RESIZING = "halved by a box filter, then bicubic"  # of `to_array`, for records
_MIDDLE_GREY = 127  # brighter pixels are white in a mask
MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's name
Size = int | tuple[int, int]  # (H, W) in pixels, or the one number that both are


class UnreadableImage(Exception):
    """The bytes are not a picture that can be decoded.

    The caller knows which file or record it was and says so.
    """


class Header(NamedTuple):
    """The fields of a picture's header."""

    size: tuple[int, int]  # (width, height)
    mode: str  # Pillow's name of the kind of pixels


def decode(file: str | os.PathLike | bytes) -> Image.Image:
    """Return the picture in `file` (a path, or encoded bytes), decoded and turned upright by EXIF.

    Of an animation the first frame is taken.

    Raises:
      UnreadableImage: the file is missing, not an image, truncated or corrupt.
      FailureError: its bucket refuses access or does not answer.
    """
    try:
        with _opened(file) as opened, Image.open(opened) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image
    except (MemoryError, UnreadableImage, FailureError):
        raise
    # On damaged files Pillow raises whatever its parsers raise: OSError, struct.error ...
    except Exception as error:
        raise UnreadableImage(_reason(error)) from error


def header(path: str | os.PathLike) -> Header:
    """Read the header without decoding the picture.

    Raises:
      UnreadableImage: the file is missing or does not start as an image; truncation further on goes
        unnoticed.
      FailureError: as `decode`.
    """
    try:
        with _opened(path) as opened, Image.open(opened) as image:
            return Header(image.size, image.mode)
    except (MemoryError, UnreadableImage, FailureError):
        raise
    except Exception as error:  # as in `decode`
        raise UnreadableImage(_reason(error)) from error


def largest_value(path: str | os.PathLike) -> int:
    """Return the largest value of a picture of one channel, of 8 or 16 bits.

    Raises:
      UnreadableImage, FailureError: as `decode`.
    """
    return int(np.asarray(decode(path)).max())


def format_size(size: tuple[int, int]) -> str:
    """Format (width, height) as in 640x480."""
    return f"{size[0]}x{size[1]}"


@contextlib.contextmanager
def _opened(file: str | os.PathLike | bytes) -> Iterator[BinaryIO]:
    """Yield a stream that Pillow can read; a bucket that does not answer is no damage."""
    if isinstance(file, bytes):
        yield io.BytesIO(file)
    elif is_remote(file):
        with reporting(file, "read"):
            try:
                data = as_path(file).read_bytes()
            except FileNotFoundError:
                raise UnreadableImage("there is no such object") from None
        yield io.BytesIO(data)
    else:
        try:
            stream = open_file(file)
        except NotAFile as error:
            raise UnreadableImage(f"it is {error} and no file") from None
        with stream:
            yield stream


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in a format that Pillow reads"
    if isinstance(error, Image.DecompressionBombError):
        limit = f"{2 * Image.MAX_IMAGE_PIXELS:,}"
        return f"its header tells of more than the {limit} pixels that Pillow takes"
    return str(error).rstrip(".") or type(error).__name__


def from_array(array: np.ndarray) -> Image.Image:
    """Return uint8 [H, W, C], C of 1, 3 or 4, or uint16 [H, W, 1], as a picture."""
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def to_array(
    image: Image.Image, *, image_size: Size, channels: int, enlarge: bool = False
) -> np.ndarray:
    """Return the picture as uint8 [H, W, channels], resized and cropped at the centre.

    Args:
      image: any Pillow mode. Transparency is composited over white; 16-bit grey is scaled by
        255/65535 and rounded; palettes, CMYK and the like become RGB. Grey becomes RGB by
        repetition, RGB becomes grey by ITU-R 601 luma.
      image_size: H and W, or the one number that both are; at most the picture's own.
      channels: 1 or 3.
      enlarge: whether a smaller picture is enlarged bicubically.

    Raises:
      UnreadableImage: floating-point or 32-bit pixels, whose range is not known.
      ValueError: the picture is smaller than `image_size`, and `enlarge` is False.
    """
    if not (enlarge or fits(image.size, image_size)):
        raise ValueError(f"{image.size} is smaller than {image_size}")
    return _pixels(_fitted(_to_mode(image, MODES[channels]), image_size), channels)


def fits(size: tuple[int, int], image_size: Size) -> bool:
    """Return whether a picture of (width, height) is at least as large as `image_size`."""
    return size[1] >= _sides(image_size)[0] and size[0] >= _sides(image_size)[1]


def _sides(image_size: Size) -> tuple[int, int]:
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def to_whole_array(image: Image.Image, *, multiple: int, channels: int) -> np.ndarray:
    """Return uint8 [H, W, channels], cropped at the centre to multiples of `multiple`.

    Args:
      image: as in `to_array`.
      multiple: divisor of both sides of the result; at most the shorter side of the picture.
      channels: 1 or 3.

    Raises:
      UnreadableImage: floating-point or 32-bit pixels.
      ValueError: the picture is smaller than `multiple`.
    """
    if min(image.size) < multiple:
        raise ValueError(f"{image.size} is smaller than {multiple}")
    width, height = (side // multiple * multiple for side in image.size)
    return _pixels(_centre_crop(_to_mode(image, MODES[channels]), width, height), channels)


def _pixels(image: Image.Image, channels: int) -> np.ndarray:
    array = np.asarray(image)
    return array[..., None] if channels == 1 else array


def to_mask(image: Image.Image, *, image_size: Size) -> np.ndarray:
    """Return bool [H, W, 1], True where the picture is white.

    It is shrunk and cropped as in `to_array`, but by taking the nearest pixel instead of mixing
    pixels, so a stroke much thinner than a pixel of the result may be lost. White is brighter than
    middle grey. Transparency is composited over black, so that white strokes on a transparent layer
    are white; a picture without a white pixel then is composited over white: its erased parts are
    the mask.

    Args:
      image: any Pillow mode.
      image_size: as in `to_array`.

    Raises:
      UnreadableImage: floating-point or 32-bit pixels.
      ValueError: the picture is smaller than `image_size`.
    """
    if not fits(image.size, image_size):
        raise ValueError(f"{image.size} is smaller than {image_size}")
    nearest = Image.Resampling.NEAREST
    image = _fitted(_mask_in_grey(image), image_size, halve=nearest, fit=nearest)
    return (np.asarray(image) > _MIDDLE_GREY)[..., None]


def is_erased(mask: Image.Image) -> bool:
    """Return whether the mask is the transparent parts of the picture, none of it being white."""
    over_black, over_white = (_to_mode(mask, "L", background=of) for of in ("black", "white"))
    return np.asarray(over_black).max() <= _MIDDLE_GREY < np.asarray(over_white).max()


def _mask_in_grey(image: Image.Image) -> Image.Image:
    return _to_mode(image, "L", background="white" if is_erased(image) else "black")


def _to_mode(image: Image.Image, mode: str, *, background: str = "white") -> Image.Image:
    if image.mode == "F":
        raise UnreadableImage("its pixels are floating-point numbers of unknown range")
    if image.mode.startswith("I"):
        image = _from_16_bit(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image if image.mode == mode else image.convert(mode)


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImage("its pixels are 32-bit integers of unknown range")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _fitted(
    image: Image.Image,
    image_size: Size,
    *,
    halve: Image.Resampling = Image.Resampling.BOX,
    fit: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Resize until one side fits, keeping the aspect ratio to the nearest pixel; crop the other."""
    height, width = _sides(image_size)
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), halve)
    scale = max(height / image.height, width / image.width)
    if scale != 1:
        image = image.resize(tuple(round(side * scale) for side in image.size), fit)
    return _centre_crop(image, width, height)


def _centre_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
