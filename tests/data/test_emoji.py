"""The bundled emoji: what is there, and a test split of combinations that training lacks."""

import importlib.resources
import importlib.util
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import sources
from ddpm_jax.errors import UsageError

ROOT = pathlib.Path(__file__).parents[2]
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")


def _load(split="train", **options):
    return sources.load(
        name="emoji",
        split=split,
        **({"image_size": 32, "channels": 3, "captions": "auto"} | options),
    )


@pytest.fixture(scope="module")
def splits():
    return {split: _load(split) for split in ("train", "test")}


def _names(source):
    return [source.captions[i][0] for i in range(len(source))]


def test_there_are_3786_pictures_in_ten_classes(splits):
    assert [len(source) for source in splits.values()] == [3600, 186]
    for source in splits.values():
        assert source.images.shape[1:] == source.image_shape == (32, 32, 3)
        assert source.images.dtype == np.uint8
        assert source.labels.dtype == np.int32
        assert source.info.splits == {"train": 3600, "test": 186}
        assert source.num_classes == len(source.info.class_names) == 10
    assert set(splits["train"].labels) == set(range(10))
    assert splits["train"].info == splits["test"].info
    assert splits["train"].fingerprint != splits["test"].fingerprint


@pytest.mark.parametrize(
    ("caption", "category", "colour"),
    [
        ("red heart", "Smileys & Emotion", (240, 60, 50)),
        ("large green circle", "Symbols", (125, 179, 66)),
        ("large blue circle", "Symbols", (30, 136, 230)),
    ],
)
def test_a_picture_shows_what_its_caption_and_class_say(splits, caption, category, colour):
    source = next(
        s for s in splits.values() if any(caption in s.captions[i] for i in range(len(s)))
    )
    row = next(i for i in range(len(source)) if caption in source.captions[i])
    assert source.info.class_names[source.labels[row]] == category
    assert np.abs(source.images[row, 14, 16].astype(int) - colour).max() < 40
    assert (source.images[row, 0, 0] == 255).all()  # on white


def test_a_single_dark_tone_of_every_gesture_is_held_out(splits):
    train, test = set(_names(splits["train"])), set(_names(splits["test"]))
    for gesture in ("thumbs up sign", "thumbs down sign", "victory hand", "ear", "raised fist"):
        assert f"{gesture}, dark skin tone" in test
        assert {gesture} | {f"{gesture}, {tone} skin tone" for tone in TONES[:-1]} <= train
    prompts = {text for i in range(186) for text in splits["test"].captions[i]}
    assert {"thumbs up, dark skin tone", "thumbs down, dark skin tone"} <= prompts


def test_what_is_held_out_is_a_combination_of_what_is_trained_on(splits):
    """Of a name with tones exactly one is in the test split; neither part is new."""
    train, test = set(_names(splits["train"])), set(_names(splits["test"]))
    assert not train & test
    toned = [name for name in test if name.endswith(" skin tone")]
    assert len(toned) > 100
    for full in toned:
        name, tone = full.removesuffix(" skin tone").rsplit(", ", 1)
        assert tone in TONES
        others = {f"{name}, {other} skin tone" for other in TONES} - {full}
        assert others <= train
    held_out = {full.rsplit(", ", 1)[1] for full in toned}
    assert held_out == {f"{tone} skin tone" for tone in TONES}


def test_no_picture_is_in_both_splits(splits):
    train, test = (
        {image.tobytes() for image in splits[split].images} for split in ("train", "test")
    )
    mirrored = {image[:, ::-1].tobytes() for image in splits["train"].images}
    assert not train & test
    assert not mirrored & test


def test_a_caption_of_its_own_has_nearly_every_picture(splits):
    """The short names tell apart the pictures whose Unicode names are equal."""
    names = _names(splits["train"]) + _names(splits["test"])
    assert len(set(names)) == 3780
    assert max(map(len, names)) < 100
    short = {source.captions[i][1:] for source in splits.values() for i in range(len(source))}
    assert ("person in tuxedo, dark skin tone",) in short
    only = _load(captions="text")
    assert all(len(only.captions[i]) == 1 for i in range(len(only)))


def test_without_captions_there_are_none():
    assert _load(captions="").captions is None
    assert _load(captions="").fingerprint == _load().fingerprint.split(" captions=")[0]


def test_other_sizes_are_made_as_of_any_picture():
    assert _load(image_size=8, channels=1).image_shape == (8, 8, 1)
    assert _load(image_size=48, small="enlarge").image_shape == (48, 48, 3)
    whole = _load().images[0].astype(int)
    halves = whole.reshape(16, 2, 16, 2, 3).mean((1, 3))
    assert np.abs(_load(image_size=16).images[0] - halves).max() <= 1  # rounded along each side


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"split": "valid"},
            "Unknown split of the bundled emoji 'valid': choose one of test, train",
        ),
        ({"image_size": 64}, "The bundled emoji are 32x32 pixels, smaller than image_size=64: ask"),
        (
            {"captions": "name"},
            "Unknown captions of the bundled emoji 'name': choose one of auto, t",
        ),
    ],
)
def test_what_there_is_not_is_said_in_a_sentence(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        _load(**options)


def test_the_licences_come_with_the_file():
    notice = importlib.resources.files("ddpm_jax.data").joinpath("emoji.LICENSE").read_text()
    assert "Noto Emoji" in notice
    assert "Apache License, Version 2.0" in notice
    assert "Copyright (c) 2013 Cal Henderson" in notice
    assert importlib.resources.files("ddpm_jax.data").joinpath("emoji.npz").is_file()


def _packing():
    spec = importlib.util.spec_from_file_location("pack_emoji", ROOT / "tools" / "pack_emoji.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_packing_lays_over_white_and_halves_and_gives_the_same_bytes(tmp_path):
    rows = [
        ("thumbs up sign, dark skin tone", "+1", "People & Body", "hand-fingers-closed", True),
        ("thumbs up sign", "+1", "People & Body", "hand-fingers-closed", False),
        ("aubergine", "eggplant", "Food & Drink", "food-vegetable", False),
    ]
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 4), np.uint8)
    pixels[..., 3] = np.arange(64)[:, None] // 32 * 255  # the lower half is opaque
    for i in range(3):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    keys = ("text", "short_name", "category", "subcategory")
    lines = (
        json.dumps(dict(zip(keys, row, strict=False)) | {"file_name": f"{i}.png"})
        for i, row in enumerate(rows)
    )
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    packing = _packing()
    for name in ("one.npz", "two.npz"):
        packing.write(tmp_path / name, packing.pack(tmp_path))
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with np.load(tmp_path / "one.npz") as found:
        assert found["held_out"].tolist() == [row[-1] for row in rows]
        assert found["labels"].tolist() == [1, 1, 0]
        assert found["texts"].tolist() == [
            ["thumbs up sign, dark skin tone", "thumbs up, dark skin tone"],
            ["thumbs up sign", "thumbs up"],
            ["aubergine", "eggplant"],
        ]
        assert (found["images"][:, :16] == 255).all()
        halves = pixels[32:, :, :3].astype(float).reshape(16, 2, 32, 2, 3).mean((1, 3))
        assert np.abs(found["images"][:, 16:] - halves).max() <= 1  # rounded along each side
