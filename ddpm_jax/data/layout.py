"""What lies in a folder of pictures: the files that count as such, the splits and the classes.
Opens no picture.

    data_dir/*.png                       no classes
    data_dir/<class>/.../*.png           one class per folder at the first level, in alphabetical order
    data_dir/<split>/...                 either of the two above, once for every split

Folders are splits if all of those at the first level that hold pictures are called as in `SPLITS`.
A single folder of such a name among others is a class ("train", the vehicle); several among others
are refused, and `layout` says which. So are splits one level lower, in a folder around them or in
those of the classes.

Every file counts as a picture, except hidden ones and those whose extension is in `NON_PICTURES`: a
file that is silently passed over because of an unusual name would be worse than one sentence too
many. Links to folders are followed.
"""

import os
import pathlib
import re
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from ddpm_jax.data.holdout import split_rows
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.files import BUCKET, is_remote

SPLITS = {  # split -> what a folder of it may be called, in upper or lower case
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test", "testing", "eval"),
}
LAYOUTS = dict.fromkeys(("auto", "classes", "splits"))
# what may go with it: "test_set", "seg_train"
_SPLIT_WORDS = {"data", "image", "images", "img", "imgs", "seg", "set"}

# fmt: off
NON_PICTURES = {  # what commonly lies beside pictures without being one
    ".cfg", ".csv", ".db", ".gz", ".h5", ".html", ".ini", ".json", ".jsonl", ".lmdb", ".log", ".mat", ".md", ".npy",
    ".npz", ".parquet", ".pdf", ".pkl", ".pt", ".pth", ".py", ".sh", ".tar", ".tsv", ".txt", ".url", ".xml", ".yaml",
    ".yml", ".zip",
}
# fmt: on
_SYSTEM_FOLDERS = ("/proc", "/sys")  # what the kernel answers, and no files on a disk


class Layout(NamedTuple):
    """The pictures of one split."""

    folder: Any  # that the names start from: data_dir, or the folder of a split in it
    names: list[str]  # relative paths with "/", sorted: the same order on every machine
    classes: list[str]  # of the training images; label i is the i-th
    splits: dict[str, int]  # every split there is, in the words of `SPLITS`: how many pictures
    notes: list[str]  # sentences about what is passed over
    contents: str  # number and digest of all pictures by their names, the same for every split


def read_layout(root: Any, *, split: str, holdout: float, layout: str) -> Layout:
    """Find the pictures of a split below `root`.

    Args:
      root: a folder of this machine or in a bucket.
      split: "train", "valid" or "test", or another of the names in `SPLITS`. For want of a folder
        for "test" it is "valid", and for want of both the share of "train" that `holdout.split_rows`
        sets aside.
      holdout: the share.
      layout: whether the folders at the first level are "classes", "splits", or to be told by their
        names ("auto").

    Raises:
      UsageError: no picture, no such split, folders that may be splits or classes, or a folder that
        cannot be listed.
    """
    role = _role(split)
    role = role if role is not None else choose("split of a folder", split, dict.fromkeys(SPLITS))
    files, folders = _list_tree(root)
    of_split = _split_folders(root, files, layout)
    if layout == "auto" and not of_split:
        _check_not_lower(root, files)
    inside = {
        one: [name.removeprefix(f"{folder}/") for name in files if name.startswith(f"{folder}/")]
        for one, folder in of_split.items()
    } or {"train": files}
    splits = {one: len(inside[one]) for one in SPLITS if one in inside}
    held_out = next((one for one in ("test", "valid") if one in inside), None)
    wanted = held_out if role == "test" and held_out else role
    if held_out and wanted in inside:
        names = inside[wanted]
    elif held_out is None and role != "valid":
        parts = _split_names(inside["train"], holdout, f"Folder {root}", role)
        splits = {one: len(part) for one, part in parts.items()}
        wanted, names = "train", parts[role]
    else:
        there = " and ".join(f"{one} ({of_split[one]})" if of_split else one for one in splits)
        raise UsageError(
            f"Folder {root} has no split {split!r}, only {there}: name a folder in it one of "
            f"{', '.join(SPLITS[role])}, choose another split, or set data.layout=classes if its "
            "folders are classes."
        )
    trained_on = inside.get("train", names)
    of_classes = of_split.get("train", of_split.get(wanted))
    notes = [
        *_outside_notes(root, files, of_split),
        *_empty_notes(root, folders, of_classes, trained_on),
    ]
    notes += _unlabelled_notes(root, of_classes, trained_on)
    folder = root / of_split[wanted] if of_split else root
    return Layout(folder, names, _classes(trained_on), splits, notes, f"folder {digest(files)}")


def _role(name: str) -> str | None:
    """The split that a folder of this name is of, if it is one's name, also with a number:
    "train2017"."""
    words = [
        word for word in re.split(r"[\W\d_]+", name.lower()) if word and word not in _SPLIT_WORDS
    ]
    return next(
        (role for role, names in SPLITS.items() if len(words) == 1 and words[0] in names), None
    )


