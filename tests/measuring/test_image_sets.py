"""Sets of images: every kind gives the same pixels, and what is no set is refused in a sentence."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.measuring.image_sets import of_arrays, open_images, shrunk, spread

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), np.uint8)


def write_folder(folder, pixels, suffix="png", classes=("",)):
    for i, image in enumerate(pixels):
        place = folder / classes[i % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(place / f"{i:03d}.{suffix}")
    return folder


def read(images, batch_size=4):
    pixels, labels = zip(*images.batches(np.arange(len(images)), batch_size), strict=True)
    return np.concatenate(pixels), np.concatenate(labels)


def test_a_folder_has_its_pictures_in_the_order_of_their_names(tmp_path):
    found = open_images(write_folder(tmp_path / "a", PIXELS))
    np.testing.assert_array_equal(read(found)[0], PIXELS)
    assert found.source.num_classes == 0
    assert found.record["files"] == {"png": 6}
    assert found.record["crop"] == "none"


def test_folders_in_a_folder_are_classes_whatever_they_are_called(tmp_path):
    found = open_images(write_folder(tmp_path / "a", PIXELS, classes=("test", "train")))
    pixels, labels = read(found)
    np.testing.assert_array_equal(pixels, np.concatenate([PIXELS[::2], PIXELS[1::2]]))
    np.testing.assert_array_equal(labels, [0, 0, 0, 1, 1, 1])


def test_grey_pictures_have_one_channel_unless_one_is_coloured(tmp_path):
    folder = write_folder(tmp_path / "a", PIXELS[..., :1])
    assert open_images(folder).image_shape == (5, 4, 1)
    Image.fromarray(PIXELS[0]).save(folder / "z.png")
    assert open_images(folder).image_shape == (5, 4, 3)


def test_pictures_are_cropped_to_a_size_that_is_asked_for(tmp_path):
    found = open_images(write_folder(tmp_path / "a", PIXELS), image_size=4)
    assert found.image_shape == (4, 4, 3)
    np.testing.assert_array_equal(read(found)[0], PIXELS[:, :4])  # 5 rows: none above, one below
    assert found.record["crop"].startswith("centre")


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_shrunk_as_their_pictures_in_a_folder_are(tmp_path, channels):
    pixels = np.random.default_rng(2).integers(0, 256, (6, 9, 8, channels), np.uint8)
    np.savez(tmp_path / "a.npz", pixels, np.arange(6))
    folder = open_images(write_folder(tmp_path / "a", pixels), image_size=4)
    found = open_images(tmp_path / "a.npz", image_size=4)
    for each in (found, shrunk(of_arrays(pixels), 4)):
        np.testing.assert_array_equal(read(each)[0], read(folder)[0])
        facts = {name: each.record[name] for name in ("image_size", "image_shape", "crop")}
        assert facts == {name: folder.record[name] for name in facts}
    np.testing.assert_array_equal(read(found)[1], np.arange(6))
    assert found.fingerprint != open_images(tmp_path / "a.npz").fingerprint
    with pytest.raises(UsageError, match="8x9 pixels, smaller than image_size 9"):
        open_images(tmp_path / "a.npz", image_size=9)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_of_openai_has_images_and_labels(tmp_path, save):
    labels = np.array([2, 0, 1, 0, 0, 0])
    save(tmp_path / "a.npz", PIXELS, labels)
    found = open_images(tmp_path / "a.npz")
    pixels, read_labels = read(found)
    np.testing.assert_array_equal(pixels, PIXELS)
    np.testing.assert_array_equal(read_labels, labels)
    assert found.source.num_classes == 3
    assert found.record["array"] == "arr_0"


def test_splits_are_those_of_the_data(data_dir):
    train, test = (open_images(f"digits:{s}", data_dir=data_dir) for s in ("train", "test"))
    assert (len(train), len(test)) == (1497, 300)
    order = np.random.RandomState(0).permutation(1797)
    digits = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)[order]
    np.testing.assert_array_equal(read(test, 300)[0][..., 0], digits[1497:])
    assert train.fingerprint != test.fingerprint
    np.testing.assert_array_equal(len(open_images("digits:train[:7]", data_dir=data_dir)), 7)


def test_a_changed_file_changes_the_fingerprint(tmp_path):
    folder = write_folder(tmp_path / "a", PIXELS)
    before = open_images(folder).fingerprint
    assert open_images(folder).fingerprint == before
    Image.fromarray(PIXELS[1]).save(folder / "000.png")
    assert open_images(folder).fingerprint != before
    assert of_arrays(PIXELS).fingerprint != of_arrays(PIXELS[::-1]).fingerprint


def test_rows_are_spread_evenly():
    assert spread(10, 4).tolist() == [0, 3, 6, 9]
    assert spread(3, None).tolist() == spread(3, 5).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (PIXELS / 255, "type float64 and shape [6, 5, 4, 3]"),
        (np.where(PIXELS > 9, np.nan, 0.0).astype(np.float32), "not finite"),
        (PIXELS[0], "shape [5, 4, 3]"),
        (np.repeat(PIXELS[..., :1], 2, axis=-1), "C of 1 or 3"),
        (PIXELS[:0], "no images"),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path, array, says):
    np.savez(tmp_path / "a.npz", array)
    with pytest.raises(UsageError) as error:
        open_images(tmp_path / "a.npz")
    assert says in str(error.value)
    with pytest.raises(UsageError) as error:
        of_arrays(array)
    assert says in str(error.value)


def test_folders_that_are_no_sets_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    folder = write_folder(tmp_path / "a", PIXELS)
    refusals = {"empty": "holds no images", "absent": "There is no", "digits": "There is no"}
    for name, says in refusals.items():
        with pytest.raises(UsageError, match=says):
            open_images(tmp_path / name)
    Image.fromarray(PIXELS[0, :3]).save(folder / "z.png")
    with pytest.raises(UsageError, match=r"4x3 pixels and .*000.png 4x5"):
        open_images(folder)
    with pytest.raises(UsageError, match="smaller than image_size 4"):
        open_images(folder, image_size=4)
    (folder / "z.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"z.png cannot be read"):
        open_images(folder)


def test_a_truncated_picture_is_named_when_it_is_read(tmp_path):
    folder, buffer = write_folder(tmp_path / "a", PIXELS), io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (5, 4, 3), np.uint8)
    Image.fromarray(noise).save(buffer, format="PNG")
    (folder / "003.png").write_bytes(buffer.getvalue()[:70])
    with pytest.raises(FailureError, match=r"003.png cannot be read"):
        read(open_images(folder))


def test_files_that_are_no_archives_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    (tmp_path / "text.npz").write_text("text")
    for name, says in {"other": "holds weights, and neither", "text": "no NPZ file"}.items():
        with pytest.raises(UsageError, match=says):
            open_images(tmp_path / f"{name}.npz")
