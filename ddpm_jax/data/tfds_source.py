"""Datasets prepared by tensorflow-datasets as ArrayRecord, read without TensorFlow.

No builder code is run. Pictures are decoded by Pillow, as those of a folder are, so that pixels do
not depend on whether OpenCV is installed (TFDS would prefer it, and the two decode JPEG
differently). A dataset in a bucket is copied to this machine first, since there each random access
costs a request.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import naming, read_only_builder
from tensorflow_datasets.core.utils import file_utils

from ddpm_jax import schema
from ddpm_jax.data import images
from ddpm_jax.data.captions import fingerprint_of
from ddpm_jax.data.data_dir import check_no_pictures
from ddpm_jax.data.dataset_info import DatasetInfo
from ddpm_jax.data.holdout import split_rows
from ddpm_jax.data.inspection import Policy
from ddpm_jax.data.tfds_captions import find_feature, read_captions
from ddpm_jax.data.unreadable import Unreadable
from ddpm_jax.errors import FailureError, UsageError, suggest
from ddpm_jax.files import (
    as_path,
    check_place,
    is_remote,
    local_copy,
    open_file,
    read_file,
    reporting,
)

_TFDS_PREFIX = "tensorflow_datasets.core.features."
# keys of features.json that hold the class name of a feature
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
HELD_OUT = ("test", "validation")  # "test" is the first of these that the dataset has


class TfdsSource:
    """Random access to a prepared split of a TFDS dataset.

    See `sources.Source` for the attributes; `open_dataset` makes one.

    Attributes:
      skipped: images that could not be decoded so far or were too small, if the policy is to skip
        them; the next usable image is taken instead, so that the sequence of examples does not
        depend on when that is noticed.
      reasons: name -> why it was skipped.
    """

    def __init__(
        self,
        records,
        rows,
        *,
        keys,
        num_classes,
        image_size,
        channels,
        policy,
        name,
        fingerprint,
        info,
        captions=None,
    ):
        self._records, self._rows = records, rows
        self._image_key, self._label_key = keys
        self._policy, self._unreadable = policy, Unreadable(len(rows))
        self._name = name
        self.image_shape = (image_size, image_size, channels)
        self.num_classes = num_classes
        self.fingerprint = fingerprint
        self.info = info
        self.captions = captions

    @property
    def skipped(self) -> list[str]:
        return self._unreadable.names

    @property
    def reasons(self) -> dict[str, str]:
        return self._unreadable.reasons

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        batch = self.gather(np.array([i]))
        return {"image": batch["image"][0], "label": batch["label"][0]}

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return self.gather_rows(indices)[0]

    def gather_rows(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Read many records at once, ~5 times cheaper than one by one."""
        images, labels, rows = zip(
            *(
                self._example(int(i), record)
                for i, record in zip(indices, self._read(indices), strict=True)
            ),
            strict=True,
        )
        batch = {"image": np.stack(images), "label": np.array(labels, np.int32)}
        return batch, np.array(rows)

    def _read(self, indices: np.ndarray) -> list:
        try:
            return self._records.__getitems__([int(row) for row in self._rows[indices]])
        except (OSError, RuntimeError, ValueError) as error:  # raised by array_record
            reason = str(error).strip().split("\n")[0]
            raise FailureError(
                f"Dataset {self._name!r} can no longer be read ({reason}): bring its files back or "
                "prepare it again, and give the same command again to resume from the last "
                "checkpoint."
            ) from error

    def _example(self, i: int, record) -> tuple[np.ndarray, int, int]:
        """Decode example `i`, or the next one that can be decoded; image, label and row."""
        for j in itertools.chain(range(i, len(self)), range(i)):
            name = f"image {self._rows[j]} of dataset {self._name!r}"
            if name in self._unreadable:
                continue
            record = record if j == i else self._read(np.array([j]))[0]
            lacking = [
                key for key in (self._image_key, self._label_key) if key and record.get(key) is None
            ]
            if lacking:
                raise UsageError(
                    f"I{name[1:]} has no {lacking[0]!r}, of which features.json tells: prepare the "
                    "dataset again."
                )
            try:
                label = record[self._label_key] if self._label_key else 0
                return self._image(record, name), label, j
            except images.UnreadableImage as error:
                if self._policy.unreadable != "skip" and not isinstance(error, _TooSmall):
                    raise UsageError(
                        f"I{name[1:]} cannot be decoded ({error}): prepare the dataset again, or "
                        "set data.unreadable=skip to pass over such images."
                    ) from error
                self._unreadable.add(name, error)
        raise UsageError(
            f"None of the {len(self)} images of dataset {self._name!r} can be decoded: prepare it "
            "again."
        )

    def _image(self, record, name: str) -> np.ndarray:
        image_size, _, channels = self.image_shape
        encoded = record[self._image_key]
        image = images.decode(encoded) if isinstance(encoded, bytes) else images.from_array(encoded)
        small = self._policy.small
        if min(image.size) < image_size and small != "enlarge":
            if small == "stop":
                raise UsageError(_too_small(f"I{name[1:]}", image.size, image_size))
            raise _TooSmall(f"it is {images.format_size(image.size)} pixels")
        return images.to_array(
            image, image_size=image_size, channels=channels, enlarge=small == "enlarge"
        )


