"""Samples in other programs' formats hold the images of the shards, bit for bit."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.errors import UsageError
from ddpm_jax.generation.storing import write_shards
from ddpm_jax.measuring.image_sets import open_images
from ddpm_jax.tasks.sample_formats import FORMATS

LABELS = np.array([1, 0, 1, 0, 1])


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), np.uint8)


@pytest.fixture
def sampled(tmp_path, pixels):
    """A directory of five images in three shards."""
    sizes = {"num_images": 5, "shard_size": 2}
    write_shards(tmp_path / "out", lambda i: [(i, pixels[i])], manifest={}, **sizes)
    return tmp_path / "out"


def test_openai_is_one_array_with_their_names(sampled, pixels):
    (path,) = FORMATS["openai"](sampled, LABELS)
    assert path.name == "samples_5x6x4x3.npz"
    found = np.load(path)  # as guided-diffusion's evaluator does
    assert sorted(found) == ["arr_0", "arr_1"]
    np.testing.assert_array_equal(found["arr_0"], pixels)
    np.testing.assert_array_equal(found["arr_1"], LABELS)
    assert found["arr_1"].dtype == np.int64
    assert list(np.load(FORMATS["openai"](sampled, None)[0])) == ["arr_0", "arr_1"]  # it is kept


def test_openai_can_be_streamed_out_of_the_archive(sampled, pixels):
    """guided-diffusion's evaluator does not load the array: it reads the NPY header in the archive
    and then the bytes of so many images at a time."""
    (path,) = FORMATS["openai"](sampled, None)
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
        assert np.lib.format.read_magic(member) == (1, 0)
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(member)
        assert (shape, is_fortran, dtype) == ((5, 6, 4, 3), False, np.uint8)
        for start in range(0, 5, 2):
            count = min(2, 5 - start)
            found = np.frombuffer(member.read(count * 6 * 4 * 3), dtype).reshape(count, 6, 4, 3)
            np.testing.assert_array_equal(found, pixels[start : start + 2])
        assert member.read() == b""


def test_a_stopped_openai_file_leaves_nothing(sampled, monkeypatch):
    from ddpm_jax.distributed import interrupt

    def stop():
        raise interrupt.Stopped(interrupt.Wish.SIGINT, "")

    monkeypatch.setattr(interrupt, "check", stop)
    with pytest.raises(interrupt.Stopped):
        FORMATS["openai"](sampled, None)
    assert not [path for path in sampled.iterdir() if "samples_" in path.name]


def test_pngs_are_numbered_by_image_and_lossless(sampled, pixels):
    (folder,) = FORMATS["png"](sampled, LABELS)
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"{i:06d}.png" for i in range(5)]
    for name, wanted in zip(names, pixels, strict=True):
        with Image.open(folder / name) as picture:
            np.testing.assert_array_equal(np.asarray(picture), wanted)
    (folder / names[0]).unlink()
    assert FORMATS["png"](sampled, None) == [folder]  # given again, it draws what is missing
    assert len(list(folder.iterdir())) == 5


def test_all_three_are_the_same_set(sampled, pixels):
    openai, png = FORMATS["openai"](sampled, LABELS)[0], FORMATS["png"](sampled, LABELS)[0]
    for place in (sampled, openai, png):
        found = np.concatenate(
            [images for images, _ in open_images(place).batches(np.arange(5), 2)]
        )
        np.testing.assert_array_equal(found, pixels)


def test_an_unfinished_directory_is_refused(sampled):
    (sampled / "samples-00001-of-00003.npz").unlink()
    with pytest.raises(UsageError, match="lacks 1 of 3 shards"):
        FORMATS["openai"](sampled, None)
