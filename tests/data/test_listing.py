"""What of a folder has changed since a run began: which files, and what of them."""

import gzip
import json
import os

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import listing, sources
from ddpm_jax.data.data_dir import check_not_run_output, check_outside
from ddpm_jax.data.dataset_info import dataset_info
from ddpm_jax.errors import FailureError, UsageError

NAMES = [f"{i}.png" for i in range(6)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    for i, name in enumerate(NAMES):
        Image.new("L", (8, 8), i).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def _load(folder, **options):
    return sources.load(
        name="folder", data_dir=str(folder), split="train", image_size=8, channels=1, **options
    )


@pytest.fixture
def compare(folder, tmp_path):
    """Return compare() -> sentences about the changes of the folder since the start."""
    begun = _load(folder)
    listing.write_listing(tmp_path / listing.FILE, dataset_info(begun).files)

    def compare(**options):
        said = []
        source = _load(folder, **options)
        listing.check_unchanged(tmp_path / listing.FILE, source, begun.fingerprint, said.append)
        return said

    return compare


@pytest.mark.parametrize("cache", ["never", "always"])
def test_a_listing_holds_the_names_sizes_and_times_of_the_files(folder, tmp_path, cache):
    odd = os.fsdecode(b"caf\xe9 \t\n.png")
    (folder / "0.png").rename(folder / odd)
    listing.write_listing(tmp_path / "listing", dataset_info(_load(folder, cache=cache)).files)
    found = listing.read_listing(tmp_path / "listing")
    assert sorted(found.names) == sorted([*NAMES[1:], odd])
    for name, size, time in zip(found.names, found.sizes, found.times, strict=True):
        status = os.stat(folder / name)
        assert (size, time) == (status.st_size, status.st_mtime_ns)
    assert listing.read_listing(tmp_path / "none") is None


def test_of_an_unchanged_folder_nothing_is_said(compare):
    assert compare() == []


def test_added_and_missing_files_are_named(compare, folder):
    (folder / "3.png").rename(folder / "new.png")
    with pytest.raises(
        UsageError,
        match=r"^The images .*: 1 is new \(new\.png\) and 1 is gone or .* \(3\.png\)\. Put",
    ):
        compare()
    (folder / "new.png").unlink()
    with pytest.raises(
        UsageError, match=r"began with: 1 is gone or cannot be used \(3\.png\)\. Put that right"
    ):
        compare()


def test_a_file_that_can_no_longer_be_used_is_named(compare, folder):
    (folder / "4.png").write_text("no picture")
    with pytest.raises(UsageError, match=r"1 is gone or cannot be used \(4\.png\)"):
        compare(unreadable="skip")


def test_another_size_is_refused_with_the_way_to_go_on(compare, folder, tmp_path):
    before = (folder / "2.png").stat().st_size
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(noise).save(folder / "2.png")
    with pytest.raises(
        UsageError,
        match=rf"^Image 2\.png has \d+ bytes, but had {before} when .* remove .*{listing.FILE}",
    ):
        compare()
    (tmp_path / listing.FILE).unlink()
    assert compare() == []


def test_another_time_alone_is_told(compare, folder):
    os.utime(folder / "5.png", ns=(1, 1))
    [said] = compare()
    assert said.startswith(
        "1 of 6 images were written at another time than when the run began, 5.png first"
    )
    for name in NAMES:
        os.utime(folder / name, ns=(1, 1))
    [said] = compare()
    assert said.startswith("all images were written at another time")


def test_without_a_listing_other_data_in_splits_say_how_a_run_over_classes_goes_on(tmp_path):
    for name in ("Training/a.png", "Testing/b.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "data" / name)
    before = _load(tmp_path / "data", layout="classes").fingerprint
    with pytest.raises(UsageError, match=r"give --config\.data\.layout=classes to resume it"):
        listing.check_unchanged(tmp_path / "none", _load(tmp_path / "data"), before, pytest.fail)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no gzip",
        gzip.compress(b"[1]\n", mtime=0),
        gzip.compress(b'["a", 1, null]\n', mtime=0),
        gzip.compress(json.dumps(["a", 10**30, 1]).encode(), mtime=0),
        gzip.compress(b"[" * 100_000, mtime=0),
        gzip.compress(b'["a", 1, 2]\n', mtime=0)[:-9],
        gzip.compress(b'["a", 1, 2]\n', mtime=0)[:10] + b"\xff" * 20,
    ],
)
def test_a_damaged_listing_is_one_sentence(tmp_path, content):
    (tmp_path / "listing").write_bytes(content)
    with pytest.raises(
        FailureError,
        match=r"^.*listing, which lists the files .*, is damaged \(.*\): remove it to go",
    ):
        listing.read_listing(tmp_path / "listing")


def test_nothing_is_written_into_a_folder_of_pictures(tmp_path):
    photos = tmp_path / "photos"
    (photos / "cat").mkdir(parents=True)
    (tmp_path / "link").symlink_to(photos / "cat")
    for place in (
        photos,
        photos / "runs" / "a",
        photos / "cat" / ".." / "x",
        tmp_path / "link" / "new",
    ):
        with pytest.raises(
            UsageError, match=r"^--workdir .* lies in the folder of images .*: name a directory"
        ):
            check_outside(str(photos), place, flag="--workdir")
    for place in (tmp_path / "photos2", tmp_path, photos / ".runs" / "a"):
        check_outside(str(photos), place, flag="--workdir")


def test_a_run_is_not_trained_on_what_it_writes(tmp_path):
    with pytest.raises(UsageError, match=r"lies where the run in .* writes its own files"):
        check_not_run_output(str(tmp_path / "run" / "samples"), tmp_path / "run")
    check_not_run_output(str(tmp_path / "run" / "photos"), tmp_path / "run")
    check_not_run_output(str(tmp_path / "run" / "samples"), tmp_path / "other")
