"""The layout of a folder of pictures: splits and classes by name, and no class lost silently."""

import logging
import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import sources
from ddpm_jax.data.dataset_info import ambiguous_labels, describe
from ddpm_jax.data.layout import pictures_in, read_layout
from ddpm_jax.errors import UsageError


def _pictures(folder: pathlib.Path, *names: str) -> pathlib.Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(folder / name)
    return folder


def _found(folder, split="train", holdout=0.0, layout="auto"):
    return read_layout(folder, split=split, holdout=holdout, layout=layout)


def _load(folder, **options):
    options = {"split": "train", "image_size": 8, "channels": 1} | options
    return sources.load(name="folder", data_dir=str(folder), **options)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("training", "testing"),
        ("TRAIN", "eval"),
        ("train", "dev"),
        ("Training", "Validation"),
        ("train2017", "val2017"),
        ("training_set", "test_set"),
        ("seg_train", "seg_test"),
        ("Train images", "Test-data"),
    ],
)
def test_folders_called_as_splits_in_any_case_are_no_classes(tmp_path, train, test):
    _pictures(tmp_path, f"{train}/cat/a.png", f"{train}/dog/b.png", f"{test}/dog/c.png")
    found, held_out = _found(tmp_path, holdout=0.4), _found(tmp_path, "test", holdout=0.4)
    assert (found.names, found.classes) == (["cat/a.png", "dog/b.png"], ["cat", "dog"])
    assert (held_out.names, held_out.classes) == (["dog/c.png"], ["cat", "dog"])
    assert sum(found.splits.values()) == 3
    assert _load(tmp_path, split="test")[0]["label"] == 1


def test_of_three_splits_each_is_had_by_its_name_and_test_is_the_test_split(tmp_path):
    _pictures(tmp_path, "train/a.png", "valid/b.png", "valid/c.png", "test/d.png")
    names = {
        split: _found(tmp_path, split).names
        for split in ("train", "valid", "val", "test", "Testing")
    }
    assert names == {
        "train": ["a.png"],
        "valid": ["b.png", "c.png"],
        "val": ["b.png", "c.png"],
        "test": ["d.png"],
        "Testing": ["d.png"],
    }
    assert _found(tmp_path).splits == {"train": 1, "valid": 2, "test": 1}


def test_for_want_of_a_held_out_folder_a_share_of_train_is_set_aside(tmp_path):
    _pictures(tmp_path, *(f"train/{i}.png" for i in range(10)))
    train, test = _found(tmp_path, holdout=0.3), _found(tmp_path, "test", holdout=0.3)
    assert sorted(train.names + test.names) == [f"{i}.png" for i in range(10)]
    assert train.splits == test.splits == {"train": 7, "test": 3}
    assert _found(tmp_path).splits == {"train": 10}


@pytest.mark.parametrize("lone", ["test", "train", "val"])
def test_a_lone_name_of_a_split_among_other_folders_is_a_class(tmp_path, lone):
    _pictures(tmp_path, f"{lone}/a.png", "bus/b.png", "car/c.png")
    assert _found(tmp_path).classes == sorted(["bus", "car", lone])


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["data/train/a.png", "data/test/b.png"], "set data_dir to {}/data"),
        (["data/Train/cat/a.png", "data/val/cat/b.png"], "set data_dir to {}/data"),
        (
            ["cat/testing/a.png", "cat/training/b.png", "dog/training/c.png"],
            r"move the images so that the splits are outermost \(testing/cat\)",
        ),
    ],
)
def test_splits_within_a_folder_or_within_classes_are_refused_until_it_is_said_what_they_are(
    tmp_path, files, sentence
):
    _pictures(tmp_path, *files)
    with pytest.raises(UsageError, match=sentence.format(tmp_path)):
        _found(tmp_path)
    assert sorted(_found(tmp_path, layout="classes").names) == sorted(files)


def test_a_lone_name_of_a_split_within_a_class_is_nothing_to_refuse(tmp_path):
    assert _found(_pictures(tmp_path, "cat/test/a.png", "cat/home/b.png", "dog/c.png")).classes == [
        "cat",
        "dog",
    ]