class _TooSmall(images.UnreadableImage):
    """An image that is skipped because of its size."""


def open_dataset(
    name: str,
    *,
    split: str,
    data_dir: str,
    image_size: int,
    channels: int,
    holdout: float,
    policy: Policy,
    captions: str = "",
) -> TfdsSource:
    """Open `name` ("cifar10", "cifar10:3.0.2", "lsun/church") below `data_dir`.

    Args:
      split: "train"; "test", which is the dataset's own "test", else its "validation", else
        `holdout` of "train"; or a TFDS split expression, such as "train[:90%]" or "train+test".
      policy: how images that cannot be used are treated.
      captions: the feature that holds them, see `tfds_captions.find_feature`; "" for none.

    Raises:
      UsageError: the dataset is unknown, absent, not ArrayRecord, or has no such split, no images,
        too small ones, or not the captions.
    """
    remote = bool(data_dir) and is_remote(data_dir)
    if remote:
        check_place(as_path(data_dir), flag="data_dir")
    builder = _find(name, data_dir)
    if remote:
        with reporting(data_dir, "read"):
            builder = read_only_builder.builder_from_directory(local_copy(builder.data_path))
    _check_random_access(builder, name, data_dir)
    image_key, label_key, num_classes = _keys(builder.info.features, name)
    shape = builder.info.features[image_key].shape
    if None not in shape and min(shape[:2]) < image_size and policy.small != "enlarge":
        raise UsageError(
            _too_small(f"An image of dataset {name!r}", (shape[1], shape[0]), image_size)
        )
    expression = _expression(split, builder, name)
    feature = find_feature(builder.info.features, captions, name=name) if captions else ""
    skip = {
        key: tfds.decode.SkipDecoding()
        for key, unused in builder.info.features.items()
        if key not in (label_key, image_key, feature) and not _is_nested(unused)
    }
    if isinstance(builder.info.features[image_key], tfds.features.Image):
        skip[image_key] = tfds.decode.SkipDecoding()
    try:
        records = builder.as_data_source(expression, decoders=skip)
    except (ValueError, KeyError) as error:  # KeyError where there is no split at all
        known = ", ".join(sorted(builder.info.splits))
        raise UsageError(
            f"Dataset {name!r} has no images in split {split!r}: give train, test, or a TFDS "
            f"expression over {known}.{suggest(split, builder.info.splits)}"
        ) from error
    carved = split in ("train", "test") and expression == "train" and not _held_out(builder)
    rows = (
        split_rows(len(records), split=split, holdout=holdout, where=f"Dataset {name!r}")
        if carved
        else np.arange(len(records))
    )
    captioned = read_captions(records, rows, feature, name=name) if feature else None
    class_names = tuple(builder.info.features[label_key].names) if num_classes else ()
    fingerprint = (
        f"{builder.info.full_name} {split} {image_size}x{image_size}x{channels} n={len(rows)}"
        f"{fingerprint_of(captioned)}"
    )
    return TfdsSource(
        records,
        rows,
        keys=(image_key, label_key),
        num_classes=num_classes,
        image_size=image_size,
        channels=channels,
        policy=policy,
        name=name,
        fingerprint=fingerprint,
        info=DatasetInfo(
            class_names, _splits(builder, len(rows), split, holdout=holdout), _contents(builder)
        ),
        captions=captioned,
    )


