"""Sets of images for metrics: folders, NPZ files, shards of `sample.py`, splits of datasets.

`open_images` decides by what it finds. A set is checked before a metric computes anything: headers
of all pictures of a folder, types and shapes of arrays. Published statistics, which have no images,
are read by `published_statistics`.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ddpm_jax.archives import BadArchive, Header, Member, npz_index, read_npz_array
from ddpm_jax.data import images, sources
from ddpm_jax.data.dataset_info import DatasetInfo, dataset_info
from ddpm_jax.data.in_memory import ArraySource, for_each, gather
from ddpm_jax.data.layout import label_from_path, read_layout
from ddpm_jax.data.sources import Source
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.files import absolute, as_path, is_remote
from ddpm_jax.generation.shards import MANIFEST, Shard, read_manifest, read_shard, whole_shards

IMAGE_ARRAYS = ("arr_0", "images", "samples")  # OpenAI's name, ours, and one that others use
LABEL_ARRAYS = ("arr_1", "labels")
# a dataset and its split: "cifar10:train", "cifar10:3.0.2:test", "lsun/church:train[:1000]"
_SPLIT = re.compile(r"(?P<name>[\w/]+(?::\d+\.\d+\.\d+)?):(?P<split>[a-z][^/]*)")
_SHOWN = 3
# of a manifest, what says nothing of the images that its other entries do not
_OF_MANIFEST = ("checkpoint", "config", "num_images", "shard_size")


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images that can be compared with others.

    Attributes:
      source: random access to them, uint8; its labels count where `num_classes` is not 0.
      record: what a result says of them, JSON-able.
      fingerprint: changes with the images, at the latest with size or time of a file; a SHA-256.
      mixed: of grey pictures among others in colour, a sentence that names one of each; else "".
    """

    source: Source
    record: dict[str, Any]
    fingerprint: str
    mixed: str = ""

    def __len__(self) -> int:
        return len(self.source)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (H, W, C)."""
        return tuple(self.source.image_shape)

    def batches(self, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield images uint8 [B, H, W, C] and labels int32 [B] of the rows, in order."""
        for start in range(0, len(rows), batch_size):
            batch = gather(self.source, rows[start : start + batch_size])
            yield batch["image"], batch["label"]


def open_images(
    place: str | os.PathLike, *, image_size: int | None = None, data_dir: str = ""
) -> ImageSet:
    """Open a set of images.

    Args:
      place: a folder of pictures (folders in it are classes), the directory of shards that
        `sample.py` writes, an NPZ file with uint8 [N, H, W, C] as `arr_0`, `images` or `samples`,
        or a split of a dataset, as in "cifar10:train" and "digits:test".
      image_size: to which images are shrunk and cropped at the centre, as in training; None: they
        are taken as they are, and must be of one size.
      data_dir: of TFDS, "" for its default.

    Raises:
      UsageError: there is no such place, or no image in it; images that cannot be read, of several
        sizes, smaller than `image_size`, or of another type than uint8.
      FailureError: files that are damaged.
    """
    path, text = as_path(place), os.fspath(place)
    opened = shrunk(_open(path, text, image_size, data_dir), image_size)
    if data_dir and opened.record["kind"] == "split":
        where = {"data_dir": str(absolute(as_path(data_dir)))}
        return dataclasses.replace(opened, record=opened.record | where)
    return opened


def _open(path: Any, text: str, image_size: int | None, data_dir: str) -> ImageSet:
    found = _SPLIT.fullmatch(text)
    if found and not (is_remote(text) or path.exists()):
        return _open_split(found["name"], found["split"], image_size, data_dir)
    if not path.exists():
        raise UsageError(
            f"There is no {text}: name a folder of images, an NPZ file, or a split of a dataset as "
            "in cifar10:train."
        )
    if not path.is_dir():
        return _open_npz(path)
    if (path / MANIFEST).exists():
        return _open_shards(path)
    return _open_folder(path, image_size)


def has_images(path: pathlib.Path) -> bool:
    """Return whether a local NPZ file holds images; False for a file that is none."""
    try:
        return not set(IMAGE_ARRAYS).isdisjoint(npz_index(path))
    except (BadArchive, OSError):
        return False


