"""Photographs and masks that a user names: brought to the model's size together, and refused with
one sentence."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import images
from ddpm_jax.errors import UsageError
from ddpm_jax.tasks.photos import read_mask, read_photo

MODEL = (8, 8, 3)


@pytest.fixture
def save(tmp_path):
    """save(name, array uint8) -> path."""

    def write(name, pixels, **options):
        Image.fromarray(pixels).save(tmp_path / name, **options)
        return tmp_path / name

    return write


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def rectangle(height, width, top, bottom, left, right):
    """White within, black without."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[top:bottom, left:right] = 255
    return pixels


def test_a_photo_of_any_size_is_read_as_the_training_data(save):
    path = save("photo.png", noise(37, 50))
    expected = images.to_array(images.decode(path), image_size=8, channels=3)
    np.testing.assert_array_equal(read_photo("--init_image", path, MODEL), expected)
    assert read_photo("--init_image", str(path), (8, 8, 1)).shape == (8, 8, 1)


def test_white_is_painted_anew_and_the_mask_is_shrunk_and_cropped_like_the_photo(save):
    """32x48: halved twice to 8x12, whose columns 2..9 are seen; so a mask in rows 8..15, columns
    16..31 is 2x4."""
    photo = save("photo.png", noise(32, 48))
    mask = read_mask("--mask", save("mask.png", rectangle(32, 48, 8, 16, 16, 32)), photo, MODEL)
    assert mask.dtype == bool
    expected = np.zeros((8, 8, 1), bool)
    expected[2:4, 2:6] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("size", [(8, 8), (8, 13), (11, 9), (37, 50), (64, 64), (100, 31)])
