"""Images in a bucket: a folder of pictures, and a dataset that TFDS has prepared."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import digits, sources
from ddpm_jax.errors import UsageError
from ddpm_jax.files import copy_folder

OPTIONS = {"image_size": 8, "channels": 1}


def _rows(source):
    rows = [source[i] for i in range(len(source))]
    return np.stack([row["image"] for row in rows]), np.array([row["label"] for row in rows])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, folder):
    """The same twelve pictures of two classes on a disk and in the bucket, and next to them what is
    no picture."""
    here, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(12):
        path = here / "train" / "ab"[i % 2] / "deeper" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 12), np.uint8)).save(path)
    for name in ("train/notes.txt", "train/a/.hidden.png", "train/.cache/x.png"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text("no picture")
    copy_folder(here, folder / "pictures")
    return here, folder / "pictures"


@pytest.mark.parametrize("cache", ["never", "always"])
def test_a_folder_of_pictures_is_read_as_from_a_disk(pictures, cache):
    here, there = (
        sources.load(name="folder", split="train", data_dir=str(path), cache=cache, **OPTIONS)
        for path in pictures
    )
    assert len(there) == 12
    assert there.num_classes == 2
    assert there.fingerprint == here.fingerprint
    for expected, found in zip(_rows(here), _rows(there), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_damaged_picture_is_named_or_skipped_and_counted(pictures):
    (pictures[1] / "train" / "a" / "broken.png").write_bytes(b"\x89PNG")
    load = {"name": "folder", "split": "train", "data_dir": str(pictures[1]), **OPTIONS}
    with pytest.raises(
        UsageError, match=r"Image gs://bucket/\S*/train/a/broken.png cannot be read"
    ):
        sources.load(**load)
    skipping = sources.load(**load, unreadable="skip")
    assert len(skipping) == 12
    assert [name.rpartition("/")[2] for name in skipping.skipped] == ["broken.png"]
    (pictures[1] / "train" / "a" / "broken.png").unlink()


def test_a_dataset_of_tfds_is_read_as_from_a_disk(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    here = str(tmp_path / "here")
    name = digits.prepare(here)
    copy_folder(here, folder / "tfds")
    for split in ("train", "test"):
        expected = sources.load(name=name, split=split, data_dir=here, **OPTIONS)
        found = sources.load(name=name, split=split, data_dir=str(folder / "tfds"), **OPTIONS)
        assert found.fingerprint == expected.fingerprint
        np.testing.assert_array_equal(found.images, expected.images)
        np.testing.assert_array_equal(found.labels, expected.labels)


@pytest.mark.parametrize(
    ("name", "data_dir", "words"),
    [
        ("cifar10", "gs://bucket/empty", "Dataset 'cifar10' is not prepared in gs://bucket/empty"),
        ("folder", "gs://bucket/empty", "Folder 'gs://bucket/empty' does not exist"),
        ("folder", "gs://absent/x", "data_dir: there is no bucket gs://absent"),
        (
            "digits",
            "gs://bucket/x",
            "The bundled digits are written to a directory of this machine",
        ),
    ],
)
def test_data_that_is_not_there_is_named(server, name, data_dir, words):
    with pytest.raises(UsageError, match=words):
        sources.load(name=name, split="train", data_dir=data_dir, **OPTIONS)
