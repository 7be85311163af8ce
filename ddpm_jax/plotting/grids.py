"""uint8 images -> one picture: grids of samples, strips and animations of the reverse chain.

Everything takes and returns uint8 arrays with the channels last, 1 channel (grey) or 3 (RGB). Going
from the model's [-1, 1] to uint8 belongs to the samplers; curves of numbers belong to `curves`.
"""

import functools
import io
import math
import os
from collections.abc import Mapping, Sequence

import chex
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddpm_jax.files import write_atomically

BACKGROUND = 255
_TITLE_HEIGHT = 22  # pixels
_GAP = 16  # pixels between pictures side by side
_LABEL = 11  # pixels, font size of labels
_GIF_FASTEST_MS = 20  # viewers play shorter frames at 100 ms per frame


def enlarge(images: np.ndarray, min_pixels: int) -> np.ndarray:
    """Repeat pixels until the shorter side has at least `min_pixels`.

    Args:
      images: [..., H, W, C].
      min_pixels: least length of the shorter side.

    Returns:
      [..., kH, kW, C] with the smallest integer k that suffices, 1 for large images: every pixel
      stays a square.
    """
    factor = max(1, math.ceil(min_pixels / min(images.shape[-3:-1])))
    return images.repeat(factor, axis=-3).repeat(factor, axis=-2)


def grid(
    images: np.ndarray, columns: int | None = None, *, pad: int = 2, min_pixels: int = 64
) -> np.ndarray:
    """Lay images out row by row.

    Args:
      images: uint8 [N, H, W, C], C = 1 or 3, N >= 1.
      columns: images in a row; by default the smallest square that holds all of them.
      pad: white pixels around every image, in pixels of the result.
      min_pixels: smaller images are enlarged by an integer factor to at least this size, so that
        they can be seen.

    Returns:
      uint8 [H', W', C]; cells without an image are white.
    """
    _check_images(images, rank=4)
    images = enlarge(images, min_pixels)
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    canvas = np.full(
        (rows * (height + pad) + pad, columns * (width + pad) + pad, channels), BACKGROUND, np.uint8
    )
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        top, left = pad + row * (height + pad), pad + column * (width + pad)
        canvas[top : top + height, left : left + width] = image
    return canvas


def with_labels(
    picture: np.ndarray, *, columns: Sequence[str] = (), rows: Sequence[str] = ()
) -> np.ndarray:
    """Write labels above the equally wide columns of a grid, or before its equally high rows.

    Args:
      picture: uint8 [H, W, C].
      columns: one label for each column, truncated to its width; or none.
      rows: one label for each row, truncated to a quarter of the width, but at least 48 pixels; or
        none.

    Returns:
      uint8 [H', W', C].
    """
    _check_images(picture, rank=3)
    if not columns and not rows:
        return picture
    height, width, channels = picture.shape
    strip, font = Image.new("L", (width, _TITLE_HEIGHT if columns else 0), BACKGROUND), _font()
    for i, label in enumerate(columns):
        centre = ((i + 0.5) * width / len(columns), _TITLE_HEIGHT / 2)
        text = _truncate(label, font, width / len(columns) - 4)
        ImageDraw.Draw(strip).text(centre, text, fill=0, anchor="mm", font=font)
    picture = np.concatenate([_grey(strip, channels), picture])
    widest = max(48, width // 4)
    texts = [_truncate(label, font, widest) for label in rows]
    side = Image.new(
        "L", (round(max(map(font.getlength, texts))) + 8 if texts else 0, len(picture)), BACKGROUND
    )
    for i, text in enumerate(texts):
        middle = strip.height + (i + 0.5) * height / len(rows)
        ImageDraw.Draw(side).text((side.width - 4, middle), text, fill=0, anchor="rm", font=font)
    return np.concatenate([_grey(side, channels), picture], axis=1)


def next_to_originals(
    originals: Mapping[str, np.ndarray], picture: np.ndarray, *, title: str
) -> np.ndarray:
    """Put the images that a grid was made from to its left, each under its name.

    Args:
      originals: name -> uint8 [h, w, C], enlarged as in `grid`.
      picture: the grid, uint8 [H, W, C].
      title: written above the grid.

    Returns:
      uint8 [H', W', C].
    """
    _check_images(picture, rank=3)
    parts = [with_labels(grid(image[None], 1), columns=[name]) for name, image in originals.items()]
    before = np.concatenate(
        [_pad_to(part, width=max(part.shape[1] for part in parts)) for part in parts]
    )
    needed = math.ceil(_font().getlength(title)) + 8
    picture = with_labels(_pad_to(picture, width=max(picture.shape[1], needed)), columns=[title])
    height = max(len(before), len(picture))
    gap = np.full((height, _GAP, picture.shape[-1]), BACKGROUND, np.uint8)
    return np.concatenate(
        [_pad_to(before, height=height), gap, _pad_to(picture, height=height)], axis=1
    )


def _pad_to(picture: np.ndarray, *, height: int = 0, width: int = 0) -> np.ndarray:
    """Pad the picture with white on the right and below, up to a size."""
    below, right = max(0, height - picture.shape[0]), max(0, width - picture.shape[1])
    return np.pad(picture, ((0, below), (0, right), (0, 0)), constant_values=BACKGROUND)


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    """Return the font that comes with matplotlib: Pillow's own has no Greek letters."""
    import matplotlib

    return ImageFont.truetype(
        os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), _LABEL
    )