def native_shape(name: str, data_dir: str) -> tuple[int | None, int | None, int]:
    """Return (H, W, C) of the images of a dataset, None for sides that differ between them.

    Raises:
      UsageError: the dataset is unknown or absent.
    """
    builder = _find(name, data_dir)
    height, width, channels = builder.info.features[_keys(builder.info.features, name)[0]].shape
    return height, width, channels if channels in images.MODES else 3


def check_name(name: str, data_dir: str) -> None:
    """Refuse the name of a dataset that is neither of TFDS nor prepared.

    Raises:
      UsageError: it is unknown, or damaged.
    """
    if name.partition("/")[0].partition(":")[0] not in _known():
        _find(name, data_dir)


def _known() -> list[str]:
    return tfds.list_builders(with_community_datasets=False)


def _is_nested(feature) -> bool:
    # a sequence or a dictionary, which TFDS cannot leave undecoded without TensorFlow
    return isinstance(feature, tfds.features.FeaturesDict) or hasattr(feature, "feature")


def _splits(
    builder: tfds.core.DatasetBuilder, count: int, split: str, *, holdout: float
) -> dict[str, int]:
    """Return the number of images of every split; `count` for the one called `split`."""
    there = {one: builder.info.splits[one].num_examples for one in builder.info.splits}
    if holdout and not _held_out(builder) and "train" in there and split in ("train", "test"):
        other = "test" if split == "train" else "train"
        there |= {split: count, other: there["train"] - count}
    return there


def _contents(builder: tfds.core.DatasetBuilder) -> str:
    counts = (
        f"{split}={builder.info.splits[split].num_examples}"
        for split in sorted(builder.info.splits)
    )
    return " ".join([builder.info.full_name, *counts])


