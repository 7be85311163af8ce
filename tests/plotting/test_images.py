"""Pictures hold the given pixels at the documented places, and are written atomically."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import files
from ddpm_jax.plotting import grids


def _random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_every_image_at_its_place_and_white_elsewhere(channels):
    pictures = _random_images(5, 4, 6, channels)
    picture = grids.grid(pictures, columns=3, pad=1, min_pixels=1)
    assert picture.shape == (1 + 2 * (4 + 1), 1 + 3 * (6 + 1), channels)
    rest = picture.copy()
    for i, (top, left) in enumerate([(1, 1), (1, 8), (1, 15), (6, 1), (6, 8)]):
        np.testing.assert_array_equal(picture[top : top + 4, left : left + 6], pictures[i])
        rest[top : top + 4, left : left + 6] = 255
    assert (rest == 255).all()


def test_a_grid_is_the_smallest_square_by_default():
    assert grids.grid(_random_images(10, 2, 2, 1), pad=0, min_pixels=1).shape == (3 * 2, 4 * 2, 1)


def test_small_images_are_enlarged_by_squares_and_large_ones_left_alone():
    small, large = _random_images(1, 8, 8, 1), _random_images(1, 70, 64, 3)
    enlarged = grids.enlarge(small, 60)
    assert enlarged.shape == (1, 64, 64, 1)
    for offset_y, offset_x in [(0, 0), (7, 7), (3, 5)]:
        np.testing.assert_array_equal(enlarged[:, offset_y::8, offset_x::8], small)
    np.testing.assert_array_equal(grids.enlarge(large, 64), large)


def test_a_strip_has_a_row_per_sample_and_runs_from_noise_to_image():
    frames = _random_images(5, 2, 3, 3, 1)
    strip = grids.chain_strip(frames, pad=0, min_pixels=1)
    np.testing.assert_array_equal(strip, np.concatenate(np.concatenate(frames, axis=2), axis=0))


def test_a_long_chain_is_thinned_evenly_with_first_and_last_frame_kept():
    frames = np.broadcast_to(
        np.arange(100, dtype=np.uint8)[:, None, None, None, None], (100, 1, 1, 1, 1)
    )
    strip = grids.chain_strip(frames, max_columns=12, pad=0, min_pixels=1)
    np.testing.assert_array_equal(strip[0, :, 0], np.arange(0, 100, 9))
    assert grids.chain_strip(frames, max_columns=1, pad=0, min_pixels=1)[0, 0, 0] == 99


def test_pairs_put_the_prediction_below_its_x_t():
    x_t, x_0 = _random_images(4, 2, 3, 3, 3), 255 - _random_images(4, 2, 3, 3, 3)
    picture = grids.chain_pairs(x_t, x_0, pad=1, min_pixels=1)
    rows = [1, 5, 13, 17]  # Height 3, margin 1; 4 more between the samples.
    assert picture.shape == (21, 1 + 4 * 4, 3)
    for top, frames in zip(rows, [x_t[:, 0], x_0[:, 0], x_t[:, 1], x_0[:, 1]], strict=True):
        for column in range(4):
            left = 1 + 4 * column
            np.testing.assert_array_equal(picture[top : top + 3, left : left + 3], frames[column])


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_side_by_side_keep_their_pixels_under_a_title_each(channels):
    left, right = _random_images(40, 90, channels), _random_images(40, 90, channels)[::-1]
    picture = grids.side_by_side({"EMA": left, "raw weights": right}, gap=5)
    height = picture.shape[0] - 40
    assert picture.shape[1:] == (90 + 5 + 90, channels)
    np.testing.assert_array_equal(picture[height:, :90], left)
    np.testing.assert_array_equal(picture[height:, 95:], right)
    assert np.all(picture[:, 90:95] == grids.BACKGROUND)
    titles = picture[:height, :90], picture[:height, 95:]
    assert all(title.min() < 100 for title in titles)  # letters
    assert np.any(titles[0] != titles[1])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_reads_back_exactly_and_its_folder_is_made(tmp_path, channels):
    picture = _random_images(5, 7, channels)
    grids.save_png(tmp_path / "a" / "b.png", picture)
    with Image.open(tmp_path / "a" / "b.png") as stored:
        assert stored.mode == {1: "L", 3: "RGB"}[channels]
        np.testing.assert_array_equal(np.asarray(stored).reshape(picture.shape), picture)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.png"]


def _read_gif(path):
    with Image.open(path) as stored:
        assert stored.info["loop"] == 0
        frames, durations = [], []
        for i in range(stored.n_frames):
            stored.seek(i)
            durations.append(stored.info["duration"])
            frames.append(np.asarray(stored.convert("RGB")))
    return np.stack(frames), durations


def test_a_grey_gif_keeps_every_value_and_holds_the_last_frame(tmp_path):
    frames = _random_images(6, 20, 24, 1)
    grids.save_gif(tmp_path / "chain.gif", frames, fps=20, hold_seconds=2.0)
    stored, durations = _read_gif(tmp_path / "chain.gif")
    np.testing.assert_array_equal(stored, np.broadcast_to(frames, (6, 20, 24, 3)))
    assert durations == [50] * 5 + [2050]  # Milliseconds.


def test_a_colour_gif_of_at_most_256_colours_keeps_every_value(tmp_path):
    frames = _random_images(3, 12, 12, 3)
    grids.save_gif(tmp_path / "chain.gif", frames, fps=10)
    np.testing.assert_array_equal(_read_gif(tmp_path / "chain.gif")[0], frames)


def test_a_gif_is_never_faster_than_viewers_play(tmp_path):
    grids.save_gif(tmp_path / "chain.gif", _random_images(3, 4, 4, 1), fps=1000)
    assert _read_gif(tmp_path / "chain.gif")[1][0] == 20


@pytest.mark.parametrize("shape", [(0, 4, 4, 1), (2, 4, 4, 2)])
def test_no_images_or_two_channels_are_refused(shape):
    with pytest.raises(ValueError, match="1 or 3 channels"):
        grids.grid(np.zeros(shape, np.uint8))


def test_float_images_are_refused():
    with pytest.raises(AssertionError, match="uint8"):
        grids.grid(np.zeros((1, 4, 4, 1), np.float32))


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "grid.png"
    files.write_atomically(path, b"old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(pathlib.Path(tmp_path).iterdir()) == [path]


def test_a_reader_of_the_old_file_never_sees_a_mixture(tmp_path):
    path = tmp_path / "grid.png"
    files.write_atomically(path, b"old")
    with open(path, "rb") as reader:
        files.write_atomically(path, b"new and longer")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new and longer"


@pytest.mark.parametrize("channels", [1, 3])
def test_labels_stand_over_their_columns_and_before_their_rows_and_leave_the_picture_as_it_is(
    channels,
):
    picture = _random_images(120, 300, channels)
    over = grids.with_labels(picture, columns=["ant", "bee", ""])
    np.testing.assert_array_equal(over[-120:], picture)
    dark = (over[:-120, :, 0] < 128).any(axis=0)
    assert dark[:100].any()
    assert dark[100:200].any()
    assert not dark[200:].any()
    before = grids.with_labels(picture, rows=["", "a name"])
    np.testing.assert_array_equal(before[:, -300:], picture)
    dark = (before[:, :-300, 0] < 128).any(axis=1)
    assert dark[60:].any()
    assert not dark[:60].any()
    assert grids.with_labels(picture) is picture


def test_a_long_label_is_cut_to_its_column():
    over = grids.with_labels(np.zeros((10, 120, 1), np.uint8), columns=["w" * 100, "", ""])
    dark = (over[:-10, :, 0] < 128).any(axis=0)
    assert dark[:40].any()
    assert not dark[40:].any()
    side = grids.with_labels(np.zeros((10, 120, 1), np.uint8), rows=["w" * 100])
    assert side.shape[1] <= 120 + 48 + 8


def test_letters_of_labels_are_in_the_font():
    missing = grids._font().getmask("\U0010ffff")
    for letter in "λβσxTé…":
        drawn = grids._font().getmask(letter)
        assert drawn.size != missing.size or bytes(drawn) != bytes(missing)


@pytest.mark.parametrize("channels", [1, 3])
def test_originals_stand_before_the_grid_with_all_pixels_of_both(channels):
    originals = {"original": _random_images(8, 8, channels), "kept": _random_images(8, 8, channels)}
    grid = grids.grid(_random_images(6, 8, 8, channels))
    picture = grids.next_to_originals(originals, grid, title="strength 0.6")
    enlarged = [grids.grid(image[None]) for image in originals.values()]
    np.testing.assert_array_equal(picture[22:90, :66], enlarged[0][:, :66])
    np.testing.assert_array_equal(picture[112:180, :66], enlarged[1][:, :66])
    np.testing.assert_array_equal(picture[22 : 22 + len(grid), 68 + 16 :], grid)
    for left, right in ((0, 68), (84, picture.shape[1])):
        assert picture[:22, left:right].min() < 128, "a name is written over each"
    assert picture[22:, 68:84].min() == 255, "between them is white"


def test_a_title_wider_than_the_grid_is_not_cut():
    title = "a title that is much wider than one image"
    picture = grids.next_to_originals(
        {"original": _random_images(8, 8, 1)}, grids.grid(_random_images(1, 8, 8, 1)), title=title
    )
    assert picture.shape[1] >= 68 + 16 + grids._font().getlength(title)
    assert picture[:, -2:].min() == 255


def test_a_labelled_chain_has_the_pixels_of_the_bare_one():
    x_t, x_0 = _random_images(30, 2, 8, 8, 1), _random_images(30, 2, 8, 8, 1)[::-1]
    bare = grids.chain_pairs(x_t, x_0)
    moments = [f"{i}/29" for i in range(30)]
    labelled = grids.chain_pairs(x_t, x_0, moments=moments, rows=("x_t", "x_0"))
    side = labelled.shape[1] - bare.shape[1]
    np.testing.assert_array_equal(labelled[22:, side:], bare)
    assert labelled[:22, side:].min() < 128
    for top in (22, 22 + 66):
        assert labelled[top + 20 : top + 50, :side].min() < 128, "each row has its name"
    first, last = labelled[:22, side : side + 66], labelled[:22, -66:]
    assert np.any(first != last)
