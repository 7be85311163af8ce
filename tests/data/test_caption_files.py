"""Captions of a folder: metadata files and text files, and every error in one sentence."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import listing, sources
from ddpm_jax.errors import UsageError


def _picture(path: pathlib.Path, value: int = 0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path)


def _metadata(folder: pathlib.Path, *rows, name="metadata.jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / name).write_text("\n".join(lines), encoding="utf-8")


def _row(name, text, field="text"):
    return {"file_name": name, field: text}


def _load(folder, **options):
    defaults = {"split": "train", "image_size": 8, "channels": 1, "captions": "auto"}
    return sources.load(name="folder", data_dir=str(folder), **(defaults | options))


def _captions(source):
    """Return the captions by the brightness of the picture, which tells who it is."""
    return {int(source[i]["image"][0, 0, 0]): source.captions[i] for i in range(len(source))}


@pytest.fixture
def pair(tmp_path):
    _picture(tmp_path / "a.png", 1)
    _picture(tmp_path / "b.png", 2)
    return tmp_path


@pytest.mark.parametrize("cache", ["always", "never"])
def test_the_lines_of_a_metadata_file_are_matched_by_name(pair, cache):
    _metadata(pair, _row("b.png", "zwei ü"), "", _row("./a.png", ["one", "uno"]))
    source = _load(pair, cache=cache)
    assert _captions(source) == {1: ("one", "uno"), 2: ("zwei ü",)}
    assert source.captions.table.texts[0] == ""


def test_several_lines_of_an_image_are_several_captions(pair):
    _metadata(pair, _row("a.png", "x"), _row("b.png", "y"), _row("a.png", "z"))
    assert _captions(_load(pair)) == {1: ("x", "z"), 2: ("y",)}


def test_without_being_asked_for_captions_are_not_read(pair):
    _metadata(pair, "no JSON")
    assert _load(pair, captions="").captions is None


@pytest.mark.parametrize("field", ["text", "caption", "captions"])
def test_the_usual_names_of_the_field_are_found(pair, field):
    _metadata(pair, _row("a.png", "x", field), _row("b.png", "y", field))
    assert _captions(_load(pair)) == {1: ("x",), 2: ("y",)}


def test_another_field_is_named(pair):
    rows = [{"file_name": name, "text": "no", "title": name[0]} for name in ("a.png", "b.png")]
    _metadata(pair, *rows)
    assert _captions(_load(pair, captions="title")) == {1: ("a",), 2: ("b",)}
    with pytest.raises(
        UsageError, match=r"Line 1 of .* has no 'name', only file_name, text, title: set data.capt"
    ):
        _load(pair, captions="name")


def test_a_text_file_beside_an_image_has_one_caption_a_line(pair):
    (pair / "a.txt").write_text("one\n\n  uno \n", encoding="utf-8-sig")
    (pair / "b.txt").write_text("two")
    for captions in ("auto", "txt"):
        assert _captions(_load(pair, captions=captions)) == {1: ("one", "uno"), 2: ("two",)}


def test_metadata_come_before_text_files_unless_those_are_asked_for(pair):
    _metadata(pair, _row("a.png", "x"), _row("b.png", "y"))
    for name in "ab":
        (pair / f"{name}.txt").write_text(f"beside {name}")
    assert _captions(_load(pair)) == {1: ("x",), 2: ("y",)}
    assert _captions(_load(pair, captions="txt")) == {1: ("beside a",), 2: ("beside b",)}


@pytest.mark.parametrize("where", ["root", "split", "class"])
def test_names_are_relative_to_the_folder_of_the_file(tmp_path, where):
    """The layout of Hugging Face's imagefolder: a file for all splits, or one in each."""
    for split, value in (("train", 1), ("test", 11)):
        for number, kind in enumerate(("cat", "dog")):
            _picture(tmp_path / split / kind / "1.png", value + number)
            full = f"{split}/{kind}/1.png"
            parts = {"root": 0, "split": 1, "class": 2}[where]
            folder = tmp_path.joinpath(*full.split("/")[:parts])
            row = _row("/".join(full.split("/")[parts:]), f"a {kind} to {split}")
            path = folder / "metadata.jsonl"
            there = path.read_text().splitlines() if path.exists() else []
            _metadata(folder, *there, row)
    for split, value in (("train", 1), ("test", 11)):
        source = _load(tmp_path, split=split)
        assert source.num_classes == 2
        assert _captions(source) == {
            value: (f"a cat to {split}",),
            value + 1: (f"a dog to {split}",),
        }


def test_of_two_files_the_nearer_one_counts(tmp_path):
    _picture(tmp_path / "in" / "a.png", 1)
    _metadata(tmp_path, _row("in/a.png", "far"))
    _metadata(tmp_path / "in", _row("a.png", "near"))
    assert _captions(_load(tmp_path)) == {1: ("near",)}


def test_a_share_that_is_held_out_keeps_its_captions(tmp_path):
    _metadata(tmp_path, *(_row(f"{i:02}.png", f"number {i}") for i in range(20)))
    for i in range(20):
        _picture(tmp_path / f"{i:02}.png", i)
    found = {
        split: _captions(_load(tmp_path, split=split, holdout=0.25)) for split in ("train", "test")
    }
    assert [len(part) for part in found.values()] == [15, 5]
    assert found["train"] | found["test"] == {i: (f"number {i}",) for i in range(20)}


