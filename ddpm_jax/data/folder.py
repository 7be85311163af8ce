"""Reading a folder of pictures: which files count, what their classes are, what becomes of those that cannot be read.

    data_dir/*.png                       no classes
    data_dir/<class>/.../*.png           one class per folder at the first level, in alphabetical order
    data_dir/{train,test}/...            either of the two above, with a held-out split of its own; for want of "test",
                                         "validation" or "val" is taken

Every file counts as a picture, except hidden ones and those whose extension is in `COMPANIONS`: a file that is silently
passed over because of an unusual name would be worse than one sentence too many. Links to folders are followed.
"""

import concurrent.futures
import itertools
import os
import pathlib
import zlib

import numpy as np

from ddpm_jax.data import images
from ddpm_jax.data.holdout import carve
from ddpm_jax.data.memory import for_each
from ddpm_jax.data.places import check_no_datasets
from ddpm_jax.data.unreadable import Unreadable
from ddpm_jax.errors import FailureError, UsageError, choose
from ddpm_jax.files import BUCKET, as_path, check_place, is_remote

HELD_OUT = ("test", "validation", "val")  # what "test" means, the first that is there

IN_BUCKET = 64  # objects read at once: each is a wait of some 50 ms

# fmt: off
COMPANIONS = {  # what commonly lies beside pictures without being one
    ".cfg", ".csv", ".db", ".gz", ".h5", ".html", ".ini", ".json", ".jsonl", ".lmdb", ".log", ".mat", ".md", ".npy",
    ".npz", ".parquet", ".pdf", ".pkl", ".pt", ".pth", ".py", ".sh", ".tar", ".tsv", ".txt", ".url", ".xml", ".yaml",
    ".yml", ".zip",
}
# fmt: on


class FolderSource:
    """Random access to the pictures of one split; see `sources.Source` for the attributes, `open_folder` to make one.

    Attributes:
      skipped: with `unreadable="skip"`, the paths found unreadable so far, in the order of discovery. A file whose
        header is damaged is left out. A file that turns out to be truncated only when it is decoded is replaced by the
        next readable one, so that the sequence of examples does not depend on when that is noticed.
    """

    def __init__(self, folder, paths, labels, *, num_classes, image_size, channels, skip, skipped, fingerprint):
        self._folder, self._paths, self._labels = folder, paths, labels
        self._skip = skip
        self._pool = concurrent.futures.ThreadPoolExecutor(IN_BUCKET) if is_remote(folder) else None
        self._unreadable = Unreadable(len(paths) + len(skipped), skipped)
        self.image_shape = (image_size, image_size, channels)
        self.num_classes = num_classes
        self.fingerprint = fingerprint

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
                return {"image": self._read(path), "label": np.int32(self._labels[row])}
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
    data_dir: str, *, split: str, image_size: int, channels: int, holdout: float, unreadable: str
) -> FolderSource:
    """Opens the pictures below `data_dir` after looking at the header of every file.

    Args:
      split: "train" or "test"; without a folder for the latter, `holdout.carve` sets a share of the files aside.
      unreadable: "stop" or "skip".

    Raises:
      UsageError: no such folder, no pictures in it, one that is too small, or, with "stop", one that cannot be read.
    """
    root = as_path(data_dir)
    root = root if is_remote(root) else root.expanduser()
    check_place(root, flag="data_dir")
    if not data_dir or not root.is_dir():
        raise UsageError(f"Folder {data_dir!r} does not exist: set data_dir to a folder of images.")
    check_no_datasets(root)
    choose("split of a folder", split, {"train": None, "test": None})
    folder, names, classes = _files_of_split(root, split, holdout)
    sizes = _inspect([os.path.join(folder, name) for name in names], stop=unreadable == "stop")
    readable = [name for name, size in zip(names, sizes, strict=True) if size is not None]
    if not readable:
        raise UsageError(f"None of the {len(names)} files in {folder} is an image, the first being {names[0]}.")
    _check_large_enough(folder, names, sizes, image_size)
    labels = [_label(name, folder, classes) for name in readable]
    return FolderSource(
        folder,
        [os.path.join(folder, name) for name in readable],
        labels,
        num_classes=len(classes),
        image_size=image_size,
        channels=channels,
        skip=unreadable == "skip",
        skipped=[os.path.join(folder, name) for name, size in zip(names, sizes, strict=True) if size is None],
        fingerprint=f"folder {split} {image_size}x{image_size}x{channels} {_summary(readable, labels)}",
    )


def _files_of_split(root: pathlib.Path, split: str, holdout: float) -> tuple[pathlib.Path, list[str], list[str]]:
    """Returns a folder, the paths of the split's pictures relative to it, and the names of the classes."""
    train, test = _split_folders(root)
    names = pictures_in(train)
    classes = _classes(names)
    if test is None:
        rows = carve(len(names), split=split, holdout=holdout, where=f"Folder {root}")
        folder, names = train, [names[row] for row in rows]
    elif split == "test":
        folder, names = test, pictures_in(test)
    else:
        folder = train
    return folder, names, classes


def _split_folders(root: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path | None]:
    """Returns the folders of train and test; `root` and None if `root` has other folders than those of splits."""
    folders = {child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith(".")}
    if "train" not in folders or folders - {"train", *HELD_OUT}:
        return root, None  # "train" among other folders is a class: the vehicle
    return root / "train", next((root / name for name in HELD_OUT if name in folders), None)


def pictures_in(folder: pathlib.Path) -> list[str]:
    """Returns all pictures below `folder` as sorted relative paths with "/": the same order on every machine.

    Raises:
      UsageError: there is none.
    """
    found = _walk_bucket(folder) if is_remote(folder) else _walk(folder)
    if not found:
        raise UsageError(
            f"Folder {folder} holds no images: put some into it, in one folder per class if there are classes."
        )
    return sorted(found)


def _walk(folder: pathlib.Path) -> list[str]:
    found, seen = [], set()
    for where, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(where, folder).replace(os.sep, "/")
        found += [name if inside == "." else f"{inside}/{name}" for name in files if _is_picture(name)]
    return found


def _walk_bucket(folder: pathlib.Path) -> list[str]:
    found, root = [], str(folder).removeprefix(BUCKET)
    for where, folders, files in folder.walk():
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = str(where).removeprefix(BUCKET).removeprefix(root).strip("/")
        found += [f"{inside}/{name}".lstrip("/") for name in files if name and _is_picture(name)]
    return found


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() not in COMPANIONS


def _classes(names: list[str]) -> list[str]:
    """Returns the folders at the first level; [] if it is only one, or some pictures lie loose beside them."""
    classes = sorted({name.split("/")[0] for name in names})
    return classes if len(classes) > 1 and all("/" in name for name in names) else []


def _label(name: str, folder: pathlib.Path, classes: list[str]) -> int:
    if not classes:
        return 0
    first = name.split("/")[0]
    if first not in classes:
        raise UsageError(
            f"Image {folder / name} belongs to none of the classes of the training images ({', '.join(classes)}): "
            "move it to one of these, or remove it."
        )
    return classes.index(first)


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
