"""A source of examples from the pictures of a folder; `layout` decides which files.

Unreadable pictures stop the run or are skipped.
"""

import concurrent.futures
import itertools
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpm_jax.data import images
from ddpm_jax.data.caption_files import Captioned, read_captions
from ddpm_jax.data.captions import fingerprint_of
from ddpm_jax.data.data_dir import check_no_datasets
from ddpm_jax.data.dataset_info import DatasetInfo
from ddpm_jax.data.in_memory import ArraySource, decode_source
from ddpm_jax.data.inspection import IN_BUCKET, Policy, inspect_pictures, unusable_error
from ddpm_jax.data.layout import LAYOUTS, digest, label_from_path, read_layout
from ddpm_jax.data.listing import list_files
from ddpm_jax.data.unreadable import Unreadable
from ddpm_jax.errors import FailureError, UsageError, choose, visible
from ddpm_jax.files import as_path, check_place, is_remote


class FolderSource:
    """Random access to the pictures of one split of a folder.

    See `sources.Source` for the attributes; `open_folder` makes one.

    Attributes:
      skipped: paths skipped so far as unreadable or too small, in the order of discovery, if the
        policy is to skip them. A file whose header shows it is left out. A file that turns out to
        be truncated only when it is decoded is replaced by the next readable one, so that the
        sequence of examples does not depend on when that is noticed.
      reasons: path -> why it was skipped.
      labels: int32 [N].
      captions: of the pictures; None if none are asked for.
    """

    def __init__(
        self,
        folder,
        paths,
        labels,
        *,
        image_size,
        channels,
        policy,
        skipped,
        fingerprint,
        info,
        captions=None,
    ):
        self._folder, self._paths = folder, paths
        self.labels = np.array(labels, np.int32)
        self._policy = policy
        self._skip = policy.unreadable == "skip"
        self._pool = concurrent.futures.ThreadPoolExecutor(IN_BUCKET) if is_remote(folder) else None
        self._unreadable = Unreadable(len(paths) + len(skipped), skipped)
        self.image_shape = (image_size, image_size, channels)
        self.num_classes = len(info.class_names)
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
        return len(self._paths)

    def in_memory(self) -> ArraySource:
        """Decode all pictures into memory, continuing past unreadable ones.

        If the policy is to stop, the error then names all of them.

        Raises:
          UsageError: pictures cannot be read, and the policy is to stop.
        """
        stop, before, self._skip = not self._skip, set(self.reasons), True
        self._unreadable.quiet = stop
        found = decode_source(self)
        damaged = {path: why for path, why in self.reasons.items() if path not in before}
        if stop and damaged:
            raise unusable_error(
                damaged, {}, image_size=self.image_shape[0], report=self._policy.report
            )
        return found

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return self._example(i)[0]

    def _example(self, i: int) -> tuple[dict[str, np.ndarray], int]:
        """Return example i, or the next one that can be read, and its row."""
        for row in itertools.chain(range(i, len(self)), range(i)):
            path = self._paths[row]
            if path in self._unreadable:
                continue
            try:
                return {"image": self._read(path), "label": self.labels[row]}, row
            except images.UnreadableImage as error:
                _check_still_there(self._folder)
                if not self._skip:
                    raise unusable_error(
                        {path: str(error)}, {}, image_size=self.image_shape[0]
                    ) from error
                self._unreadable.add(path, error)
        raise UsageError(
            f"None of the {len(self)} images can be read, the first being {self._paths[0]}: check "
            "the folder."
        )

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return self.gather_rows(indices)[0]

    def gather_rows(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Read many pictures; those in a bucket concurrently, as each waits for the network."""
        examples, rows = zip(
            *(self._pool.map if self._pool else map)(self._example, map(int, indices)), strict=True
        )
        batch = {
            name: np.stack([example[name] for example in examples]) for name in ("image", "label")
        }
        return batch, np.array(rows)

    def _read(self, path: str) -> np.ndarray:
        image_size, _, channels = self.image_shape
        enlarge = self._policy.small == "enlarge"
        return images.to_array(
            images.decode(path), image_size=image_size, channels=channels, enlarge=enlarge
        )


def _check_still_there(folder: pathlib.Path) -> None:
    """Distinguish an unreadable file from a missing folder, whose files must not be skipped.

    Raises:
      FailureError: the folder no longer exists, or is empty, as a mount point is without its disk.
    """
    if not (folder.is_dir() and any(folder.iterdir())):
        raise FailureError(
            f"The folder of images {folder} is gone or empty, though it held images before: bring "
            "it back, and give the same command again to resume from the last checkpoint."
        )


def open_folder(
    data_dir: str,
    *,
    split: str,
    image_size: int,
    channels: int,
    holdout: float,
    policy: Policy,
    layout: str = "auto",
    captions: str = "",
) -> FolderSource:
    """Open the pictures below `data_dir` after looking at the header of every file.

    Args:
      split: as in `layout.read_layout`, as are `holdout` and `layout`.
      policy: how pictures that cannot be used are treated.
      captions: where they come from, see `caption_files.read_captions`; "" for none.

    Raises:
      UsageError: no such folder, or no pictures in it; what `layout.read_layout`,
        `inspection.inspect_pictures` and `caption_files.read_captions` raise.
      FailureError: a list of pictures that cannot be used cannot be written.
    """
    choose("layout of a folder", layout, LAYOUTS)
    root = as_path(data_dir)
    root = root if is_remote(root) else root.expanduser()
    check_place(root, flag="data_dir")
    if not data_dir:
        raise UsageError(
            "Folder '' does not exist: set data_dir to a folder of images, by --data_dir, or in "
            "training by --config.data.data_dir."
        )
    if not _is_folder(root):
        raise UsageError(f"Folder {data_dir!r} does not exist: set data_dir to a folder of images.")
    check_no_datasets(root)
    found = read_layout(root, split=split, holdout=holdout, layout=layout)
    folder, names = found.folder, found.names
    inspected = inspect_pictures(folder, names, image_size=image_size, policy=policy)
    labels = [label_from_path(name, folder, found.classes) for name in inspected.names]
    captioned = _captioned(root, folder, inspected.names, captions)
    if split == "train":  # only one of the two splits that a run opens reports what is skipped
        _tell([*found.notes, *_without_images(found.classes, labels), *inspected.notes])
    summary = _summary(inspected.names, labels)
    return FolderSource(
        folder,
        [os.path.join(folder, name) for name in inspected.names],
        labels,
        image_size=image_size,
        channels=channels,
        policy=policy,
        skipped=inspected.skipped,
        fingerprint=f"folder {split} {image_size}x{image_size}x{channels} {summary}"
        f"{fingerprint_of(captioned.captions)}",
        info=DatasetInfo(
            tuple(found.classes),
            found.splits,
            found.contents,
            list_files(folder, [*inspected.names, *captioned.files]),
        ),
        captions=captioned.captions,
    )


def _captioned(root: pathlib.Path, folder: Any, names: list[str], field: str) -> Captioned:
    return read_captions(root, folder, names, field=field) if field else Captioned(None, [])


def _is_folder(root: pathlib.Path) -> bool:
    try:
        return root.is_dir()
    except OSError as error:
        raise UsageError(
            f"Folder {root} cannot be looked at: {error.strerror or error}."
        ) from error


def _without_images(classes: Sequence[str], labels: Sequence[int]) -> list[str]:
    with_images = set(labels)
    return [
        f"class {name} (number {i}) has no image that can be trained on"
        for i, name in enumerate(classes)
        if i not in with_images
    ]


def _tell(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        logging.getLogger(__name__).warning("Note: %s.", visible(sentence))


def _summary(names: list[str], labels: list[int]) -> str:
    """Return a digest of the names and labels of the files.

    The folder may move, so its own name is not part of it; the files may not change.
    """
    return digest([f"{label} {name}" for name, label in zip(names, labels, strict=True)])
