"""One picture at a time, against hand-computed pixels and plain NumPy."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import images


def _encoded(image, format="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _array(image, *, image_size, channels=3):
    return images.to_array(images.decode(_encoded(image)), image_size=image_size, channels=channels)


def _noise(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def test_an_rgb_image_of_the_right_size_comes_back_untouched():
    pixels = _noise(6, 6)
    np.testing.assert_array_equal(_array(Image.fromarray(pixels), image_size=6), pixels)


def test_grey_becomes_rgb_by_repetition():
    pixels = _noise(6, 6, 1)
    np.testing.assert_array_equal(
        _array(Image.fromarray(pixels[..., 0]), image_size=6), np.repeat(pixels, 3, axis=-1)
    )


def test_rgb_becomes_grey_by_rec_601_luma():
    pixels = _noise(6, 6)
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    grey = _array(Image.fromarray(pixels), image_size=6, channels=1)
    assert grey.shape == (6, 6, 1)
    # rounding, and Pillow's 16-bit fixed-point weights
    assert np.abs(grey[..., 0] - luma).max() <= 0.51


def test_transparency_is_laid_over_white():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    rgba[1, 1] = (255, 0, 0, 51)  # a fifth of red over white
    pixels = _array(Image.fromarray(rgba), image_size=2)
    np.testing.assert_array_equal(pixels[0, 0], (10, 20, 30))
    np.testing.assert_array_equal(pixels[0, 1], (255, 255, 255))
    np.testing.assert_array_equal(pixels[1, 1], (255, 204, 204))


def test_palette_images_show_their_colours_and_their_transparent_entry_shows_white():
    image = Image.new("P", (2, 1))
    image.putpalette([1, 2, 3, 200, 100, 50])
    image.putdata([0, 1])
    twice = image.resize((2, 2), Image.Resampling.NEAREST)
    plain = images.to_array(images.decode(_encoded(twice)), image_size=2, channels=3)
    clear = images.to_array(
        images.decode(_encoded(twice, transparency=0)), image_size=2, channels=3
    )
    np.testing.assert_array_equal(plain[0], [(1, 2, 3), (200, 100, 50)])
    np.testing.assert_array_equal(clear[0], [(255, 255, 255), (200, 100, 50)])


def test_16_bit_grey_is_scaled_by_257_and_rounded():
    values = np.array([[0, 128], [129, 65535]], np.uint16)
    pixels = _array(Image.fromarray(values), image_size=2, channels=1)
    np.testing.assert_array_equal(pixels[..., 0], [[0, 0], [1, 255]])  # 128/257 < 1/2 < 129/257


@pytest.mark.parametrize("mode", ["1", "CMYK", "LAB", "LA"])
def test_other_modes_become_rgb(mode):
    image = Image.new("L", (2, 2), 255).convert("RGB" if mode in ("CMYK", "LAB") else mode)
    if mode == "LAB":
        image = Image.new("LAB", (2, 2), (255, 128, 128))
    data = _encoded(image.convert(mode) if mode == "CMYK" else image, "TIFF")
    pixels = images.to_array(images.decode(data), image_size=2, channels=3)
    assert pixels.shape == (2, 2, 3)
    assert pixels.min() >= 254  # all of these are white


@pytest.mark.parametrize(
    "values",
    [np.ones((2, 2), np.float32), np.full((2, 2), 70000, np.int32), np.full((2, 2), -1, np.int32)],
)
def test_pixels_of_unknown_range_are_refused(values):
    with pytest.raises(images.UnreadableImage, match="unknown range"):
        images.to_array(
            images.decode(_encoded(Image.fromarray(values), "TIFF")), image_size=2, channels=1
        )


def test_the_exif_orientation_is_applied():
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, 8:] = 255  # right half white
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image = images.decode(_encoded(Image.fromarray(pixels), exif=exif))
    np.testing.assert_array_equal(np.asarray(image), np.rot90(pixels, -1))


def test_halving_is_the_mean_of_two_by_two_pixels():
    pixels = _noise(16, 16)
    means = pixels.reshape(8, 2, 8, 2, 3).mean(axis=(1, 3))
    assert (
        np.abs(_array(Image.fromarray(pixels), image_size=8) - means).max() <= 1.0
    )  # Pillow rounds twice, along each axis


def test_an_image_is_quartered_by_halving_twice():
    pixels = _noise(16, 16)
    means = pixels.reshape(4, 4, 4, 4, 3).mean(axis=(1, 3))
    # rounded four times
    assert np.abs(_array(Image.fromarray(pixels), image_size=4) - means).max() <= 2.0


def test_shrinking_does_not_alias():
    """A checkerboard is grey from afar; without antialiasing stripes would appear."""
    board = (np.indices((33, 33)).sum(0) % 2 * 255).astype(np.uint8)
    shrunk = _array(Image.fromarray(board), image_size=17, channels=1).astype(float)
    assert np.abs(shrunk[2:-2, 2:-2] - 127.5).max() < 40


@pytest.mark.parametrize(("height", "width"), [(8, 20), (20, 8), (16, 40), (8, 8), (13, 11)])
def test_the_centre_is_kept_and_the_aspect_ratio_too(height, width):
    """On a linear ramp: the middle stays in the middle, the slope is the shorter side's."""
    ramp = np.tile(np.linspace(0, 255, width), (height, 1)).round().astype(np.uint8)
    row = _array(Image.fromarray(ramp), image_size=8, channels=1)[4, :, 0].astype(float)
    slope = 255 / (width - 1) * min(height, width) / 8
    # at most half a pixel off, where the margins are uneven
    assert abs(row[2:6].mean() - 127.5) <= slope / 2 + 1
    np.testing.assert_allclose(np.diff(row)[2:5].mean(), slope, atol=1.5)