def of_source(split: Source, **record: Any) -> ImageSet:
    """Return a split of a dataset as a set; `record` is what a result says of it besides."""
    known = dataset_info(split)
    facts = {"kind": "split", **record, **_facts(split), "fingerprint": split.fingerprint}
    return ImageSet(split, facts, _digest([split.fingerprint, known.contents, repr(known.files)]))


def of_arrays(pixels: Any, labels: Any = None, *, name: str = "given") -> ImageSet:
    """Return images of the caller as a set.

    Args:
      pixels: uint8 [N, H, W, C], C of 1 or 3.
      labels: int [N], from 0; None without classes.
      name: for messages and records.

    Raises:
      UsageError: another type or shape.
    """
    pixels = np.asarray(pixels)
    _check_pixels(name, Header(pixels.dtype, pixels.shape), pixels)
    source = _array_source(pixels, labels, name)
    digest = hashlib.sha256(np.ascontiguousarray(pixels).data)
    return ImageSet(
        source, {"kind": "arrays", "source": name, **_facts(source)}, digest.hexdigest()
    )


def shrunk(given: ImageSet, image_size: int | None) -> ImageSet:
    """Return a set whose images are shrunk to a size and cropped at the centre, as in training.

    Args:
      given: the set; one that has this size already keeps its images.
      image_size: height and width; None changes nothing.

    Raises:
      UsageError: the images are smaller.
    """
    height, width, _ = given.image_shape
    if image_size is None:
        return given
    record = given.record | {"image_size": image_size}
    if height == width == image_size:
        return dataclasses.replace(given, record=record)
    if min(height, width) < image_size:
        raise UsageError(
            f"The images of {record.get('source', 'this set')} are {width}x{height} pixels, "
            f"smaller than image_size {image_size}: ask for a smaller one."
        )
    source, crop = ShrunkImages(given.source, image_size), _cropped()
    record |= {**_facts(source), "crop": crop}
    return ImageSet(
        source, record, _digest([given.fingerprint, crop, str(image_size)]), given.mixed
    )


def spread(count: int, wanted: int | None) -> np.ndarray:
    """Return `wanted` rows spread evenly over `count`, all of them by default, int [n]."""
    return np.linspace(0, count - 1, min(wanted or count, count)).round().astype(int)


def _facts(source: Source) -> dict[str, Any]:
    return {"count": len(source), "image_shape": list(source.image_shape)}


def _cropped() -> str:
    """Return how images are shrunk, for records."""
    return f"centre, {images.RESIZING}"


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(lines)).encode(errors="surrogateescape")).hexdigest()


def _stamp(path: Any) -> str:
    """Return size and time of a file, which change when it does."""
    status = path.stat()
    time = getattr(status, "st_mtime_ns", None) or getattr(status, "mtime", 0)
    return f"{getattr(status, 'st_size', None) or getattr(status, 'length', 0)} {time}"


def _open_split(name: str, split: str, image_size: int | None, data_dir: str) -> ImageSet:
    height, width, channels = sources.native_shape(name, data_dir)
    size = image_size or height
    if size is None or (image_size is None and height != width):
        raise UsageError(
            f"The images of {name} are not all squares of one size: say by image_size how large "
            "they are to be compared."
        )
    source = sources.load(
        name=name, split=split, data_dir=data_dir, image_size=size, channels=channels
    )
    crop = "none" if size == height == width else _cropped()
    return of_source(source, source=f"{name}:{split}", crop=crop)


class ShrunkImages:
    """The images of another source, shrunk and cropped at the centre; a `Source`."""

    def __init__(self, source: Source, image_size: int):
        channels = source.image_shape[2]
        self._source = source
        self.image_shape = (image_size, image_size, channels)
        self.num_classes = source.num_classes
        self.fingerprint = f"{source.fingerprint} {image_size}"

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        example = self._source[i]
        size, channels = self.image_shape[0], self.image_shape[2]
        pixels = example["image"][..., 0] if channels == 1 else example["image"]
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        return {**example, "image": images.to_array(picture, image_size=size, channels=channels)}


