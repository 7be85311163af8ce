"""Datasets of TFDS: tiny ones prepared here without TensorFlow, and CIFAR-10 if available.

The copy, prepared as ArrayRecord, is found through the environment variable DDPM_JAX_TFDS_DIR, a
TFDS data_dir.
"""

import io
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ddpm_jax.data import pipeline, sources
from ddpm_jax.data.dataset_info import describe, holds_out
from ddpm_jax.errors import FailureError, UsageError


def _builder(name, splits, features, examples, configs=()):
    """Return a TFDS dataset `name` whose split s holds `examples(s, i)` for i < splits[s]."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = list(configs)  # noqa: RUF012

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split, count) for split, count in splits.items()}

        def _generate_examples(self, split, count):
            for i in range(count):
                yield i, examples(split, i)

    Builder.name = name
    return Builder


def _prepare(tmp_path, name="tiny", *, splits, features=None, examples=None, **options):
    features = features or {"image": tfds.features.Tensor(shape=(6, 6, 1), dtype=np.uint8)}
    examples = examples or (
        lambda split, i: {"image": np.full((6, 6, 1), len(split) * 16 + i, np.uint8)}
    )
    tfds.disable_progress_bar()
    builder = _builder(name, splits, features, examples, **options)(data_dir=tmp_path)
    builder.download_and_prepare(file_format="array_record")
    return builder


def _load(data_dir, name="tiny", **options):
    defaults = {"split": "train", "image_size": 6, "channels": 1, "cache": "never"}
    return sources.load(name=name, data_dir=str(data_dir), **(defaults | options))


def _values(source):
    return [int(source[i]["image"][0, 0, 0]) for i in range(len(source))]


def _split_values(split, count):
    return [len(split) * 16 + i for i in range(count)]


def test_train_and_test_are_the_datasets_own(tmp_path):
    _prepare(tmp_path, splits={"train": 5, "validation": 3, "test": 2})
    assert _values(_load(tmp_path)) == _split_values("train", 5)
    assert _values(_load(tmp_path, split="test", holdout=0.5)) == _split_values("test", 2)
    assert _values(_load(tmp_path, holdout=0.5)) == _split_values("train", 5)


def test_validation_serves_as_test(tmp_path):
    _prepare(tmp_path, splits={"train": 5, "validation": 3})
    assert _values(_load(tmp_path, split="test")) == _split_values("validation", 3)


def test_otherwise_test_is_carved_off_train(tmp_path):
    _prepare(tmp_path, splits={"train": 10})
    held_out = sorted(np.random.RandomState(0).permutation(10)[:3])
    train, test = (
        _values(_load(tmp_path, split=split, holdout=0.3)) for split in ("train", "test")
    )
    assert test == [_split_values("train", 10)[row] for row in held_out]
    assert sorted(train + test) == _split_values("train", 10)
    assert len(_load(tmp_path)) == 10
    with pytest.raises(
        UsageError, match="Dataset 'tiny' has no test split of its own: set holdout"
    ):
        _load(tmp_path, split="test")


def test_split_expressions_pass_through(tmp_path):
    _prepare(tmp_path, splits={"train": 4, "test": 2})
    assert _values(_load(tmp_path, split="train[1:3]")) == _split_values("train", 4)[1:3]
    assert _values(_load(tmp_path, split="train+test")) == _split_values(
        "train", 4
    ) + _split_values("test", 2)


@pytest.mark.parametrize("split", ["tests", "train[:10"])
def test_a_split_that_is_not_there_is_refused(tmp_path, split):
    _prepare(tmp_path, splits={"train": 4, "test": 2})
    with pytest.raises(UsageError, match=r"'tiny' has no images in split .*over test, train"):
        _load(tmp_path, split=split)


def test_an_empty_split_is_refused(tmp_path):
    _prepare(tmp_path, splits={"train": 4})
    with pytest.raises(UsageError, match=r"'tiny' has no images in split 'train\[:0\]'"):
        _load(tmp_path, split="train[:0]")


def test_versions_and_configs_are_found(tmp_path):
    configs = [tfds.core.BuilderConfig(name=name, version="1.0.0") for name in ("small", "large")]
    _prepare(tmp_path, splits={"train": 4}, configs=configs)
    assert len(_load(tmp_path, "tiny/small")) == len(_load(tmp_path, "tiny/small:1.0.0")) == 4
    assert _load(tmp_path, "tiny/small").fingerprint == "tiny/small/1.0.0 train 6x6x1 n=4"


def _png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _image_features(tmp_path, encoded):
    """Return a dataset of `features.Image`.

    It is prepared as text, which needs no TensorFlow, and then declared to be images.
    """
    text, label = tfds.features.Text(), tfds.features.ClassLabel(num_classes=3)
    features = {"id": text, "image": text, "label": label}

    def examples(split, i):
        return {"id": "x", "image": encoded[i], "label": i % 3}

    builder = _prepare(
        tmp_path, splits={"train": len(encoded)}, features=features, examples=examples
    )
    path = pathlib.Path(builder.data_dir) / "features.json"
    declared = json.loads(path.read_text())
    declared["featuresDict"]["features"]["image"] = {
        "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
        "image": {
            "shape": {"dimensions": ["-1", "-1", "3"]},
            "dtype": "uint8",
            "encodingFormat": "png",
        },
    }
    path.write_text(json.dumps(declared))


def test_images_are_decoded_resized_and_labelled(tmp_path):
    pixels = [np.random.default_rng(i).integers(0, 256, (12, 12, 3), np.uint8) for i in range(5)]
    _image_features(tmp_path, [_png(p) for p in pixels])
    full, half = _load(tmp_path, image_size=12, channels=3), _load(tmp_path, channels=3)
    assert full.num_classes == 3
    for i, p in enumerate(pixels):
        np.testing.assert_array_equal(full[i]["image"], p)
        assert full[i]["label"] == i % 3
        means = p.reshape(6, 2, 6, 2, 3).mean(axis=(1, 3))
        assert np.abs(half[i]["image"] - means).max() <= 1  # Pillow rounds along each axis
    batch = full.gather(np.array([3, 0, 3]))
    np.testing.assert_array_equal(batch["image"], [pixels[3], pixels[0], pixels[3]])


def test_damaged_and_small_records_are_named(tmp_path):
    good = _png(np.zeros((12, 12, 3), np.uint8))
    _image_features(tmp_path, [good, b"<html>", _png(np.zeros((5, 9, 3), np.uint8))])
    with pytest.raises(
        UsageError, match=r"Image 1 of dataset 'tiny' cannot be decoded \(not an image"
    ):
        _load(tmp_path, channels=3, split="train[:2]", cache="always")
    with pytest.raises(
        UsageError, match="Image 2 of dataset 'tiny' is 9x5 pixels, smaller than image_size=6"
    ):
        _load(tmp_path, channels=3)[2]
    iterator = pipeline.train_iterator(_load(tmp_path, channels=3), batch_size=3, seed=0)
    with pytest.raises(FailureError, match=r"Image [12] of dataset 'tiny'"):
        next(iterator)
    iterator.close()


@pytest.mark.parametrize("cache", ["never", "always"])
def test_small_records_are_replaced_or_enlarged_if_asked_for(tmp_path, cache, caplog):
    sizes = [(6, 6), (3, 9), (12, 12)]
    images = [_png(np.full((*size, 3), i, np.uint8)) for i, size in enumerate(sizes)]
    _image_features(tmp_path, images)
    assert _values(_load(tmp_path, channels=3, cache=cache, small="skip")) == [0, 2, 2]
    assert "Skipped image 1 of dataset 'tiny' (it is 9x3 pixels)" in caplog.text
    enlarging = _load(tmp_path, channels=3, cache=cache, small="enlarge")
    assert (_values(enlarging), enlarging.skipped) == ([0, 1, 2], [])
    _image_features(tmp_path / "damaged", [images[0], b"<html>", images[1]])
    with pytest.raises(UsageError, match=r"Image 1 of dataset 'tiny' cannot be decoded"):
        _load(tmp_path / "damaged", channels=3, cache="always", small="skip")


def test_a_dataset_all_of_whose_images_are_small_is_enlarged_if_asked_for(tmp_path):
    _prepare(tmp_path, splits={"train": 2})
    for small in ("stop", "skip"):
        with pytest.raises(
            UsageError, match=r"is 6x6 pixels, smaller than image_size=8: .* data.small=enlarge"
        ):
            _load(tmp_path, image_size=8, small=small)
    assert _load(tmp_path, image_size=8, small="enlarge").gather(np.arange(2))["image"].shape == (
        2,
        8,
        8,
        1,
    )


def test_the_names_of_classes_and_the_splits_are_known(tmp_path):
    label = tfds.features.ClassLabel(names=["ant", "bee"])
    features = {"image": tfds.features.Tensor(shape=(6, 6, 1), dtype=np.uint8), "label": label}

    def examples(split, i):
        return {"image": np.zeros((6, 6, 1), np.uint8), "label": i % 2}

    _prepare(tmp_path, splits={"train": 4}, features=features, examples=examples)
    whole, carved = _load(tmp_path, cache="always"), _load(tmp_path, split="test", holdout=0.25)
    assert whole.info.class_names == carved.info.class_names == ("ant", "bee")
    assert whole.info.contents == carved.info.contents == "tiny/1.0.0 train=4"
    assert describe(whole) == "train 4; 2 classes: ant 2, bee 2"
    assert describe(carved) == "train 3, test 1; 2 classes: ant, bee"
    assert holds_out(carved)
    assert not holds_out(whole)


@pytest.mark.parametrize("cache", ["never", "always"])
def test_skip_replaces_a_damaged_record_by_the_next_and_tells_and_counts_it(
    tmp_path, cache, caplog
):
    images = [_png(np.full((6, 6, 3), i, np.uint8)) for i in range(5)]
    for i in (1, 2, 4):
        images[i] = images[i][:45]
    _image_features(tmp_path, images)
    source = _load(tmp_path, channels=3, cache=cache, unreadable="skip")
    for _ in range(2):  # the second pass, with the bad ones known, is the same
        assert _values(source) == [0, 3, 3, 3, 0]
        assert [int(source[i]["label"]) for i in range(5)] == [0, 0, 0, 0, 0], (
            "the labels go with the images"
        )
    assert sorted(source.skipped) == [f"image {i} of dataset 'tiny'" for i in (1, 2, 4)]
    warnings = [record.getMessage() for record in caplog.records if "so far" in record.getMessage()]
    assert len(warnings) == 3
    assert warnings[-1].startswith("Skipped image 4 of dataset 'tiny' (")
    assert warnings[-1].endswith("): 3 of 5 images are unreadable so far.")


def test_a_dataset_of_nothing_that_can_be_decoded_is_refused(tmp_path):
    _image_features(tmp_path, [b"<html>", b""])
    with pytest.raises(
        UsageError, match="None of the 2 images of dataset 'tiny' can be decoded: prepare it again"
    ):
        _load(tmp_path, channels=3, unreadable="skip", cache="always")


def test_a_dataset_whose_files_are_gone_is_told_with_what_to_do(tmp_path):
    _prepare(tmp_path, splits={"train": 4})
    source = _load(tmp_path)
    shutil.rmtree(tmp_path / "tiny")
    iterator = pipeline.train_iterator(source, batch_size=2, seed=0)
    with pytest.raises(
        FailureError, match=r"^Dataset 'tiny' can no longer be read \(.*No such file.*\): bring its"
    ):
        next(iterator)
    iterator.close()


def test_a_dataset_without_images_is_refused(tmp_path):
    _prepare(
        tmp_path,
        splits={"train": 1},
        features={"text": tfds.features.Text()},
        examples=lambda split, i: {"text": "a"},
    )
    with pytest.raises(UsageError, match=r"should have one image feature, .*but has text"):
        _load(tmp_path)


@pytest.mark.parametrize("name", ["lsun/church", "cifar10", "cifar10:3.0.2"])
def test_a_dataset_that_is_not_prepared_says_what_to_type(tmp_path, name):
    with pytest.raises(UsageError) as error:
        _load(tmp_path, name)
    sentence = str(error.value)
    command = (
        f"tfds.builder('{name}', "
        f"data_dir='{tmp_path}').download_and_prepare(file_format='array_record')"
    )
    for part in (
        f"Dataset '{name}' is not prepared in {tmp_path}",
        "pip install -e '.[prepare]'",
        command,
        "'folder'",
    ):
        assert part in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("name", "nearest"), [("cifr10", "cifar10"), ("digit", "digits"), ("Folder!", None)]
)
def test_an_unknown_dataset_suggests_the_nearest(tmp_path, name, nearest):
    with pytest.raises(
        UsageError, match=rf"Unknown dataset '{name}': give digits, emoji, folder, or"
    ) as error:
        _load(tmp_path, name)
    assert nearest is None or f"Did you mean '{nearest}'?" in str(error.value)


def test_a_dataset_in_tfrecord_format_has_its_own_sentence(tmp_path):
    builder = _prepare(tmp_path, splits={"train": 1})
    info = pathlib.Path(builder.data_dir) / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(
        UsageError,
        match=r"'tiny' in .* is stored as tfrecord, .*data_dir='NEW_DATA_DIR'.*array_record",
    ):
        _load(tmp_path)


@pytest.fixture(scope="module")
def cifar10():
    data_dir = os.environ.get("DDPM_JAX_TFDS_DIR")
    if not data_dir:
        pytest.skip(
            "set DDPM_JAX_TFDS_DIR to a TFDS data_dir that holds cifar10, prepared as ArrayRecord"
        )
    return sources.load(name="cifar10", split="train", data_dir=data_dir, image_size=32, channels=3)


def test_cifar10_has_its_published_mean(cifar10):
    """The mean per channel of the training images, known to eight digits."""
    assert (len(cifar10), cifar10.num_classes, cifar10.image_shape) == (50_000, 10, (32, 32, 3))
    mean = cifar10.images.mean(axis=(0, 1, 2), dtype=np.float64) / 255
    np.testing.assert_allclose(mean, [0.49139968, 0.48215841, 0.44653091], atol=1e-8)
    np.testing.assert_array_equal(np.bincount(cifar10.labels), [5_000] * 10)


def test_cifar10_streams_the_same_with_and_without_cache(cifar10):
    direct = sources.load(
        name="cifar10",
        split="train",
        data_dir=os.environ["DDPM_JAX_TFDS_DIR"],
        image_size=32,
        channels=3,
        cache="never",
    )
    streams = [
        pipeline.train_iterator(source, batch_size=32, seed=7) for source in (cifar10, direct)
    ]
    for _ in range(3):
        ours, theirs = (next(stream) for stream in streams)
        np.testing.assert_array_equal(ours["image"], theirs["image"])
        np.testing.assert_array_equal(ours["label"], theirs["label"])
    for stream in streams:
        stream.close()


def _rewrite_features(builder, change):
    """Put change(the text) in place of the features.json of a prepared dataset."""
    path = pathlib.Path(builder.data_path) / "features.json"
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("tensorflow_datasets.core.features.tensor_feature", "intruder"),
        lambda text: text.replace("tensorflow_datasets.core.features.features_dict", "intruder"),
        lambda text: (
            text.replace("tensorflow_datasets.core", "intruder")
            .replace("pythonClass", "python_class_")
            .replace("_Name", "_name")
        ),
        lambda text: json.dumps({"type": "intruder.Image", "content": {}}),  # of an older TFDS
        lambda text: json.dumps(
            {"type": "tensorflow_datasets.core.features_of_mine.Image", "content": {}}
        ),
    ],
)
def test_a_module_that_a_foreign_features_file_names_is_not_imported(tmp_path, monkeypatch, change):
    """The module leaves a file behind where it is imported."""
    (tmp_path / "code").mkdir()
    for name in ("intruder", "tensorflow_datasets_intruder"):
        (tmp_path / "code" / f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        )
    monkeypatch.syspath_prepend(tmp_path / "code")
    _rewrite_features(_prepare(tmp_path / "data", splits={"train": 2}), change)
    with pytest.raises(
        UsageError, match=r"features\.json names the class '\w+\..*run code of its own"
    ):
        _load(tmp_path / "data")
    assert not (tmp_path / "ran").exists()


def test_a_damaged_dataset_is_named(tmp_path):
    builder = _prepare(tmp_path, splits={"train": 2})
    info = pathlib.Path(builder.data_path) / "dataset_info.json"
    whole = info.read_text()
    for text in ("[]", "{", whole.replace('"splits"', '"sprits"')):
        info.write_text(text)
        with pytest.raises(UsageError, match="tiny"):
            _load(tmp_path)
    info.write_text(whole)
    info.unlink()
    with pytest.raises(UsageError, match="tiny"):
        _load(tmp_path)
    os.mkfifo(info)
    with pytest.raises(FailureError, match=r"dataset_info\.json is a named pipe"):
        _load(tmp_path)
    info.unlink()
    info.write_text(whole)
    features = (info.parent / "features.json").read_text()
    _rewrite_features(builder, lambda text: "[" * 100_000)
    with pytest.raises(UsageError, match=r"features\.json is damaged"):
        _load(tmp_path)
    _rewrite_features(builder, lambda text: features.replace('"image"', '"picture"'))
    with pytest.raises(UsageError, match=r"has no 'picture', of which features\.json tells"):
        _load(tmp_path)[0]


CAPTIONED = {
    "image": tfds.features.Tensor(shape=(6, 6, 1), dtype=np.uint8),
    "caption": tfds.features.Text(),
    "words": tfds.features.Sequence(tfds.features.Text()),
    "place": {"town": tfds.features.Text()},
    "people": tfds.features.Sequence({"said": tfds.features.Text(), "age": np.int64}),
}


def _captioned(split, i):
    return {
        "image": np.full((6, 6, 1), i, np.uint8),
        "caption": f"número {i}",
        "words": [f"word {j}" for j in range(i + 1)],
        "place": {"town": f"town {i}"},
        "people": [{"said": f"{i} {j}", "age": j} for j in range(2)],
    }


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioned")
    _prepare(folder, splits={"train": 8, "test": 3}, features=CAPTIONED, examples=_captioned)
    return folder


@pytest.mark.parametrize("cache", ["always", "never"])
@pytest.mark.parametrize(
    ("field", "texts"),
    [
        ("auto", lambda i: (f"número {i}",)),
        ("words", lambda i: tuple(f"word {j}" for j in range(i + 1))),
        ("place/town", lambda i: (f"town {i}",)),
        ("people/said", lambda i: (f"{i} 0", f"{i} 1")),
    ],
)
def test_captions_are_a_text_or_a_sequence_of_them(captioned, field, texts, cache):
    for split in ("train", "test", "train[4:]"):
        source = _load(captioned, split=split, captions=field, cache=cache)
        for i in range(len(source)):
            assert source.captions[i] == texts(int(source[i]["image"][0, 0, 0]))


def test_captions_follow_the_images_that_are_held_out(tmp_path):
    _prepare(tmp_path, splits={"train": 10}, features=CAPTIONED, examples=_captioned)
    seen = set()
    for split, count in (("train", 7), ("test", 3)):
        source = _load(tmp_path, split=split, holdout=0.3, captions="caption")
        assert len(source) == len(source.captions) == count
        for i in range(count):
            value = int(source[i]["image"][0, 0, 0])
            assert source.captions[i] == (f"número {value}",)
            seen.add(value)
    assert seen == set(range(10))


def test_features_that_no_one_asked_for_may_be_sequences_of_dictionaries(captioned):
    source = _load(captioned)
    assert source.captions is None
    assert [int(source[i]["image"][0, 0, 0]) for i in range(8)] == list(range(8))


def test_the_fingerprint_tells_which_captions_are_taken(captioned):
    prints = {_load(captioned, captions=field).fingerprint for field in ("", "caption", "words")}
    assert len(prints) == 3


def test_captions_that_are_not_there_are_refused(captioned, tmp_path):
    with pytest.raises(
        UsageError,
        match="Dataset 'tiny' has no captions 'word': its texts are caption, people/said, place/town, words",
    ):
        _load(captioned, captions="word")
    _prepare(tmp_path, "bare", splits={"train": 2})
    with pytest.raises(UsageError, match="Dataset 'bare' has no texts to take for captions: set"):
        _load(tmp_path, "bare", captions="auto")
    with pytest.raises(UsageError, match="Dataset 'bare' has no captions 'x': it has no texts"):
        _load(tmp_path, "bare", captions="x")
    image = CAPTIONED["image"]
    texts = {name: tfds.features.Text() for name in ("title", "note")}
    _prepare(
        tmp_path,
        "two",
        splits={"train": 3},
        features={"image": image, **texts},
        examples=lambda split, i: {
            "image": np.zeros((6, 6, 1), np.uint8),
            "title": "x",
            "note": " " * (i % 2),
        },
    )
    with pytest.raises(UsageError, match=r"texts: set data\.captions to one of note, title"):
        _load(tmp_path, "two", captions="auto")
    with pytest.raises(
        UsageError, match="Image 0 of dataset 'two' has no caption, or an empty one, in 'note'"
    ):
        _load(tmp_path, "two", captions="note")
    assert _load(tmp_path, "two", captions="title").captions[2] == ("x",)