def test_folders_without_pictures_do_not_make_splits_into_classes(tmp_path):
    _pictures(tmp_path, "train/a.png", "test/b.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "boxes.json").write_text("{}")
    assert _found(tmp_path).names == ["a.png"]


def test_names_of_splits_among_other_folders_are_refused_until_it_is_said_what_they_are(tmp_path):
    _pictures(tmp_path, "train/a.png", "test/b.png", "boat/c.png")
    with pytest.raises(
        UsageError,
        match=r"holds test and train, which .* next to boat: set data\.layout=classes if",
    ):
        _found(tmp_path)
    assert _found(tmp_path, layout="classes").classes == ["boat", "test", "train"]
    splits = _found(tmp_path, layout="splits")
    assert (splits.names, splits.splits) == (["a.png"], {"train": 1, "test": 1})
    assert "boat/c.png" in splits.notes[0]


@pytest.mark.parametrize(
    ("names", "options", "sentence"),
    [
        (
            ["train/a.png", "Training/b.png"],
            {},
            r"both Training and train, two names of the split 'train': rename",
        ),
        (
            ["test/a.png"],
            {},
            r"no split 'train', only test \(test\): name a folder in it one of train, training, ch",
        ),
        (
            ["train/a.png", "test/b.png"],
            {"split": "valid"},
            r"no split 'valid', only train \(train\) and test \(test",
        ),
        (["cat/a.png", "dog/b.png"], {"split": "valid"}, r"has no split 'valid', only train: "),
        (
            ["cat/a.png", "dog/b.png"],
            {"layout": "splits"},
            r"layout is splits, but no folder .* \(train: train, train",
        ),
    ],
)
def test_a_split_that_is_not_there_is_refused_with_what_is(tmp_path, names, options, sentence):
    with pytest.raises(UsageError, match=sentence):
        _found(_pictures(tmp_path, *names), **options)


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(
        UsageError, match="Unknown layout of a folder 'class': choose one of auto, classes, splits"
    ):
        _load(tmp_path, layout="class")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            ["dataset/cat/a.png", "dataset/dog/b.png"],
            ["one folder dataset", "classes cat and dog", "data_dir to {}/dataset"],
        ),
        (
            ["train/all/cat/a.png", "train/all/dog/b.png", "test/all/c.png"],
            ["move them from all into {}/train"],
        ),
        (
            ["cat/a.png", "cat/b.png"],
            ["all images of {} lie in its one folder cat, so there are no labels"],
        ),
        (
            ["cat/a.png", "dog/b.png", "c.png", "d.png"],
            ["2 images lie in {} itself, c.png first", "cat and dog"],
        ),
    ],
)
def test_images_in_folders_that_have_no_labels_are_told_why(tmp_path, files, says):
    found = _found(_pictures(tmp_path, *files))
    assert found.classes == []
    (note,) = found.notes
    assert "so there are no labels" in note
    for words in says:
        assert words.format(tmp_path) in note


@pytest.mark.parametrize("files", [["a.png", "b.png"], ["cat/a.png", "dog/b.png"]])
def test_images_that_need_no_explanation_have_none(tmp_path, files):
    assert _found(_pictures(tmp_path, *files)).notes == []


@pytest.mark.parametrize("empty", ["bird", "train/bird"])
def test_an_empty_folder_of_a_class_is_told(tmp_path, empty, caplog):
    inside = "train/" if empty.startswith("train") else ""
    _pictures(tmp_path, f"{inside}ant/a.png", f"{inside}cat/b.png")
    (tmp_path / empty).mkdir()
    with caplog.at_level(logging.WARNING):
        assert _load(tmp_path).info.class_names == ("ant", "cat")
    assert f"folder {tmp_path / empty} holds no images, so it is no class" in caplog.text


def test_a_class_without_a_readable_image_keeps_its_number_and_is_told(tmp_path, caplog):
    _pictures(tmp_path, "ant/a.png", "cat/b.png")
    (tmp_path / "bird").mkdir()
    (tmp_path / "bird" / "x.png").write_text("no picture")
    with caplog.at_level(logging.WARNING):
        source = _load(tmp_path, unreadable="skip")
    assert [int(source[i]["label"]) for i in range(2)] == [0, 2]
    assert "class bird (number 1) has no image that can be trained on" in caplog.text


def test_a_source_describes_its_splits_and_classes(tmp_path):
    _pictures(
        tmp_path,
        *(f"train/c{i:02}/{j}.png" for i in range(10) for j in range(i % 3 + 1)),
        "test/c03/x.png",
    )
    for cache in ("never", "always"):
        source = _load(tmp_path, cache=cache)
        assert describe(source) == (
            "train 19, test 1; 10 classes: c00 1, c01 2, c02 3, c03 1, c04 2, c05 3, c06 1, c07 2, "
            "and 2 more"
        )
    assert describe(_load(_pictures(tmp_path / "loose", "a.png"))) == "train 1; no classes"


@pytest.mark.parametrize("inside", ["", "deep/"])
def test_a_link_to_another_class_is_refused_whatever_the_order(tmp_path, inside):
    for i, (link, target) in enumerate(
        [("a_link", "cat"), ("z_link", "cat"), ("z_link", "cat/sub")]
    ):
        folder = _pictures(
            tmp_path / str(i), f"{inside}cat/a.png", f"{inside}cat/sub/b.png", f"{inside}dog/c.png"
        )
        (folder / inside / link).symlink_to(folder / inside / target)
        with pytest.raises(UsageError) as refusal:
            pictures_in(folder)
        paths = {str(folder / inside / link), str(folder / inside / target)}
        assert all(path in str(refusal.value) for path in paths)
        assert "are one folder by a link" in str(refusal.value)


