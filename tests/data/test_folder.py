"""A folder of images: what is read, in which order, with which labels, and every error."""

import io
import itertools
import logging
import os
import pathlib
import re
import zlib

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import host_memory
from ddpm_jax.data import in_memory, pipeline, sources
from ddpm_jax.errors import FailureError, UsageError


def _picture(path: pathlib.Path, value: int, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


def _noisy(path: pathlib.Path):
    """Return half of a picture whose header is whole.

    It is put in place atomically, since a reader may be at work.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    whole = io.BytesIO()
    Image.fromarray(pixels).save(whole, path.suffix[1:])
    part = path.with_suffix(".part")
    part.write_bytes(whole.getvalue()[:600])
    os.replace(part, path)
    return path


def _load(folder, **options):
    defaults = {"split": "train", "image_size": 8, "channels": 1, "cache": "never"}
    return sources.load(name="folder", data_dir=str(folder), **(defaults | options))


def _values(source):
    return [int(source[i]["image"][0, 0, 0]) for i in range(len(source))]


def _labels(source):
    return [int(source[i]["label"]) for i in range(len(source))]


def test_loose_images_have_no_classes_and_are_sorted_by_name(tmp_path):
    for name, value in [("b.png", 2), ("a.PNG", 1), ("c.jpg", 3)]:
        _picture(tmp_path / name, value)
    source = _load(tmp_path)
    assert (_values(source), _labels(source), source.num_classes) == ([1, 2, 3], [0, 0, 0], 0)
    assert source.image_shape == (8, 8, 1)
    assert source[0]["image"].dtype == np.uint8
    assert source[0]["label"].dtype == np.int32


def test_folders_at_the_first_level_are_the_classes_and_images_may_lie_deeper(tmp_path):
    _picture(tmp_path / "dog" / "x.png", 30)
    _picture(tmp_path / "cat" / "deep" / "er" / "y.png", 10)
    _picture(tmp_path / "cat" / "z.png", 20)
    (tmp_path / "empty").mkdir()
    source = _load(tmp_path)
    assert (_values(source), _labels(source), source.num_classes) == ([10, 20, 30], [0, 0, 1], 2)


@pytest.mark.parametrize(
    "names", [("all/a.png", "all/b.png"), ("loose.png", "one/a.png", "two/b.png")]
)
def test_a_single_folder_or_loose_images_beside_folders_make_no_classes(tmp_path, names):
    for value, name in enumerate(names):
        _picture(tmp_path / name, value)
    source = _load(tmp_path)
    assert (len(source), source.num_classes) == (len(names), 0)


@pytest.mark.parametrize("held_out", ["test", "validation", "val"])
def test_folders_named_as_splits_are_the_splits(tmp_path, held_out):
    for split, value in [("train", 1), (held_out, 100)]:
        _picture(tmp_path / split / "cat" / "a.png", value)
        _picture(tmp_path / split / "dog" / "a.png", value + 1)
    train, test = _load(tmp_path), _load(tmp_path, split="test", holdout=0.5)
    assert (_values(train), _values(test)) == ([1, 2], [100, 101])
    assert (_labels(train), _labels(test)) == ([0, 1], [0, 1])
    assert train.num_classes == test.num_classes == 2


def test_train_among_other_folders_is_a_class(tmp_path):
    for value, name in enumerate(["bus", "train"]):
        _picture(tmp_path / name / "a.png", value)
    assert _load(tmp_path).num_classes == 2


def test_a_test_image_of_no_training_class_is_refused(tmp_path):
    for name in ["train/cat", "train/dog", "test/cow"]:
        _picture(tmp_path / name / "a.png", 0)
    with pytest.raises(
        UsageError, match=r"cow/a\.png belongs to none of the classes.*\(cat, dog\).*remove it"
    ):
        _load(tmp_path, split="test")


def test_hidden_files_and_companions_are_passed_over(tmp_path):
    _picture(tmp_path / "a.png", 5)
    for name in [".DS_Store", "labels.txt", "meta.JSON", ".thumbs/b.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not an image")
    assert _values(_load(tmp_path)) == [5]


def test_linked_folders_are_followed_and_a_link_upwards_ends(tmp_path):
    _picture(tmp_path / "elsewhere" / "a.png", 7)
    data = tmp_path / "data"
    data.mkdir()
    (data / "link").symlink_to(tmp_path / "elsewhere")
    (data / "loop").symlink_to(data)
    assert _values(_load(data)) == [7]


def _many(folder, count=20):
    for value in range(count):
        _picture(folder / f"{value:03}.png", value)


def test_holdout_is_a_partition_and_the_same_every_time(tmp_path):
    _many(tmp_path)
    train, test = (
        _values(_load(tmp_path, split=split, holdout=0.25)) for split in ("train", "test")
    )
    assert len(test) == 5
    assert sorted(train + test) == list(range(20))
    expected = np.random.RandomState(0).permutation(20)[:5]
    assert test == sorted(expected)
    # files are sorted by class or date: the tail would be no sample
    assert test != list(range(15, 20))


def test_without_holdout_train_is_everything_and_test_says_how_to_get_one(tmp_path):
    _many(tmp_path)
    assert len(_load(tmp_path)) == 20
    with pytest.raises(UsageError, match=r"has no test split of its own: set holdout"):
        _load(tmp_path, split="test")


def test_holdout_must_leave_something_to_train_on(tmp_path):
    _many(tmp_path, 2)
    with pytest.raises(
        UsageError, match=r"holdout=0\.9 leaves nothing to train on of the 2 images"
    ):
        _load(tmp_path, holdout=0.9)


def test_the_fingerprint_survives_a_move_and_notices_other_files_or_options(tmp_path):
    _many(tmp_path / "a", 4)
    first = _load(tmp_path / "a").fingerprint
    # as ever: runs made before resume by it
    listing = b"0 000.png\n0 001.png\n0 002.png\n0 003.png"
    assert first == f"folder train 8x8x1 n=4 files={zlib.crc32(listing):08x}"
    (tmp_path / "a").rename(tmp_path / "b")
    assert _load(tmp_path / "b").fingerprint == first
    assert _load(tmp_path / "b", cache="always").fingerprint == first
    others = [
        _load(tmp_path / "b", image_size=4),
        _load(tmp_path / "b", channels=3),
        _load(tmp_path / "b", holdout=0.5),
    ]
    (tmp_path / "b" / "000.png").rename(tmp_path / "b" / "new.png")
    others.append(_load(tmp_path / "b"))
    assert len({first, *(source.fingerprint for source in others)}) == 5


@pytest.mark.parametrize("folder", ["", "absent"])
def test_a_missing_folder_is_named(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"Folder '{folder}' does not exist: set data_dir"):
        _load(folder)


def test_an_empty_folder_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UsageError, match="holds no images: put some into it"):
        _load(tmp_path)


def test_a_split_that_folders_do_not_have_is_refused(tmp_path):
    _many(tmp_path, 2)
    with pytest.raises(UsageError, match=r"Unknown split of a folder 'tests'.*Did you mean 'test'"):
        _load(tmp_path, split="tests")


def test_small_images_are_refused_with_path_and_sizes_whatever_becomes_of_unreadable_ones(tmp_path):
    _picture(tmp_path / "a.png", 0)
    _picture(tmp_path / "b.png", 0, size=(20, 7))
    _picture(tmp_path / "c.png", 0, size=(3, 3))
    for unreadable in ("stop", "skip"):
        with pytest.raises(
            UsageError, match=r"b\.png is 20x7 pixels, smaller than image_size=8 \(as are 1 more\)"
        ):
            _load(tmp_path, unreadable=unreadable)


@pytest.mark.parametrize("cache", ["never", "always"])
def test_small_images_are_skipped_or_enlarged_if_asked_for(tmp_path, cache, caplog):
    for name, value, size in [("a.png", 10, (8, 8)), ("b.png", 20, (20, 4)), ("c.png", 30, (3, 3))]:
        _picture(tmp_path / name, value, size)
    with caplog.at_level(logging.WARNING):
        skipping = _load(tmp_path, small="skip", cache=cache)
    assert (_values(skipping), [pathlib.Path(path).name for path in skipping.skipped]) == (
        [10],
        ["b.png", "c.png"],
    )
    assert "Skipped 2 unreadable images or too small ones" in caplog.text
    enlarging = _load(tmp_path, small="enlarge", cache=cache)
    assert (_values(enlarging), enlarging.skipped) == ([10, 20, 30], [])
    assert enlarging.image_shape == (8, 8, 1)
    (tmp_path / "a.png").unlink()
    with pytest.raises(
        UsageError, match=r"None of the 2 files .* of 8x8 pixels or more, .* b\.png \(20x4\)"
    ):
        _load(tmp_path, small="skip")


def _bad(folder):
    _many(folder, 9)
    for name in ("001.png", "004.png"):
        (folder / name).write_text("<html>")
    _picture(folder / "006.png", 0, size=(3, 9))


def test_all_images_that_cannot_be_used_are_listed_in_a_file(tmp_path):
    folder, report = tmp_path / "photos", tmp_path / "bad.txt"
    _bad(folder)
    before = sorted(os.listdir(folder))
    with pytest.raises(UsageError) as refusal:
        _load(folder, report=report)
    assert re.fullmatch(
        rf"Image {folder}/001\.png cannot be read \(.*\), nor can 1 more, and 1 are smaller than "
        r"image_size=8; all 3 "
        rf"are listed in {report}: remove what cannot be read, or set data.unreadable=skip to "
        r"pass over such files\.",
        str(refusal.value),
    )
    lines = [line.split("\t") for line in report.read_text().splitlines()]
    assert [pathlib.Path(path).name for path, _ in lines] == ["001.png", "004.png", "006.png"]
    assert lines[2][1] == "3x9"
    assert sorted(os.listdir(folder)) == before


def test_what_is_truncated_further_on_is_listed_too_where_all_is_decoded(tmp_path, caplog):
    folder, report = tmp_path / "photos", tmp_path / "bad.txt"
    _many(folder, 9)
    for name in ("002.png", "005.png"):
        _noisy(folder / name)
    with pytest.raises(
        UsageError,
        match=rf"002\.png cannot be read .*, nor can 1 more; all 2 are listed in {report}",
    ):
        _load(folder, report=report, cache="always")
    assert len(report.read_text().splitlines()) == 2
    assert not caplog.records


def test_what_is_skipped_is_listed_where_it_is_more_than_can_be_told(tmp_path, caplog):
    folder, report = tmp_path / "photos", tmp_path / "bad.txt"
    _bad(folder)
    _load(folder, report=report, unreadable="skip", small="skip")
    assert not report.exists()
    _noisy(folder / "008.png")
    _load(folder, report=report, unreadable="skip", small="skip", cache="always")
    assert [line.split("\t")[0][-7:] for line in report.read_text().splitlines()] == [
        "001.png",
        "004.png",
        "006.png",
        "008.png",
    ]
    assert f"..., all of them listed in {report}" in caplog.text


@pytest.mark.parametrize(("largest", "bits"), [(4095, 12), (1000, 10), (200, 8), (16383, 14)])
def test_values_of_fewer_bits_in_files_of_16_are_told(tmp_path, caplog, largest, bits):
    for i in range(3):
        Image.fromarray(np.full((8, 8), largest - 100 * (i % 2), np.uint16)).save(
            tmp_path / f"{i}.png"
        )
    _load(tmp_path)
    assert f"3 images have 16 bits, but no value above {largest} in 3" in caplog.text
    assert f"as if they held {bits} bits" in caplog.text
    assert f"multiplied by {2 ** (16 - bits)}." in caplog.text


def test_of_values_that_use_16_bits_nothing_is_told(tmp_path, caplog):
    for i, value in enumerate([5, 40_000]):
        Image.fromarray(np.full((8, 8), value, np.uint16)).save(tmp_path / f"{i}.png")
    assert _values(_load(tmp_path)) == [0, 156]
    assert not caplog.records


@pytest.mark.parametrize("cache", ["never", "always"])
def test_stop_names_the_file_that_is_no_image(tmp_path, cache):
    _many(tmp_path, 3)
    (tmp_path / "001.png").write_text("<html>")
    with pytest.raises(
        UsageError, match=r"001\.png cannot be read \(not an image.*data.unreadable=skip"
    ):
        _load(tmp_path, cache=cache)


def test_skip_leaves_out_what_is_no_image_and_counts_it(tmp_path, caplog):
    _many(tmp_path, 5)
    for name in ["001.png", "004.png"]:
        (tmp_path / name).write_text("<html>")
    with caplog.at_level(logging.WARNING):
        source = _load(tmp_path, unreadable="skip")
    assert _values(source) == [0, 2, 3]
    assert [pathlib.Path(path).name for path in source.skipped] == ["001.png", "004.png"]
    assert "Skipped 2 unreadable images" in caplog.text
    assert "001.png" in caplog.text


def test_a_truncated_file_stops_the_load_with_the_cache_and_the_run_without(tmp_path):
    _many(tmp_path, 3)
    _noisy(tmp_path / "001.png")
    with pytest.raises(UsageError, match=r"001\.png cannot be read \(.*truncated"):
        _load(tmp_path, cache="always")
    iterator = pipeline.train_iterator(_load(tmp_path), batch_size=3, seed=0)
    with pytest.raises(FailureError, match=r"001\.png cannot be read \(.*truncated"):
        next(iterator)
    iterator.close()
    with pytest.raises(FailureError, match=r"001\.png cannot be read"):
        list(pipeline.eval_batches(_load(tmp_path), batch_size=2))


@pytest.mark.parametrize("cache", ["never", "always"])
def test_skip_replaces_a_truncated_file_by_the_next_readable_one(tmp_path, cache):
    _many(tmp_path, 5)
    for name in ["001.png", "002.png", "004.png"]:
        _noisy(tmp_path / name)
    source = _load(tmp_path, unreadable="skip", cache=cache)
    for _ in range(2):  # the second pass, with the bad ones known, is the same
        assert _values(source) == [0, 3, 3, 3, 0]
    assert sorted(pathlib.Path(path).name for path in source.skipped) == [
        "001.png",
        "002.png",
        "004.png",
    ]


def test_the_batches_with_skipped_files_do_not_depend_on_cache_or_threads(tmp_path):
    _many(tmp_path, 12)
    for name in ["003.png", "004.png", "009.png"]:
        _noisy(tmp_path / name)
    streams = []
    for cache, threads in [("always", 1), ("never", 1), ("never", 4)]:
        source = _load(tmp_path, unreadable="skip", cache=cache)
        iterator = pipeline.train_iterator(source, batch_size=5, seed=3, num_threads=threads)
        streams.append(np.stack([next(iterator)["image"] for _ in range(10)]))
        iterator.close()
        assert len(source.skipped) == 3
    np.testing.assert_array_equal(streams[0], streams[1])
    np.testing.assert_array_equal(streams[0], streams[2])


def test_what_becomes_unreadable_later_is_told_as_it_is_found_and_counted(tmp_path, caplog):
    _many(tmp_path, 30)
    source = _load(tmp_path, unreadable="skip")
    iterator = pipeline.train_iterator(source, batch_size=15, seed=0, num_threads=2)
    next(iterator)
    assert not caplog.records
    for i in range(12):
        _noisy(tmp_path / f"{i:03}.png")
    (tmp_path / "012.png").unlink()
    for _ in range(8):
        assert set(np.unique(next(iterator)["image"])) <= set(range(30))
    iterator.close()
    assert len(source.skipped) == 13
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 10, "the others are counted"
    for n, sentence in enumerate(
        sorted(warnings, key=lambda s: int(s.rpartition("): ")[2].split()[0])), start=1
    ):
        assert re.match(
            rf"Skipped .*\.png \(.*\): {n} of 30 images are unreadable so far\.$", sentence
        )


@pytest.mark.parametrize("unreadable", ["stop", "skip"])
@pytest.mark.parametrize("emptied", [False, True])
def test_a_folder_that_vanishes_is_told_from_files_that_cannot_be_read(
    tmp_path, unreadable, emptied, caplog
):
    folder = tmp_path / "images"
    _many(folder, 6)
    iterator = pipeline.train_iterator(_load(folder, unreadable=unreadable), batch_size=3, seed=0)
    next(iterator)
    folder.rename(tmp_path / "elsewhere")
    if emptied:
        folder.mkdir()
    with pytest.raises(
        FailureError,
        match=rf"^The folder of images {folder} is gone or empty, .*: bring it back, and",
    ):
        list(itertools.islice(iterator, 20))  # more than are prepared ahead
    iterator.close()
    assert not caplog.records


@pytest.mark.parametrize("damage", [lambda path: path.write_text("<html>"), _noisy])
def test_a_folder_without_any_readable_image_is_refused(tmp_path, damage):
    for name in ["a.png", "b.png"]:
        damage(tmp_path / name)
    with pytest.raises(UsageError, match=r"None of the 2 .*first being .*a\.png"):
        _load(tmp_path, unreadable="skip", cache="always")


def test_the_cache_holds_what_the_files_hold(tmp_path):
    rng = np.random.default_rng(0)
    for name in ["x/0.png", "x/1.png", "y/2.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 17, 3), np.uint8)).save(tmp_path / name)
    direct, cached = (_load(tmp_path, channels=3, cache=cache) for cache in ("never", "always"))
    assert isinstance(cached, in_memory.ArraySource)
    assert (cached.num_classes, cached.fingerprint, cached.image_shape) == (
        2,
        direct.fingerprint,
        (8, 8, 3),
    )
    for i in range(3):
        np.testing.assert_array_equal(cached[i]["image"], direct[i]["image"])
        assert cached[i]["label"] == direct[i]["label"]


def test_the_cache_is_chosen_by_size(tmp_path, monkeypatch):
    _many(tmp_path, 3)  # 192 bytes at 8x8
    assert isinstance(_load(tmp_path, cache="auto"), in_memory.ArraySource)
    monkeypatch.setattr(in_memory, "AUTO_BUDGET", 191)
    assert not isinstance(_load(tmp_path, cache="auto"), in_memory.ArraySource)
    monkeypatch.setattr(in_memory, "AUTO_BUDGET", 192)
    assert isinstance(_load(tmp_path, cache="auto"), in_memory.ArraySource)
    monkeypatch.setattr(host_memory, "machine", lambda: 191)
    assert not isinstance(_load(tmp_path, cache="auto"), in_memory.ArraySource)
    with pytest.raises(
        UsageError, match=r"cache='always' needs .* GiB for 3 images, but the machine has"
    ):
        _load(tmp_path, cache="always")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cache": "alway"}, "Unknown cache mode 'alway'.*Did you mean 'always'"),
        (
            {"unreadable": "ignore"},
            "Unknown treatment of unreadable images 'ignore': choose one of skip, stop",
        ),
        (
            {"small": "grow"},
            "Unknown treatment of small images 'grow': choose one of enlarge, skip, stop",
        ),
        ({"image_size": 0}, "image_size=0 should be a positive"),
        ({"channels": 4}, "channels=4 should be 1 .* or 3"),
        ({"holdout": 1.0}, "holdout=1.0 should be the share"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        _load("/nowhere", **options)