def test_a_picture_is_whole_but_for_what_is_over_a_multiple_on_both_sides():
    pixels = _noise(9, 15)
    whole = images.to_whole_array(Image.fromarray(pixels), multiple=4, channels=3)
    np.testing.assert_array_equal(whole, pixels[0:8, 1:13])
    assert images.to_whole_array(Image.fromarray(pixels), multiple=3, channels=1).shape == (
        9,
        15,
        1,
    )
    with pytest.raises(ValueError, match="smaller than 10"):
        images.to_whole_array(Image.fromarray(pixels), multiple=10, channels=3)


def test_nothing_is_enlarged():
    with pytest.raises(ValueError, match="smaller"):
        _array(Image.fromarray(_noise(4, 9)), image_size=8)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_damaged_files_are_unreadable(damage, format):
    data = _encoded(Image.fromarray(_noise(64, 64)), format)
    data = {
        "truncated": data[: len(data) // 2],
        "garbage": b"<html>not found</html>",
        "empty": b"",
    }[damage]
    with pytest.raises(images.UnreadableImage):
        images.decode(data)


def test_a_header_of_more_pixels_than_memory_is_refused_before_they_are_decoded():
    """A PNG of a few hundred bytes whose header, with its right checksum, tells of 10^10 pixels."""
    encoded = _encoded(Image.fromarray(_noise(6, 6)))
    header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + encoded[24:29]
    bomb = encoded[:12] + header + struct.pack(">I", zlib.crc32(header)) + encoded[33:]
    for read in (images.decode, images.header):
        with pytest.raises(
            images.UnreadableImage, match="more than the 178,956,970 pixels that Pillow takes"
        ):
            read(bomb)


def test_height_and_width_may_differ():
    """A picture of 4 rows and 12 columns, made 2 high and 4 wide: halved, and cropped at the sides."""
    pixels = np.repeat(np.arange(12, dtype=np.uint8)[None] * 20, 4, axis=0)
    picture = images.from_array(pixels[..., None])
    found = images.to_array(picture, image_size=(2, 4), channels=1)
    np.testing.assert_array_equal(found[..., 0], [[50, 90, 130, 170]] * 2)
    white = images.to_mask(picture, image_size=(2, 4))
    assert white.shape == (2, 4, 1)
    with pytest.raises(ValueError, match="smaller"):
        images.to_array(picture, image_size=(5, 4), channels=1)