class ShardedImages:
    """The images of shards, of which one lies in memory at a time; a `Source`."""

    def __init__(self, shards: Sequence[Shard], labels: np.ndarray | None, name: str):
        self._shards, self.labels = shards, labels
        self._read: tuple[int, np.ndarray] = 0, read_shard(shards[0])
        self.image_shape = self._read[1].shape[1:]
        self.num_classes = 0 if labels is None else int(labels.max()) + 1
        self.fingerprint = name

    def __len__(self) -> int:
        return int(self._shards[-1].index[-1]) + 1

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        size = len(self._shards[0].index)
        if self._read[0] != i // size:
            self._read = i // size, read_shard(self._shards[i // size])
        if self._read[1].shape[1:] != self.image_shape:
            raise FailureError(
                f"{self._shards[i // size].path} holds images of another size than "
                f"{self._shards[0].path.name}: delete it."
            )
        label = np.int32(0) if self.labels is None else self.labels[i]
        return {"image": self._read[1][i % size], "label": label}


def _open_shards(path: Any) -> ImageSet:
    manifest, shards = read_manifest(path), whole_shards(path)
    labels = manifest.get("labels")
    if isinstance(labels, list) and labels and all(type(label) is int for label in labels):
        labels = np.resize(np.array(labels, np.int32), manifest["num_images"])
    else:
        labels = None
    source = ShardedImages(shards, labels, str(path))
    made = {name: value for name, value in manifest.items() if name not in _OF_MANIFEST}
    stamps = [f"{shard.path.name} {_stamp(shard.path)}" for shard in shards]
    facts = {"kind": "shards", "source": str(absolute(path)), **_facts(source), "made": made}
    return ImageSet(source, facts, _digest([json.dumps(manifest), *stamps]))


def _open_npz(path: pathlib.Path) -> ImageSet:
    try:
        members = npz_index(path)
        name = next((name for name in IMAGE_ARRAYS if name in members), None)
        if name is None:
            there = ", ".join(list(members)[:_SHOWN]) or "nothing"
            raise UsageError(
                f"{path} holds {there}, and neither images ({', '.join(IMAGE_ARRAYS)}) nor "
                "statistics (mu and sigma): name another file."
            )
        pixels = _read_pixels(path, name, members[name])
        labels = _read_labels(path, members, len(pixels))
    except BadArchive as error:
        raise UsageError(f"{path} is no NPZ file of images ({error}): name another.") from error
    source = _array_source(pixels, labels, str(path))
    facts = {"kind": "npz", "source": str(absolute(path)), "array": name, **_facts(source)}
    return ImageSet(source, facts, _digest([path.name, name, _stamp(path)]))


def _read_pixels(path: pathlib.Path, name: str, member: Member) -> np.ndarray:
    header = Header(member.dtype, member.shape)
    if member.dtype != np.uint8:
        _check_pixels(str(path), header, read_npz_array(path, name, header))
    _check_pixels(str(path), header)
    if member.offset is None or member.strides is not None:
        return read_npz_array(path, name, header)
    return np.memmap(path, member.dtype, "r", member.offset, member.shape)


def _read_labels(path: pathlib.Path, members: dict[str, Member], count: int) -> np.ndarray | None:
    for name in LABEL_ARRAYS:
        if name in members and members[name].shape == (count,) and members[name].dtype.kind in "iu":
            return read_npz_array(path, name, Header(members[name].dtype, (count,)))
    return None


def _check_pixels(name: str, header: Header, pixels: np.ndarray | None = None) -> None:
    """Refuse what are no images of 8 bits.

    Raises:
      UsageError: of another type, of another shape, not finite, or none.
    """
    shape = header.shape
    if header.dtype.kind == "f" and pixels is not None and not np.isfinite(pixels).all():
        raise UsageError(
            f"{name} holds numbers that are not finite among its images: the model that made them "
            "has diverged, so make them again from an earlier checkpoint."
        )
    if header.dtype != np.uint8 or len(shape) != 4 or shape[-1] not in images.MODES:
        raise UsageError(
            f"{name} holds images of type {header.dtype} and shape {list(shape)}: give uint8 "
            "[N, H, W, C] in 0..255, C of 1 or 3."
        )
    if not shape[0]:
        raise UsageError(f"{name} holds no images: give at least 2.")


