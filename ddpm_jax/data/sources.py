"""Random access to uint8 images and int32 labels, wherever they come from.

`load` opens the bundled digits (`digits`) or emoji (`emoji`), a folder (`folder`), or a dataset of
TFDS (`tfds_source`). Batches are made in `pipeline`.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ddpm_jax.data import emoji, folder, images
from ddpm_jax.data.in_memory import ArraySource, decode_source, should_cache
from ddpm_jax.data.inspection import Policy, write_list
from ddpm_jax.data.layout import role_of_split
from ddpm_jax.errors import UsageError, choose, visible

CACHE_MODES = dict.fromkeys(("auto", "always", "never"))
UNREADABLE_MODES = dict.fromkeys(("stop", "skip"))
_MAX_NAMED = 3  # skipped images that are named
SMALL_MODES = dict.fromkeys(("stop", "skip", "enlarge"))


class Source(Protocol):
    """Random access to the examples of one split.

    Attributes:
      image_shape: (H, W, C).
      num_classes: 0 when there are no labels.
      fingerprint: a short string of name, split, size and number of images, the same on every
        machine. Checkpoints store it: two sources with the same fingerprint give the same sequence
        of examples.

    A source may also have `gather(indices) -> batch`, if it can read many rows together more
    cheaply; `skipped`, the paths or names of unreadable images skipped so far; `info`, see
    `dataset_info.DatasetInfo`; `labels`, int32 [N]; and `captions`, see `captions.Captions`.
    `gather_rows(indices)` returns what `gather` does and the rows that were read.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        """Return {"image": uint8 [H, W, C], "label": int32 [], 0 without labels}."""
        ...


def load(
    *,
    name: str,
    split: str,
    data_dir: str = "",
    image_size: int,
    channels: int,
    holdout: float = 0.0,
    cache: str = "auto",
    unreadable: str = "stop",
    small: str = "stop",
    layout: str = "auto",
    captions: str = "",
    report: Any = None,
) -> Source:
    """Open a split of a dataset, decoded into memory if it fits.

    Pictures are resized on their shorter side and cropped at the centre (`images.to_array`).

    Args:
      name: "digits", "emoji", "folder", or a dataset of tensorflow-datasets: "cifar10",
        "cifar10:3.0.2", "lsun/church".
      split: "train" or "test", the held-out images; of TFDS datasets also a split expression such
        as "train[:90%]", of folders also "valid". "test" is the dataset's own test split, else its
        validation split, else carved off train.
      data_dir: the folder of images, or the folder below which TFDS keeps its datasets ("" for its
        default). The digits are written there the first time.
      image_size: height and width, in pixels.
      channels: 1 (grey) or 3 (RGB).
      holdout: share of train, in [0, 1), held out as "test" where the dataset has no such split.
        The choice depends on the number of images alone. Pass the same value for both splits.
      cache: whether to decode once into memory: "always", "never", or "auto": if that takes at most
        4 GiB and a quarter of the machine's memory. The sequence of examples does not depend on it.
      unreadable: how to treat images that cannot be read, now or later: "stop", or "skip" (see
        `source.skipped`).
      small: how to treat images smaller than `image_size`: "stop", "skip", or "enlarge" them.
      layout: whether the folders inside a folder are "classes" or "splits"; "auto" decides by their
        names.
      captions: where they come from, "" for none: "auto", or a field of the metadata of a folder
        (`caption_files`), a feature of a dataset of TFDS (`tfds_captions`). Those of the digits are
        made of their labels.
      report: path of a file that lists the unusable images of a folder if there are several; None
        for no such file.

    Raises:
      UsageError: any of the above is wrong, or the images are not there.
      FailureError: the digits, or the list, cannot be written.
    """
    _check(
        image_size=image_size,
        channels=channels,
        holdout=holdout,
        cache=cache,
        unreadable=unreadable,
    )
    choose("treatment of small images", small, SMALL_MODES)
    options = {
        "split": split,
        "image_size": image_size,
        "channels": channels,
        "holdout": holdout,
        "policy": Policy(unreadable, small, report),
        "captions": captions,
    }
    if name == "folder":
        source = folder.open_folder(data_dir, layout=layout, **options)
    elif name == "emoji":
        source = emoji.open_emoji(
            split=split,
            image_size=image_size,
            channels=channels,
            small=small,
            captions=captions,
        )
    else:
        source = _open_tfds(name, data_dir=data_dir, **options)
    opened = source
    if not isinstance(source, ArraySource) and should_cache(source, cache):
        source = (
            source.in_memory() if isinstance(source, folder.FolderSource) else decode_source(source)
        )
    _report(getattr(opened, "reasons", {}), report)
    return source


