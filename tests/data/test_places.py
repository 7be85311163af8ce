"""A data_dir that does not fit the kind of data is refused in one sentence; nothing is written."""

import os
import pathlib

import pytest
from PIL import Image

from ddpm_jax.data import digits, sources
from ddpm_jax.errors import UsageError

OPTIONS = {"split": "train", "image_size": 8, "channels": 1}


def _pictures(folder: pathlib.Path, *names: str) -> pathlib.Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(folder / name)
    return folder


def _tree(folder):
    return sorted((where, tuple(sorted(files))) for where, _, files in os.walk(folder))


@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
@pytest.mark.parametrize("picture", ["a.png", "cat/A.JPG", "train/cat/a.webp"])
def test_no_dataset_is_looked_for_or_written_in_a_folder_of_pictures(tmp_path, dataset, picture):
    folder = _pictures(tmp_path / "photos", picture)
    before = _tree(tmp_path)
    with pytest.raises(UsageError) as refusal:
        sources.load(name=dataset, data_dir=str(folder), **OPTIONS)
    assert str(refusal.value) == (
        f"data_dir {folder} is a folder of pictures ({picture} is one), but data.name is "
        f"{dataset!r}: set data.name=folder to use these pictures, or leave data_dir out."
    )
    assert _tree(tmp_path) == before


@pytest.mark.parametrize("picture", ["train/cat/monday/a.png", "a/b/c/d/e/f.jpg"])
def test_the_digits_are_not_written_above_pictures_however_deep_they_lie(tmp_path, picture):
    folder = _pictures(tmp_path / "photos", picture)
    (folder / "round").symlink_to(folder)
    before = _tree(tmp_path)
    with pytest.raises(UsageError, match=rf"is a folder of pictures \({picture} is one\)"):
        digits.prepare(str(folder))
    assert _tree(tmp_path) == before


def test_digits_that_are_there_already_are_read_though_pictures_lie_deep_beside_them(tmp_path):
    digits.prepare(str(tmp_path))
    _pictures(tmp_path, "a/b/c/d/e.png")
    assert len(sources.load(name="digits", data_dir=str(tmp_path), **OPTIONS)) == 1497


def test_digits_that_were_written_among_classes_are_named_whichever_way_they_are_met(tmp_path):
    digits.prepare(str(tmp_path))
    _pictures(tmp_path, "cat/a.png", "dog/b.png")
    before = _tree(tmp_path)
    remedy = rf"{tmp_path}/digits is the bundled digits and no class, so remove it\.$"
    with pytest.raises(UsageError, match=remedy):
        sources.load(name="digits", data_dir=str(tmp_path), **OPTIONS)
    with pytest.raises(
        UsageError, match=rf"^{tmp_path}/digits is a dataset .* and no class of pictures: move it"
    ):
        sources.load(name="folder", data_dir=str(tmp_path), **OPTIONS)
    assert _tree(tmp_path) == before


@pytest.mark.parametrize(
    ("inside", "sentence"),
    [
        (
            "",
            r"holds what tensorflow-datasets prepared \(digits\) and no pictures, .* set "
            r"data.name to one of these",
        ),
        (
            "digits",
            "is a dataset that tensorflow-datasets prepared, but data.name is 'folder': set "
            "data.name to the",
        ),
        (
            "digits/1.0.0",
            "is a dataset that tensorflow-datasets prepared, but data.name is 'folder'",
        ),
    ],
)
def test_what_tfds_prepared_is_no_folder_of_pictures(tmp_path, inside, sentence):
    digits.prepare(str(tmp_path))
    with pytest.raises(UsageError, match=sentence):
        sources.load(name="folder", data_dir=str(tmp_path / inside), **OPTIONS)


def test_the_digits_are_written_where_there_are_none_or_other_datasets_and_no_pictures(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("no picture")
    assert len(sources.load(name="digits", data_dir=str(tmp_path), **OPTIONS)) == 1497
    # a dataset of another name, with its unpacked pictures
    (tmp_path / "digits").rename(tmp_path / "other")
    _pictures(tmp_path, "downloads/extracted/a.png", "photos/b.png")
    assert len(sources.load(name="digits", data_dir=str(tmp_path), **OPTIONS)) == 1497