def _array_source(pixels: np.ndarray, labels: Any, name: str) -> ArraySource:
    if labels is None:
        return ArraySource(pixels, np.zeros(len(pixels), np.int32), 0, name)
    labels = np.asarray(labels)
    if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise UsageError(f"{name}: the labels are no whole numbers from 0, one for each image.")
    return ArraySource(pixels, labels.astype(np.int32), int(labels.max()) + 1, name)


class PictureFolder:
    """All pictures below a folder, of one size, in the order of their names; a `Source`."""

    def __init__(
        self,
        folder: Any,
        names: Sequence[str],
        classes: Sequence[str],
        shape: tuple[int, int, int],
        fingerprint: str,
    ):
        self.image_shape = shape
        self.num_classes = len(classes)
        self.fingerprint = fingerprint
        self.info = DatasetInfo(tuple(classes))
        self.labels = np.array([label_from_path(n, folder, classes) for n in names], np.int32)
        self._paths = [os.path.join(folder, name) for name in names]
        self._pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        height, width, channels = self.image_shape
        path = self._paths[i]
        try:
            picture = images.decode(path)
            pixels = images.to_array(picture, image_size=(height, width), channels=channels)
        except (images.UnreadableImage, ValueError) as error:
            raise FailureError(
                f"Image {path} cannot be read ({error}): remove it or put it right, and give the "
                "same command again."
            ) from error
        return {"image": pixels, "label": self.labels[i]}

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Decode many pictures, on all cores."""
        examples = list(self._pool.map(self.__getitem__, map(int, indices)))
        return {name: np.stack([e[name] for e in examples]) for name in ("image", "label")}


def _open_folder(path: Any, image_size: int | None) -> ImageSet:
    found = read_layout(path, split="train", holdout=0.0, layout="classes")
    paths = [os.path.join(found.folder, name) for name in found.names]
    headers = _headers(paths)
    grey = [header.mode in ("1", "L", "LA", "I;16", "I", "La") for header in headers]
    mixed = ""
    if len(set(grey)) > 1:
        one, other = paths[grey.index(True)], paths[grey.index(False)]
        mixed = f"{one} is grey and {other} in colour, so all of {path} are taken in colour."
    shape = (*_common_size(paths, headers, image_size), 1 if all(grey) else 3)
    as_they_are = all(header.size == (shape[1], shape[0]) for header in headers)
    stamps = [f"{name} {_stamp(as_path(p))}" for name, p in zip(found.names, paths, strict=True)]
    suffixes = Counter(os.path.splitext(name)[1].lower().lstrip(".") for name in found.names)
    source = PictureFolder(found.folder, found.names, found.classes, shape, found.contents)
    facts = {
        "kind": "folder",
        "source": str(absolute(path)),
        **_facts(source),
        "files": dict(sorted(suffixes.items())),
        "crop": "none" if as_they_are else _cropped(),
    }
    return ImageSet(source, facts, _digest([str(shape), *stamps]), mixed)


def _headers(paths: Sequence[str]) -> list[images.Header]:
    headers: list[Any] = [None] * len(paths)

    def look(i: int) -> int:
        try:
            headers[i] = images.header(paths[i])
        except images.UnreadableImage as error:
            raise UsageError(
                f"Image {paths[i]} cannot be read ({error}): remove what is no image."
            ) from error
        return 1

    threads = max(8, os.cpu_count() or 1)  # most of them wait for the disk
    for_each(look, range(len(paths)), total=len(paths), what="checking", num_threads=threads)
    return headers


def _common_size(
    paths: Sequence[str], headers: Sequence[images.Header], image_size: int | None
) -> tuple[int, int]:
    """Return the height and width that all pictures have or are brought to.

    Raises:
      UsageError: there are several sizes and none is asked for, or pictures smaller than that.
    """
    if image_size is None:
        width, height = headers[0].size
        for path, header in zip(paths, headers, strict=True):
            if header.size != (width, height):
                raise UsageError(
                    f"Image {path} is {images.format_size(header.size)} pixels and {paths[0]} "
                    f"{width}x{height}: compare images of one size, or say by image_size to which "
                    "they are to be brought."
                )
        return height, width
    for path, header in zip(paths, headers, strict=True):
        if min(header.size) < image_size:
            raise UsageError(
                f"Image {path} is {images.format_size(header.size)} pixels, smaller than "
                f"image_size {image_size}: ask for a smaller one."
            )
    return image_size, image_size