def _split_folders(root: Any, files: Sequence[str], layout: str) -> dict[str, str]:
    """Return split -> the name of its folder; {} if the folders at the first level are no splits.

    Raises:
      UsageError: they may be either, two are of one split, or "splits" is asked for and none is
        one.
    """
    first = sorted({name.split("/")[0] for name in files if "/" in name})
    named = [name for name in first if _role(name)]
    others = [name for name in first if not _role(name)]
    if layout == "splits" and not named:
        known = "; ".join(f"{role}: {', '.join(names)}" for role, names in SPLITS.items())
        raise UsageError(
            f"data.layout is splits, but no folder in {root} is called as one ({known}): name them "
            "so."
        )
    if layout == "classes" or not named or (layout == "auto" and others and len(named) == 1):
        return {}
    if layout == "auto" and others:
        raise UsageError(
            f"Folder {root} holds {_enumerate(named)}, which are names of splits, next to "
            f"{_enumerate(others)}: set data.layout=classes if all of these are classes, or "
            "data.layout=splits to use those of the splits alone."
        )
    found: dict[str, str] = {}
    for name in named:
        role = _role(name)
        if role in found:
            raise UsageError(
                f"Folder {root} holds both {found[role]} and {name}, two names of the split "
                f"{role!r}: rename or move one of them, or set data.layout=classes if they are "
                "classes."
            )
        found[role] = name
    return found


def _check_not_lower(root: Any, files: Sequence[str]) -> None:
    """Refuse splits within a folder around them, or within those of the classes: tests would be
    trained on.

    Raises:
      UsageError: there are two at the second level.
    """
    first = {name.split("/")[0] for name in files}
    second = {tuple(name.split("/")[:2]) for name in files if name.count("/") > 1}
    named: dict[str, list[str]] = {}
    for around, below in sorted(second):
        if _role(below):
            named.setdefault(around, []).append(below)
    for around, splits in named.items():
        if len(set(map(_role, splits))) < 2:
            continue
        remedy = f"set data_dir to {root / around}"
        if len(first) > 1:
            remedy = f"move the images so that the splits are outermost ({splits[0]}/{around})"
        raise UsageError(
            f"Folder {root / around} holds {_enumerate(splits)}, which are names of splits: {remedy}, "
            "or set data.layout=classes to train on all of them."
        )


def _enumerate(names: Sequence[str]) -> str:
    shown = [*names[:3], *([f"{len(names) - 3} more"] if len(names) > 3 else [])]
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


def _split_names(names: list[str], holdout: float, where: str, role: str) -> dict[str, list[str]]:
    """The images of "train", and of "test" where a share is set aside or it is asked for."""
    wanted = ("train", "test") if holdout or role == "test" else ("train",)
    rows = {
        split: split_rows(len(names), split=split, holdout=holdout, where=where) for split in wanted
    }
    return {split: [names[row] for row in rows[split]] for split in wanted}


def _classes(names: Sequence[str]) -> list[str]:
    """Return the folders at the first level; [] if it is only one, or some pictures lie loose
    beside them."""
    classes = sorted({name.split("/")[0] for name in names})
    return classes if len(classes) > 1 and all("/" in name for name in names) else []


def _outside_notes(root: Any, files: Sequence[str], of_split: dict[str, str]) -> list[str]:
    """What to say of pictures that lie in none of the folders of the splits."""
    unused = [name for name in files if of_split and name.split("/")[0] not in of_split.values()]
    if not unused:
        return []
    return [
        f"{len(unused)} images in {root} lie outside its splits ({', '.join(of_split.values())}) "
        f"and are not used, the first being {unused[0]}"
    ]


def _empty_notes(
    root: Any, folders: Sequence[str], inside: str | None, names: Sequence[str]
) -> list[str]:
    """What to say of folders at the level of the classes that hold no picture."""
    if not all("/" in name for name in names):
        return []
    place, prefix = (root, "") if inside is None else (root / inside, f"{inside}/")
    level = [name.removeprefix(prefix) for name in folders if name.startswith(prefix)]
    with_pictures = {name.split("/")[0] for name in names}
    return [
        f"folder {place / name} holds no images, so it is no class, and those after it are "
        "numbered without it"
        for name in level
        if "/" not in name and name not in with_pictures
    ]


def _unlabelled_notes(root: Any, inside: str | None, names: Sequence[str]) -> list[str]:
    """Why images that lie in folders have no labels, where that is so."""
    place = root if inside is None else root / inside
    folders, loose = (
        sorted({name.split("/")[0] for name in names if "/" in name}),
        [n for n in names if "/" not in n],
    )
    if folders and loose:
        return [
            f"{len(loose)} images lie in {place} itself, {loose[0]} first, next to its folders "
            f"{_enumerate(folders)}, so there are no labels: move them into folders to have classes"
        ]
    if len(folders) != 1:
        return []
    below = sorted({name.split("/")[1] for name in names if name.count("/") > 1})
    sentence = f"all images of {place} lie in its one folder {folders[0]}, so there are no labels"
    if len(below) < 2:
        return [sentence]
    remedy = (
        f"set data_dir to {place / folders[0]}"
        if inside is None
        else f"move them from {folders[0]} into {place}"
    )
    return [f"{sentence}: to have the classes {_enumerate(below)}, {remedy}"]