def _truncate(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Return the text, shortened with an ellipsis to fit into a width in pixels."""
    if font.getlength(text) <= width:
        return text
    kept = next(
        (n for n in range(len(text) - 1, 0, -1) if font.getlength(f"{text[:n]}…") <= width), 0
    )
    return f"{text[:kept]}…" if kept else ""


def _grey(image: Image.Image, channels: int) -> np.ndarray:
    return np.asarray(image).reshape(image.height, image.width, 1).repeat(channels, axis=-1)


def side_by_side(pictures: Mapping[str, np.ndarray], *, gap: int = _GAP) -> np.ndarray:
    """Put pictures side by side, each under its title.

    Args:
      pictures: title -> uint8 [H, W, C], all of the same shape.
      gap: white pixels between them.

    Returns:
      uint8 [H', W', C].
    """
    parts = []
    for title, picture in pictures.items():
        _check_images(picture, rank=3)
        height, width, channels = picture.shape
        if parts:
            parts.append(np.full((height + _TITLE_HEIGHT, gap, channels), BACKGROUND, np.uint8))
        strip = Image.new("L", (width, _TITLE_HEIGHT), BACKGROUND)
        ImageDraw.Draw(strip).text(
            (width // 2, _TITLE_HEIGHT // 2), title, fill=0, anchor="mm", font_size=14
        )
        parts.append(
            np.concatenate([np.asarray(strip)[..., None].repeat(channels, axis=-1), picture])
        )
    return np.concatenate(parts, axis=1)


def chain_strip(
    frames: np.ndarray, *, max_columns: int = 12, pad: int = 2, min_pixels: int = 64
) -> np.ndarray:
    """Lay out one row per sample, from noise on the left to the image on the right.

    Args:
      frames: uint8 [F, N, H, W, C], the N samples at F moments of the reverse chain, noise first.
      max_columns: if there are more frames, evenly spaced ones are shown, including the first and
        the last.
      pad: as in `grid`.
      min_pixels: as in `grid`.

    Returns:
      uint8 [H', W', C].
    """
    return _rows([frames], max_columns=max_columns, pad=pad, min_pixels=min_pixels)


def chain_pairs(
    x_t: np.ndarray,
    x_0: np.ndarray,
    *,
    moments: Sequence[str] = (),
    rows: Sequence[str] = (),
    max_columns: int = 12,
    pad: int = 2,
    min_pixels: int = 64,
) -> np.ndarray:
    """Lay out two rows per sample: x_t above, the x_0 predicted from it below.

    Samples are separated by a wider gap.

    Args:
      x_t: uint8 [F, N, H, W, C], noise first.
      x_0: uint8 [F, N, H, W, C], the prediction from the x_t at the same index.
      moments: a label for each of the F frames, written above those shown; or none.
      rows: labels of the rows of x_t and x_0; or none.
      max_columns: as in `chain_strip`.
      pad: as in `grid`.
      min_pixels: as in `grid`.

    Returns:
      uint8 [H', W', C].
    """
    chex.assert_equal_shape([x_t, x_0])
    return _rows([x_t, x_0], moments, rows, max_columns=max_columns, pad=pad, min_pixels=min_pixels)


def _rows(
    chains: Sequence[np.ndarray],
    moments: Sequence[str] = (),
    rows: Sequence[str] = (),
    *,
    max_columns: int,
    pad: int,
    min_pixels: int,
) -> np.ndarray:
    for frames in chains:
        _check_images(frames, rank=5)
    count = len(chains[0])
    columns = min(count, max_columns)
    shown = np.round(np.linspace(count - 1, 0, columns)).astype(int)[::-1]
    blocks = []
    over = [moments[i] for i in shown] if moments else []
    for sample in range(chains[0].shape[1]):
        if blocks and len(chains) > 1:
            blocks.append(np.full((4 * pad, *blocks[0].shape[1:]), BACKGROUND, np.uint8))
        images = np.concatenate([frames[shown, sample] for frames in chains])
        block = grid(images, columns, pad=pad, min_pixels=min_pixels)
        # Every block has an upper and a lower margin; neighbours share one of them.
        block = block[pad:] if blocks else block
        blocks.append(with_labels(block, columns=[] if blocks else over, rows=rows))
    return np.concatenate(blocks)


def save_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write uint8 [H, W, C] as a PNG, whole or not at all, creating parent folders."""
    _check_images(image, rank=3)
    buffer = io.BytesIO()
    _to_pil(image).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def save_gif(
    path: str | os.PathLike, frames: np.ndarray, fps: float, *, hold_seconds: float = 1.5
) -> None:
    """Write frames as an endlessly repeated GIF, whole or not at all, creating parent folders.

    Args:
      path: of the GIF.
      frames: uint8 [F, H, W, C], F >= 1. Grey is kept exactly, colours are reduced to 256 per
        frame.
      fps: frames per second; GIF counts in hundredths of a second and viewers play at most 50.
      hold_seconds: how long the last frame, the finished image, is shown before the animation
        restarts.
    """
    _check_images(frames, rank=4)
    duration = max(_GIF_FASTEST_MS, 10 * round(100 / fps))
    durations = [duration] * (len(frames) - 1) + [duration + round(1000 * hold_seconds)]
    pictures = [_to_gif_frame(frame) for frame in frames]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0,
        optimize=False,
    )
    write_atomically(path, buffer.getvalue())


def _to_gif_frame(frame: np.ndarray) -> Image.Image:
    picture = _to_pil(frame)
    if picture.mode == "L":
        return picture
    # No dithering: its pattern changes from frame to frame and flickers on flat areas.
    return picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def _to_pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _check_images(images: np.ndarray, *, rank: int) -> None:
    chex.assert_type(images, np.uint8)
    chex.assert_rank(images, rank)
    if images.size == 0 or images.shape[-1] not in (1, 3):
        raise ValueError(
            "Expected at least one image of 1 or 3 channels, channels last, got the shape "
            f"{images.shape}."
        )
