"""Pictures of a folder -> examples, and what becomes of those that cannot be read. `layout` says which files."""

import concurrent.futures
import itertools
import logging
import os
import pathlib
import zlib
from collections.abc import Sequence

import numpy as np

from ddpm_jax.data import images
from ddpm_jax.data.about import About
from ddpm_jax.data.layout import LAYOUTS, label_of, lay_out
from ddpm_jax.data.memory import for_each
from ddpm_jax.data.places import check_no_datasets
from ddpm_jax.data.unreadable import Unreadable
from ddpm_jax.errors import FailureError, UsageError, choose
from ddpm_jax.files import as_path, check_place, is_remote

IN_BUCKET = 64  # objects read at once: each is a wait of some 50 ms


class FolderSource:
    """Random access to the pictures of one split; see `sources.Source` for the attributes, `open_folder` to make one.

    Attributes:
      skipped: with `unreadable="skip"`, the paths found unreadable so far, in the order of discovery. A file whose
        header is damaged is left out. A file that turns out to be truncated only when it is decoded is replaced by the
        next readable one, so that the sequence of examples does not depend on when that is noticed.
    """

    def __init__(self, folder, paths, labels, *, image_size, channels, skip, skipped, fingerprint, about):
        self._folder, self._paths = folder, paths
        self.labels = np.array(labels, np.int32)
        self._skip = skip
        self._pool = concurrent.futures.ThreadPoolExecutor(IN_BUCKET) if is_remote(folder) else None
        self._unreadable = Unreadable(len(paths) + len(skipped), skipped)
        self.image_shape = (image_size, image_size, channels)
        self.num_classes = len(about.class_names)
        self.fingerprint = fingerprint
        self.about = about

    @property
    def skipped(self) -> list[str]:
        return self._unreadable.names

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        for row in itertools.chain(range(i, len(self)), range(i)):
            path = self._paths[row]
            if path in self._unreadable:
                continue
            try:
                return {"image": self._read(path), "label": self.labels[row]}
            except images.UnreadableImage as error:
                _check_still_there(self._folder)
                if not self._skip:
                    raise UsageError(_unreadable(path, error)) from error
                self._unreadable.add(path, error)
        raise UsageError(
            f"None of the {len(self)} images can be read, the first being {self._paths[0]}: check the folder."
        )

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Reads many pictures; those of a bucket at once, since each is a wait for the network."""
        examples = list((self._pool.map if self._pool else map)(self.__getitem__, map(int, indices)))
        return {name: np.stack([example[name] for example in examples]) for name in ("image", "label")}

    def _read(self, path: str) -> np.ndarray:
        image_size, _, channels = self.image_shape
        return images.to_array(images.decode(path), image_size=image_size, channels=channels)


def _check_still_there(folder: pathlib.Path) -> None:
    """Tells a file that cannot be read from a folder that is gone: skipping all of its files would help nobody.

    Raises:
      FailureError: the folder does not exist any more, or is as empty as the place where a disk was mounted.
    """
    if not (folder.is_dir() and any(folder.iterdir())):
        raise FailureError(
            f"The folder of images {folder} is gone or empty, though it held images before: bring it back, and give "
            "the same command again to resume from the last checkpoint."
        )


def _unreadable(path: str, error: Exception) -> str:
    return f"Image {path} cannot be read ({error}): remove it, or set unreadable='skip' to pass over such files."


def open_folder(
    data_dir: str,
    *,
    split: str,
    image_size: int,
    channels: int,
    holdout: float,
    unreadable: str,
    layout: str = "auto",
) -> FolderSource:
    """Opens the pictures below `data_dir` after looking at the header of every file.

    Args:
      split: as in `layout.lay_out`, as are `holdout` and `layout`.
      unreadable: "stop" or "skip".

    Raises:
      UsageError: no such folder, no pictures in it, one that is too small, or, with "stop", one that cannot be read;
        what `layout.lay_out` raises.
    """
    choose("layout of a folder", layout, LAYOUTS)
    root = as_path(data_dir)
    root = root if is_remote(root) else root.expanduser()
    check_place(root, flag="data_dir")
    if not data_dir or not _is_folder(root):
        raise UsageError(f"Folder {data_dir!r} does not exist: set data_dir to a folder of images.")
    check_no_datasets(root)
    found = lay_out(root, split=split, holdout=holdout, layout=layout)
    folder, names = found.folder, found.names
    sizes = _inspect([os.path.join(folder, name) for name in names], stop=unreadable == "stop")
    readable = [name for name, size in zip(names, sizes, strict=True) if size is not None]
    if not readable:
        raise UsageError(f"None of the {len(names)} files in {folder} is an image, the first being {names[0]}.")
    _check_large_enough(folder, names, sizes, image_size)
    labels = [label_of(name, folder, found.classes) for name in readable]
    if split == "train":  # of the two splits that a run opens one says what is passed over
        _tell([*found.notes, *_without_images(found.classes, labels)])
    return FolderSource(
        folder,
        [os.path.join(folder, name) for name in readable],
        labels,
        image_size=image_size,
        channels=channels,
        skip=unreadable == "skip",
        skipped=[os.path.join(folder, name) for name, size in zip(names, sizes, strict=True) if size is None],
        fingerprint=f"folder {split} {image_size}x{image_size}x{channels} {_summary(readable, labels)}",
        about=About(tuple(found.classes), found.splits),
    )


def _is_folder(root: pathlib.Path) -> bool:
    try:
        return root.is_dir()
    except OSError as error:
        raise UsageError(f"Folder {root} cannot be looked at: {error.strerror or error}.") from error


def _without_images(classes: Sequence[str], labels: Sequence[int]) -> list[str]:
    with_images = set(labels)
    return [
        f"class {name} (number {i}) has no image that can be trained on"
        for i, name in enumerate(classes)
        if i not in with_images
    ]


def _tell(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        logging.getLogger(__name__).warning("Note: %s.", sentence)


def _inspect(paths: list[str], *, stop: bool) -> list[tuple[int, int] | None]:
    """Returns (width, height) of every file from its header, None for the unreadable (or raises, to `stop`)."""
    sizes: list[tuple[int, int] | None] = [None] * len(paths)

    def look(i: int) -> int:
        try:
            sizes[i] = images.header_size(paths[i])
        except images.UnreadableImage as error:
            if stop:
                raise UsageError(_unreadable(paths[i], error)) from error
        return 1

    # Opening files is waiting for a disk or a network, so more threads than cores.
    threads = IN_BUCKET if paths and is_remote(paths[0]) else max(8, os.cpu_count() or 1)
    for_each(look, range(len(paths)), total=len(paths), what="checking", num_threads=threads)
    return sizes


def _check_large_enough(
    folder: pathlib.Path, names: list[str], sizes: list[tuple[int, int] | None], image_size: int
) -> None:
    small = [(name, size) for name, size in zip(names, sizes, strict=True) if size and min(size) < image_size]
    if small:
        (name, (width, height)), others = small[0], len(small) - 1
        raise UsageError(
            f"Image {folder / name} is {width}x{height} pixels, smaller than image_size={image_size}"
            f"{f' (as are {others} more)' if others else ''}: "
            "nothing is enlarged, so remove what is too small or ask for a smaller image_size."
        )


def _summary(names: list[str], labels: list[int]) -> str:
    """The folder may move, so its own name is not in here; its files may not change, so theirs are."""
    listing = "\n".join(f"{label} {name}" for name, label in zip(names, labels, strict=True))
    return f"n={len(names)} files={zlib.crc32(listing.encode(errors='surrogateescape')):08x}"