def test_an_image_that_is_skipped_leaves_its_caption_out(pair):
    (pair / "a.png").write_bytes(b"no picture")
    _metadata(pair, _row("a.png", "x"), _row("b.png", "y"))
    assert _captions(_load(pair, unreadable="skip")) == {2: ("y",)}


@pytest.mark.parametrize("cache", ["always", "never"])
def test_an_image_that_turns_out_to_be_damaged_is_replaced_with_its_caption(pair, cache):
    path = pair / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    _metadata(pair, _row("a.png", "x"), _row("b.png", "y"))
    source = _load(pair, unreadable="skip", cache=cache)
    from ddpm_jax.data import pipeline

    batches = pipeline.train_iterator(source, batch_size=2, seed=0)
    batch = next(batches)
    batches.close()
    assert batch["image"][:, 0, 0, 0].tolist() == [2, 2]
    assert [source.captions.table.texts[n] for n in batch["caption"]] == ["y", "y"]


ERRORS = {
    "missing picture": (
        [_row("a.png", "x"), _row("b.png", "y"), _row("c.png", "z"), _row("d.png", "z")],
        r"metadata.jsonl names c.png, which is not there, and 1 more has no file: bring the images",
    ),
    "missing caption": (
        [_row("b.png", "y")],
        r"Image .*a.png has no caption: give each a caption, remove .* data.captions=''",
    ),
    "no lines": ([], r"Image .*a.png has no caption, and 1 more has none: give each"),
    "not JSON": (
        [_row("a.png", "x"), '{"file_name": "b.png", "text": }'],
        r"Line 2 of .*metadata.jsonl is damaged \(.*\): correct or remove it",
    ),
    "no object": (["[1]"], r"Line 1 of .* is not a JSON object with a file_name"),
    "no name": ([{"text": "x"}], r"Line 1 of .* has no file_name, the path of an image: add it"),
    "outside": (
        [_row("../a.png", "x")],
        r"Line 1 of .* names \.\./a.png, which is outside of the folder: give a path relative",
    ),
    "absolute": ([_row("/a.png", "x")], r"names /a.png, which is outside of the folder"),
    "empty": ([_row("a.png", " "), _row("b.png", "y")], r"Line 1 of .* has an empty caption: give"),
    "no texts": ([_row("a.png", []), _row("b.png", "y")], r"Line 1 of .* has an empty caption"),
    "a number": ([_row("a.png", 3)], r"has a 'text' that is neither a text nor a list of texts"),
    "null": ([_row("a.png", None)], r"Line 1 of .* has no 'text', only file_name, text"),
    "too deep": (["[" * 100_000], r"Line 1 of .* is damaged \(it is nested too deeply"),
    "half a character": (
        ['{"file_name": "a.png", "text": "\\ud83d"}'],
        r"Line 1 of .* is damaged \(it holds half of a character",
    ),
    "a name too long": ([_row("a" * 5000, "x")], r"names a+, which is not there"),
    "a null in a name": ([_row("a\0.png", "x")], r"Line 1 of .* has no file_name"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_is_wrong_with_metadata_is_said_in_a_sentence(pair, case):
    rows, sentence = ERRORS[case]
    _metadata(pair, *rows)
    with pytest.raises(UsageError, match=sentence):
        _load(pair)


def test_what_is_wrong_with_text_files_is_said_in_a_sentence(pair):
    (pair / "a.txt").write_text("x")
    with pytest.raises(UsageError, match=r"Image .*b.png has no caption: give"):
        _load(pair)
    (pair / "b.txt").write_text(" \n\n")
    with pytest.raises(UsageError, match=r"b.txt holds no caption: give"):
        _load(pair)
    (pair / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UsageError, match=r"b.txt is not UTF-8 at byte 3: write the captions in"):
        _load(pair)


def test_a_folder_without_any_captions_says_how_to_write_them(pair):
    with pytest.raises(UsageError, match=r"Image .*a.png has no caption, and 1 more has none"):
        _load(pair)
    with pytest.raises(UsageError, match=r"no metadata.jsonl with the captions 'title': write one"):
        _load(pair, captions="title")


def test_a_run_notices_that_captions_have_changed(pair, tmp_path):
    def check(source):
        listing.check_unchanged(kept, source, then.fingerprint, warnings.append)

    kept, warnings = tmp_path / listing.FILE, []
    _metadata(pair, _row("a.png", "x"), _row("b.png", "y"))
    then = _load(pair)
    listing.write_listing(kept, then.info.files)
    kept.rename(kept.parent / ".kept")  # no picture of the folder
    kept = kept.parent / ".kept"
    check(_load(pair))
    assert not warnings
    _metadata(pair, _row("a.png", "xx"), _row("b.png", "y"))
    with pytest.raises(
        UsageError, match=r"^metadata.jsonl, which holds captions, has \d+ bytes, but"
    ):
        check(_load(pair))
    # of the same size: the fingerprint tells
    _metadata(pair, _row("a.png", "y"), _row("b.png", "x"))
    assert _load(pair).fingerprint != then.fingerprint
    # a run without captions does not depend on them
    assert _load(pair, captions="").fingerprint == then.fingerprint.split(" captions=")[0]
    for name in "ab":
        (pair / f"{name}.txt").write_text("z")
    with pytest.raises(UsageError, match=r"2 are new \(a.txt, b.txt\) and 1 is gone"):
        check(_load(pair, captions="txt"))