def _find(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    try:
        base, kwargs = naming.parse_builder_name_kwargs(name)
        for folder in file_utils.list_data_dirs(given_data_dir=data_dir or None):
            _check_files(as_path(folder) / str(base))
        return read_only_builder.builder_from_files(str(base), data_dir=data_dir or None, **kwargs)
    except tfds.core.registered.DatasetNotFoundError:
        known = _known()
    except (UsageError, FailureError, MemoryError):
        raise
    except ValueError:
        base, known = name, _known()
    except Exception as error:  # TFDS lets any error of its parsers through
        # an error of the system, or of a bucket
        if getattr(error, "errno", None) is not None or is_remote(data_dir):
            raise
        raise UsageError(
            f"Dataset {name!r} in {_where(data_dir)} is damaged ({type(error).__name__}): with "
            f"another data_dir, {_how_to_prepare(name, 'NEW_DATA_DIR')}."
        ) from error
    if str(base) not in known:
        nearest = suggest(str(base), [*known, "digits", "emoji", "folder"])
        raise UsageError(
            f"Unknown dataset {name!r}: give digits, emoji, folder, or the name of a dataset of "
            f"tensorflow-datasets.{nearest}"
        )
    check_no_pictures(data_dir, name=name)
    raise UsageError(
        f"Dataset {name!r} is not prepared in {_where(data_dir)}: "
        f"{_how_to_prepare(name, data_dir)}, or put its images into a folder and use name='folder' "
        "with data_dir set to that folder."
    )


def _check_files(folder: Any) -> None:
    """Check the files of every config and version in `folder` before TFDS reads them.

    Raises:
      UsageError: features.json names a class that is not of TFDS, whose module would be imported;
        or JSON is damaged.
      FailureError: a file cannot be read, or is a pipe or a device, which may have no end.
    """
    for path in itertools.chain(folder.glob("*/*"), folder.glob("*/*/*")):
        if not is_remote(path) and not path.is_dir():
            with reporting(path, "read"):
                open_file(path).close()
        if path.name not in ("dataset_info.json", "features.json"):
            continue
        try:
            with reporting(path, "read"):
                found = schema.parse(read_file(path))
        except schema.Malformed as error:
            raise UsageError(f"{path} is damaged ({error}): prepare the dataset again.") from error
        classes = _classes_in(found) if path.name == "features.json" else ()
        foreign = next((name for name in classes if not name.startswith(_TFDS_PREFIX)), None)
        if foreign is not None:
            raise UsageError(
                f"{path} names the class {schema.format_value(foreign)}, and importing it would "
                "run code "
                "of its own: only datasets whose features are those of tensorflow-datasets are "
                "read."
            )


def _classes_in(value: Any) -> Iterator[str]:
    """Yield the names of classes in a features.json, of the present format and the older one."""
    if isinstance(value, list):
        for item in value:
            yield from _classes_in(item)
    elif isinstance(value, dict):
        yield from (value[key] for key in _CLASS_KEYS if isinstance(value.get(key), str))
        for item in value.values():
            yield from _classes_in(item)


def _where(data_dir: str) -> str:
    return data_dir or tfds.core.constants.DATA_DIR


def _how_to_prepare(name: str, data_dir: str) -> str:
    where = f", data_dir={data_dir!r}" if data_dir else ""
    return (
        "run `pip install -e '.[prepare]'` and then "
        f'`python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder({name!r}{where}).download_and_prepare(file_format='array_record')\"`"
    )


def _check_random_access(builder: tfds.core.DatasetBuilder, name: str, data_dir: str) -> None:
    formats = builder.info.available_file_formats()
    if not formats & tfds.core.FileFormat.with_random_access():
        found = ", ".join(sorted(f.value for f in formats))
        raise UsageError(
            f"Dataset {name!r} in {_where(data_dir)} is stored as {found}, which cannot be read in "
            f"random order: with another data_dir, {_how_to_prepare(name, 'NEW_DATA_DIR')}."
        )


def _keys(features, name: str) -> tuple[str, str | None, int]:
    """Return the key of the image, that of the label or None, and the number of classes or 0."""
    found = [key for key, feature in features.items() if _is_image(feature)]
    if "image" not in found and len(found) != 1:
        raise UsageError(
            f"Dataset {name!r} should have one image feature, or several of which one is called "
            f"image, but has {', '.join(sorted(features))}."
        )
    labels = [
        key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)
    ]
    label = "label" if "label" in labels else labels[0] if len(labels) == 1 else None
    return (
        "image" if "image" in found else found[0],
        label,
        (features[label].num_classes or 0) if label else 0,
    )


def _is_image(feature) -> bool:
    is_pixels = (
        isinstance(feature, tfds.features.Tensor)
        and len(feature.shape) == 3
        and feature.np_dtype == np.uint8
    )
    return isinstance(feature, tfds.features.Image) or is_pixels


def _held_out(builder: tfds.core.DatasetBuilder) -> str | None:
    return next((split for split in HELD_OUT if split in builder.info.splits), None)


def _expression(split: str, builder: tfds.core.DatasetBuilder, name: str) -> str:
    if split == "test":
        return _held_out(builder) or "train"
    return split


def _too_small(what: str, size: tuple[int, int], image_size: int) -> str:
    return (
        f"{what} is {size[0]}x{size[1]} pixels, smaller than image_size={image_size}: "
        "ask for a smaller image_size, or set data.small=enlarge to enlarge such images."
    )