def test_two_links_to_one_folder_elsewhere_are_refused(tmp_path):
    _pictures(tmp_path, "elsewhere/a.png", "data/cat/b.png", "data/dog/c.png")
    for name in ("cat", "dog"):
        (tmp_path / "data" / name / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="are one folder by a link"):
        pictures_in(tmp_path / "data")


def test_links_that_lead_out_and_back_in_end(tmp_path):
    _pictures(tmp_path, "data/cat/a.png", "data/dog/b.png", "out/c.png")
    (tmp_path / "out" / "back").symlink_to(tmp_path)
    (tmp_path / "data" / "cat" / "out").symlink_to(tmp_path / "out")
    assert pictures_in(tmp_path / "data") == ["cat/a.png", "cat/out/c.png", "dog/b.png"]


def test_a_link_to_a_folder_that_is_gone_is_refused(tmp_path):
    _pictures(tmp_path, "cat/a.png", "dog/b.png")
    (tmp_path / "fox").symlink_to(tmp_path / "unmounted")
    with pytest.raises(
        UsageError, match=r"fox is a link to .*unmounted, which is not there: bring that back, or"
    ):
        pictures_in(tmp_path)


AS_SOMEBODY = """
import concurrent.futures.thread, os, sys, tempfile
from PIL import Image
from ddpm_jax.data import sources
from ddpm_jax.errors import UsageError
def load(data_dir):
    options = dict(data_dir=data_dir, image_size=8, channels=1, unreadable=sys.argv[1])
    sources.load(name="folder", split="train", **options)
# What is imported later may be out of this user's reach: one folder is opened before.
Image.init()
with tempfile.TemporaryDirectory() as folder:
    Image.new("L", (8, 8)).save(folder + "/a.png")
    load(folder)
if os.geteuid() == 0:
    os.setuid(65534)
for data_dir in sys.argv[2:]:
    try:
        load(data_dir)
        print("opened")
    except UsageError as error:
        print(error)
"""


@pytest.fixture
def open_to_all():
    """A folder that other users can reach, too."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield pathlib.Path(folder)


def _as_somebody(unreadable, *folders):
    """Return what another user, who cannot read everything, reads when loading the folders."""
    command = [sys.executable, "-c", textwrap.dedent(AS_SOMEBODY), unreadable, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.splitlines()


@pytest.mark.parametrize("unreadable", ["stop", "skip"])
def test_a_folder_that_cannot_be_listed_is_refused_and_what_is_no_file_is_not_waited_for(
    open_to_all, unreadable
):
    folders = [_pictures(open_to_all / name, "cat/a.png", "dog/b.png") for name in ("a", "b", "c")]
    (folders[0] / "dog").chmod(0)
    folders[1].chmod(0)
    os.mkfifo(folders[2] / "cat" / "pipe.png")
    try:
        inner, top, fifo, proc = _as_somebody(unreadable, *folders, "/proc")
    finally:
        (folders[0] / "dog").chmod(0o755)
        folders[1].chmod(0o755)
    for sentence, place in ((inner, folders[0] / "dog"), (top, folders[1])):
        assert sentence.startswith(
            f"Folder {place} cannot be listed (Permission denied), so its images would be miss"
        )
    if unreadable == "skip":
        assert fifo == "opened"
    else:
        assert fifo.startswith(
            f"Image {folders[2]}/cat/pipe.png cannot be read (it is a named pipe and no file): "
            "remove it"
        )
    assert proc == "/proc belongs to the operating system: set data_dir to a folder of images."


def test_a_link_into_the_system_is_refused(tmp_path):
    _pictures(tmp_path, "a.png")
    (tmp_path / "odd").symlink_to("/proc/self")
    with pytest.raises(
        UsageError, match=r"odd leads to /proc/.*, which belongs to the operating system"
    ):
        pictures_in(tmp_path)


def test_a_number_that_is_the_name_of_another_class_is_said():
    names = ["1", "10", "2", "cat"]
    assert ambiguous_labels(["0", "3", "cat"], names) == []
    assert ambiguous_labels(["2", "1"], names) == [
        "1 is class number 1, called '10', and not the class called '1', whose number is 0"
    ]
    assert ambiguous_labels(["10"], names) == [
        "10 is class number 10, and not the class called '10', whose number is 1"
    ]


def test_labels_follow_the_classes_that_are_described(tmp_path):
    source = _load(_pictures(tmp_path, "b/1.png", "a/2.png", "b/3.png"))
    assert source.info.class_names == ("a", "b")
    np.testing.assert_array_equal(source.labels, [0, 1, 1])