def test_the_mask_lies_where_the_photo_shows_what_it_covers(save, size):
    """A photo that is white where its mask is: both shrink to the same place, to the pixels of the
    edge."""
    pixels = rectangle(*size, size[0] // 4, size[0] // 2, size[1] // 3, 2 * size[1] // 3)
    path = save("both.png", pixels)
    photo = read_photo("--inpaint", path, (8, 8, 1))
    mask = read_mask("--mask", path, path, (8, 8, 1))
    assert np.all(mask[photo > 250])
    assert not np.any(mask[photo < 5])


def test_the_pixels_of_a_mask_are_chosen_and_not_mixed():
    """White at one of every four pixels: halved, all of them or none, by where it is. A mean would
    be dark for all."""
    pixels = np.zeros((4, 16, 16), np.uint8)
    for phase in range(4):
        pixels[phase, phase // 2 :: 2, phase % 2 :: 2] = 255
    shares = [images.to_mask(Image.fromarray(of_phase), image_size=8).mean() for of_phase in pixels]
    assert sorted(shares) == [0, 0, 0, 1]


def test_a_mask_is_a_choice_at_middle_grey_in_any_mode(save):
    grey = np.zeros((8, 8), np.uint8)
    grey[0] = np.arange(124, 132)
    photo = save("photo.png", noise(8, 8))
    expected = np.arange(124, 132) > 127
    np.testing.assert_array_equal(
        read_mask("--mask", save("grey.png", grey), photo, MODEL)[0, :, 0], expected
    )
    colour = np.repeat(grey[..., None], 3, axis=-1)
    np.testing.assert_array_equal(
        read_mask("--mask", save("rgb.png", colour), photo, MODEL)[0, :, 0], expected
    )
    # black, but not to be seen
    clear = np.dstack([0 * colour, np.where(grey > 127, 0, 255).astype(np.uint8)])
    np.testing.assert_array_equal(
        read_mask("--mask", save("clear.png", clear), photo, MODEL)[0, :, 0], expected
    )
    two_levels = Image.fromarray(grey > 127)
    two_levels.save(save("two.png", grey))
    np.testing.assert_array_equal(
        read_mask("--mask", photo.parent / "two.png", photo, MODEL)[0, :, 0], expected
    )


@pytest.mark.parametrize("hidden", [0, 255])
def test_of_white_strokes_on_a_transparent_layer_the_strokes_are_painted(save, hidden):
    """Whatever colour the transparent pixels have, which nobody sees."""
    photo = save("photo.png", noise(8, 8))
    layer = np.full((8, 8, 4), hidden, np.uint8)
    layer[..., 3] = 0
    layer[2:5, 3] = 255
    # a soft edge: half of it and more is white
    layer[6, :, :3], layer[6, :, 3] = 255, np.arange(0, 256, 32)
    expected = np.zeros((8, 8), bool)
    expected[2:5, 3] = True
    expected[6] = np.arange(0, 256, 32) > 127
    np.testing.assert_array_equal(
        read_mask("--mask", save("layer.png", layer), photo, MODEL)[..., 0], expected
    )


def test_a_mask_says_when_its_transparent_parts_are_taken_for_what_is_painted(save, capsys):
    photo, layer = save("photo.png", noise(8, 8)), np.zeros((8, 8, 4), np.uint8)
    layer[2:5, 3, 3] = 255  # strokes nobody would call white
    for colour, complaint in ((255, ""), (0, "warning: --mask: nothing white is to be seen in ")):
        layer[..., :3] = colour
        read_mask("--mask", save("layer.png", layer), photo, MODEL)
        told = capsys.readouterr().err
        assert told.startswith(complaint)
        assert bool(told) == bool(complaint)


def test_a_photo_of_12_bits_in_a_file_of_16_is_told(save, capsys):
    pixels = np.full((8, 8), 4095, np.uint16)
    read_photo("--init_image", save("deep.png", pixels), MODEL)
    assert "1 image has 16 bits, but no value above 4095 in 1" in capsys.readouterr().err
    read_photo("--init_image", save("whole.png", pixels * 16), MODEL)
    assert not capsys.readouterr().err


def test_a_photo_that_a_camera_turned_and_its_mask_are_compared_upright(save):
    """Orientation 6: stored lying, shown standing."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = save("photo.jpg", noise(16, 24), exif=exif)
    standing = save("standing.png", rectangle(24, 16, 6, 24, 0, 16))
    assert read_mask("--mask", standing, photo, MODEL)[1:].all()
    lying = save("lying.png", rectangle(16, 24, 0, 16, 0, 24))
    with pytest.raises(UsageError, match=r"lying\.png is 24x16, but .*photo\.jpg is 16x24"):
        read_mask("--mask", lying, photo, MODEL)


def test_a_photo_that_cannot_be_used_is_refused(save, tmp_path):
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for path, complaint in (
        (tmp_path / "none.png", r"^--init_image: there is no file .*none\.png\.$"),
        (tmp_path, "^--init_image: there is no file"),
        (text, r"^--init_image: .*text\.png cannot be read: not an image"),
        (
            save("small.png", noise(20, 5)),
            r"^--init_image: .*small\.png is 5x20, but images of 8x8 are wanted",
        ),
        (
            save("float.tiff", np.ones((8, 8), np.float32)),
            "cannot be read: its pixels are floating-point",
        ),
    ):
        with pytest.raises(UsageError, match=complaint):
            read_photo("--init_image", path, MODEL)


def test_a_mask_that_cannot_be_used_is_refused(save, tmp_path):
    photo = save("photo.png", noise(16, 16))
    for path, complaint in (
        (tmp_path / "none.png", r"^--mask: there is no file .*none\.png\.$"),
        (
            save("other.png", rectangle(8, 8, 0, 8, 0, 8)),
            r"other\.png is 8x8, but .*photo\.png is 16x16: give a mask",
        ),
        (save("black.png", rectangle(16, 16, 0, 0, 0, 0)), r"black\.png has nothing white"),
        (
            save("white.png", rectangle(16, 16, 0, 16, 0, 16)),
            r"white\.png is white in all of the part",
        ),
        (
            save("layer.png", np.zeros((16, 16, 4), np.uint8)),
            r"layer\.png is white in all of the part",
        ),
        (
            save("float.tiff", np.ones((16, 16), np.float32)),
            "cannot be read: its pixels are floating-point",
        ),
    ):
        with pytest.raises(UsageError, match=complaint):
            read_mask("--mask", path, photo, MODEL)
    small = save("small.png", noise(5, 9))
    with pytest.raises(UsageError, match=r"small\.png is 9x5, but images of 8x8 are wanted"):
        read_mask("--mask", small, small, MODEL)


def test_white_that_is_cropped_away_does_not_count(save):
    photo = save("photo.png", noise(16, 32))
    with pytest.raises(UsageError, match="nothing white in the part that the model sees"):
        read_mask("--mask", save("edge.png", rectangle(16, 32, 0, 16, 0, 7)), photo, MODEL)
