"""A check of every picture's header before any is decoded."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.data import images
from ddpm_jax.data.in_memory import for_each
from ddpm_jax.errors import UsageError
from ddpm_jax.files import is_remote, reporting, write_atomically

IN_BUCKET = 64  # objects read at once: each is a wait of some 50 ms
_DECODED = 8  # number of 16-bit pictures whose values are examined
_DEPTHS = (8, 10, 12, 14)  # bits per sample of cameras and scanners that write 16-bit files


class Policy(NamedTuple):
    """How pictures that cannot be used are treated."""

    unreadable: str = "stop"  # or "skip"
    small: str = "stop"  # for pictures smaller than image_size; or "skip", "enlarge"
    # path of a file listing them where a sentence cannot name them all; None for no such file
    report: Any = None


class Inspection(NamedTuple):
    """The result of an inspection."""

    names: list[str]  # of the pictures that can be used, in the order given
    skipped: dict[str, str]  # path -> why it is skipped
    notes: list[str]  # sentences about pictures that are used but look suspicious


def inspect_pictures(
    folder: Any, names: Sequence[str], *, image_size: int, policy: Policy
) -> Inspection:
    """Read the headers of all pictures and decide which can be used.

    Args:
      folder: the root of the names.
      names: relative paths.
      image_size: least height and width, in pixels.
      policy: see `Policy`.

    Raises:
      UsageError: some cannot be read or are too small, and the policy is to stop; or none is left.
      FailureError: the list of them cannot be written.
    """
    paths = [os.path.join(folder, name) for name in names]
    headers = _headers(paths)
    unreadable = {
        path: str(found)
        for path, found in zip(paths, headers, strict=True)
        if isinstance(found, Exception)
    }
    sizes = {
        path: found.size
        for path, found in zip(paths, headers, strict=True)
        if path not in unreadable
    }
    small = {
        path: images.format_size(size) for path, size in sizes.items() if min(size) < image_size
    }
    if policy.small == "enlarge":
        small = {}
    of_stop = (
        unreadable if policy.unreadable == "stop" else {},
        small if policy.small == "stop" else {},
    )
    if any(of_stop):
        raise unusable_error(*of_stop, image_size=image_size, report=policy.report)
    skipped = {path: why for path, why in (unreadable | small).items()}
    if len(skipped) == len(paths):
        raise UsageError(
            f"None of the {len(paths)} files in {folder} is an image of {image_size}x{image_size} "
            f"pixels or more, the first being {names[0]} ({skipped[paths[0]]})."
        )
    used = [i for i, path in enumerate(paths) if path not in skipped]
    deep = [paths[i] for i in used if headers[i].mode.startswith("I")]
    return Inspection([names[i] for i in used], skipped, depth_notes(deep))


def unusable_error(
    unreadable: Mapping[str, str], small: Mapping[str, str], *, image_size: int, report: Any = None
) -> UsageError:
    """Return the error about unusable pictures: the first by name, the number of the others.

    Args:
      unreadable: path -> why, for pictures that cannot be read.
      small: path -> its size in words, for pictures smaller than `image_size`.
      image_size: the least size, for the message.
      report: path of a file that lists them if there are several; None for none.

    Raises:
      FailureError: it cannot be written.
    """
    bad = {**unreadable, **small}
    path, why = next(iter(bad.items()))
    listed = ""
    if report is not None and len(bad) > 1:
        write_list(report, bad)
        listed = f"; all {len(bad)} are listed in {report}"
    if unreadable:
        more = f", nor can {len(unreadable) - 1} more" if len(unreadable) > 1 else ""
        also = f", and {len(small)} are smaller than image_size={image_size}" if small else ""
        them = "it" if len(unreadable) == 1 else "what cannot be read"
        return UsageError(
            f"Image {path} cannot be read ({why}){more}{also}{listed}: remove {them}, or set "
            "data.unreadable=skip to pass over such files."
        )
    more = f" (as are {len(small) - 1} more)" if len(small) > 1 else ""
    return UsageError(
        f"Image {path} is {why} pixels, smaller than image_size={image_size}{more}{listed}: remove "
        "what is too small, ask for a smaller image_size, or set data.small=skip to pass over such "
        "files, data.small=enlarge to enlarge them."
    )


def write_list(report: Any, bad: Mapping[str, str]) -> None:
    """Write a line for each picture: its path, a tab, and why it cannot be used.

    Raises:
      FailureError: the file cannot be written.
    """
    lines = "".join(f"{path}\t{why}\n" for path, why in bad.items())
    with reporting(report):
        write_atomically(report, lines.encode(errors="surrogateescape"))


def _headers(paths: Sequence[str]) -> list[images.Header | images.UnreadableImage]:
    headers: list = [None] * len(paths)

    def look(i: int) -> int:
        try:
            headers[i] = images.header(paths[i])
        except images.UnreadableImage as error:
            headers[i] = error
        return 1

    # Opening files mostly waits for a disk or a network, so use more threads than cores.
    threads = IN_BUCKET if paths and is_remote(paths[0]) else max(8, os.cpu_count() or 1)
    for_each(look, range(len(paths)), total=len(paths), what="checking", num_threads=threads)
    return headers


def depth_notes(paths: Sequence[str]) -> list[str]:
    """Return a sentence about 16-bit pictures that leave the upper bits empty, if they seem to.

    Such pictures would be nearly black.

    Args:
      paths: of pictures with one channel of 16 bits.
    """
    chosen = np.unique(
        np.linspace(0, len(paths) - 1, min(_DECODED, len(paths))).round().astype(int)
    )
    largest = 0
    for i in chosen:
        try:
            largest = max(largest, images.largest_value(paths[i]))
        except images.UnreadableImage:
            continue  # reported when it is decoded
    bits = next((depth for depth in _DEPTHS if largest < 2**depth), 16)
    if not largest or bits == 16:
        return []
    have = "images have" if len(paths) > 1 else "image has"
    return [
        f"{len(paths)} {have} 16 bits, but no value above {largest} in {len(chosen)} that were "
        f"looked at, as if they held {bits} bits: 65535 is white, so they are read as nearly black "
        f"unless their values are first multiplied by {2 ** (16 - bits)}"
    ]