def digest(lines: Sequence[str]) -> str:
    """The number of some lines, each about a file, and a short digest of them."""
    listing = "\n".join(lines)
    return f"n={len(lines)} files={zlib.crc32(listing.encode(errors='surrogateescape')):08x}"


def label_from_path(name: str, folder: Any, classes: Sequence[str]) -> int:
    """The label of a picture, 0 where there are no classes.

    Raises:
      UsageError: it lies in none of the folders of the classes.
    """
    if not classes:
        return 0
    first = name.split("/")[0]
    if first not in classes:
        raise UsageError(
            f"Image {folder / name} belongs to none of the classes of the training images "
            f"({', '.join(classes)}): move it to one of these, or remove it."
        )
    return classes.index(first)


def pictures_in(folder: Any) -> list[str]:
    """Return all pictures below `folder` as sorted relative paths with "/": the same order on
    every machine.

    Raises:
      UsageError: there is none, or a folder cannot be listed.
    """
    return _list_tree(folder)[0]


def _list_tree(root: Any) -> tuple[list[str], list[str]]:
    """(pictures, folders) below `root`, sorted; of a bucket, which has no folders, the pictures
    alone."""
    files, folders = (_walk_bucket(root), []) if is_remote(root) else _walk(pathlib.Path(root))
    if not files:
        raise UsageError(
            f"Folder {root} holds no images: put some into it, in one folder per class if there "
            "are classes."
        )
    return sorted(files), sorted(folders)


def _walk(root: pathlib.Path) -> tuple[list[str], list[str]]:
    """List a tree; a link that leads back up is passed over, one to a folder that is in the tree
    anyway is refused."""
    files, folders = [], []
    top = os.path.realpath(root)
    _check_ordinary(root, top)
    seen, pending = {top: "."}, [("", (top,))]
    while pending:
        inside, above = pending.pop()
        for entry in _entries(root, inside):
            name = f"{inside}/{entry.name}" if inside else entry.name
            if not _is_folder(entry):
                if is_picture(entry.name):
                    files.append(name)
                continue
            real = (
                os.path.realpath(entry.path)
                if entry.is_symlink()
                else os.path.join(above[-1], entry.name)
            )
            if any(_is_within(place, real) for place in above):
                continue
            _check_ordinary(entry.path, real)
            if real in seen:
                raise UsageError(
                    f"{root / name} and {root / seen[real]} are one folder by a link, so its "
                    "images would count twice or for one class only: remove the link."
                )
            seen[real] = name
            folders.append(name)
            pending.append((name, (*above, real)))
    return files, folders


def _entries(root: pathlib.Path, inside: str) -> list[os.DirEntry]:
    """What is in a folder, but for hidden entries, in the order of the names."""
    place = root / inside
    try:
        with os.scandir(place) as found:
            return sorted(
                (e for e in found if not e.name.startswith(".")), key=lambda entry: entry.name
            )
    except OSError as error:
        raise UsageError(_cannot_be_listed(place, error)) from error


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder, or a link to one. A link to nothing may have been one, and its
    pictures would be lost."""
    try:
        folder = entry.is_dir()
        lost = (
            entry.is_symlink()
            and not folder
            and not os.path.splitext(entry.name)[1]
            and not os.path.exists(entry)
        )
    except OSError as error:
        raise UsageError(_cannot_be_listed(entry.path, error)) from error
    if lost:
        raise UsageError(
            f"{entry.path} is a link to {os.readlink(entry)}, which is not there: bring that back, "
            "or remove the link."
        )
    return folder


def _cannot_be_listed(place: str | os.PathLike, error: OSError) -> str:
    return (
        f"Folder {place} cannot be listed ({error.strerror or error}), so its images would be "
        "missing: give yourself the right to read it, or move it away."
    )


def _is_within(place: str, folder: str) -> bool:
    return place == folder or place.startswith(folder.rstrip("/") + "/")


def _check_ordinary(place: str | os.PathLike, real: str) -> None:
    """Refuse what is no folder of somebody's files: its listing need not end, and reading may wait
    for ever."""
    if real in ("/", "/dev") or any(_is_within(real, folder) for folder in _SYSTEM_FOLDERS):
        of = "" if os.fspath(place) == real else f" leads to {real}, which"
        raise UsageError(
            f"{place}{of} belongs to the operating system: set data_dir to a folder of images."
        )


def _walk_bucket(folder: Any) -> list[str]:
    found, root = [], str(folder).removeprefix(BUCKET)
    for where, folders, files in folder.walk():
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = str(where).removeprefix(BUCKET).removeprefix(root).strip("/")
        found += [f"{inside}/{name}".lstrip("/") for name in files if name and is_picture(name)]
    return found


def is_picture(name: str) -> bool:
    """Whether a file of this name counts as a picture."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() not in NON_PICTURES