def native_shape(name: str, data_dir: str = "") -> tuple[int | None, int | None, int]:
    """Return (H, W, C) of a dataset's images, None for sides that differ between them.

    Args:
      name: "digits", "emoji", or a dataset of tensorflow-datasets.
      data_dir: the folder below which TFDS keeps its datasets, "" for its default.

    Raises:
      UsageError: there is no such dataset.
    """
    if name == "digits":
        return 8, 8, 1
    if name == "emoji":
        return emoji.SIZE, emoji.SIZE, 3
    # as in `_open_tfds`
    from ddpm_jax.data import tfds_source

    return tfds_source.native_shape(name, data_dir)


def check_name(name: str, splits: Sequence[str], data_dir: str = "") -> None:
    """Refuse a dataset, or splits of it, that cannot be there on any machine.

    Args:
      name: as in `load`.
      splits: likewise; those of TFDS are known only where it is prepared.
      data_dir: the folder below which TFDS keeps its datasets, "" for its default.

    Raises:
      UsageError: there is no such dataset, or no such split of it.
    """
    if name in ("folder", "emoji"):
        check = role_of_split if name == "folder" else emoji.check_split
        for split in splits:
            check(split)
    elif name != "digits":
        # as in `_open_tfds`
        from ddpm_jax.data import tfds_source

        tfds_source.check_name(name, data_dir)


def _open_tfds(name: str, *, data_dir: str, captions: str, **options) -> Source:
    # Importing TFDS takes a second, which a folder of images does not need.
    from ddpm_jax.data import tfds_source

    if name == "digits":
        from ddpm_jax.data import digits

        source = tfds_source.open_dataset(digits.prepare(data_dir), data_dir=data_dir, **options)
        return digits.captioned(source, captions) if captions else source
    return tfds_source.open_dataset(name, data_dir=data_dir, captions=captions, **options)


def _check(*, image_size: int, channels: int, holdout: float, cache: str, unreadable: str) -> None:
    choose("cache mode", cache, CACHE_MODES)
    choose("treatment of unreadable images", unreadable, UNREADABLE_MODES)
    if image_size < 1:
        raise UsageError(f"image_size={image_size} should be a positive number of pixels.")
    if channels not in images.MODES:
        raise UsageError(f"channels={channels} should be 1 (grey) or 3 (RGB).")
    if not 0 <= holdout < 1:
        raise UsageError(
            f"holdout={holdout} should be the share of the images to set aside, at least 0 and "
            "below 1."
        )


def _report(reasons: Mapping[str, str], report: Any) -> None:
    """Warn about skipped images, and list them in a file if there are too many to name."""
    if not reasons:
        return
    shown = list(reasons)[:_MAX_NAMED]
    more = len(reasons) > len(shown)
    if more and report is not None:
        write_list(report, reasons)
    where = f", all of them listed in {report}" if more and report is not None else ""
    logging.getLogger(__name__).warning(
        "Skipped %d unreadable images or too small ones: %s%s%s",
        len(reasons),
        visible(", ".join(shown)),
        ", ..." * more,
        where,
    )
