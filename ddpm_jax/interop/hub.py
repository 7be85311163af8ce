"""Checkpoints by the name that they have on the Hugging Face hub: "owner/model".

Only this file imports `huggingface_hub`, which the extra `hub` installs. Of a model the JSON files,
the tokenizer and one copy of the weights are downloaded, the one that `weight_files` would take; of
a model that is one file, in no layout of diffusers, this file.
A name may begin with "hub:" and end in "@" and a branch, tag or commit; whatever it says, the files
lie in a folder named by their commit, so that `origin` can say later which they were.
"""

import contextlib
import glob
import importlib.util
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.files import as_path, is_folder, is_remote, local_copy
from ddpm_jax.interop.weight_files import choose_files, has_weights

FOLDERS = ("unet", "unet_ema", "vae", "text_encoder")
PREFIX = "hub:"
_ALWAYS, _NEVER = (".json", "merges.txt"), "safety_checker"  # files that are downloaded
# names of files of weights in any other layout
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".msgpack", ".npz", ".pkl")
_PART = r"[\w-][\w.-]*"
_NAME = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(?:/(?P<file>{_PART}(?:/{_PART})*))?"
    r"(?:@(?P<revision>[\w-][\w./-]*))?",
    re.ASCII,
)
# where the client keeps files: .../models--owner--name/snapshots/COMMIT
_KEPT = re.compile(
    r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})"
    r"(?:/(?P<file>.*)|$)"
)
_CLIENTS = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3")


class HubName(NamedTuple):
    """The name of a model on the hub."""

    repo: str  # "owner/model"
    revision: str | None  # a branch, a tag or a commit; None: the main branch
    file: str | None = None  # its path in the model; None: what makes up the model


def parse_name(text: str) -> HubName | None:
    """Return the parts of "owner/model", "hub:owner/model", "hub:owner/model/file" or "@revision".

    None if the text is no such name. Without "hub:" three parts are a path.
    """
    match = _NAME.fullmatch(text.removeprefix(PREFIX))
    if match is None or (match["file"] and not text.startswith(PREFIX)):
        return None
    return HubName(match["repo"], match["revision"], match["file"])


def may_be_on_hub(text: str) -> bool:
    """Return whether a path that does not exist is meant as a name on the hub.

    With "hub:" it is, well-formed or not. Otherwise it is not if it ends as files of weights do, or
    if the folder exists that it would lie in: then a file or directory there is missing.
    """
    if text.startswith(PREFIX):
        return True
    name = parse_name(text)
    is_file = name is not None and name.repo.endswith(SUFFIXES)
    return name is not None and not is_file and not pathlib.Path(text).parent.exists()


def origin(path: str | os.PathLike) -> str:
    """Return what the files of a model are called in records.

    It is "owner/model@COMMIT" for a directory that was downloaded from the hub, for one file
    "hub:owner/model/file@COMMIT", otherwise the path.
    """
    match = _KEPT.search(os.fspath(path))
    if match is None:
        return os.fspath(path)
    repo = f"{match['owner']}/{match['name']}"
    if match["file"] and match["file"].endswith(SUFFIXES):
        return f"{PREFIX}{repo}/{match['file']}@{match['commit']}"
    return f"{repo}@{match['commit']}"


def resolve(
    name_or_path: str | os.PathLike,
    *,
    variant: str | None = None,
    folders: Sequence[str] = FOLDERS,
) -> pathlib.Path:
    """Return the local directory or file of a checkpoint, downloading what is not there yet.

    Args:
      name_or_path: an existing path, a directory in a bucket, or a name as `parse_name` takes it.
      variant: of the weights to download, "fp16" say.
      folders: whose weights are downloaded; those beside them if the model has none of these.

    Raises:
      UsageError: there is no such path, and it is no name on the hub, or `huggingface_hub` is not
        installed; the model has not this file, or no weights, or several files of them.
      FailureError: the hub does not answer, and the model has not been downloaded before.
    """
    path = as_path(name_or_path)
    if is_remote(path):
        if not is_folder(path):
            raise UsageError(f"{path} is no directory in a bucket.")
        return local_copy(path)
    if path.exists():
        return path
    text = os.fspath(name_or_path)
    name = parse_name(text)
    if name is None and text.startswith(PREFIX):
        raise UsageError(
            f"{text} is no name on the Hugging Face hub: give it as {PREFIX}owner/model, or "
            f"{PREFIX}owner/model/FILE for one file of it."
        )
    if name is None or (not text.startswith(PREFIX) and name.repo.endswith(SUFFIXES)):
        raise UsageError(f"{text} is no file and no directory.")
    _check_installed(f"{text} is no file and no directory; as a name on the Hugging Face hub it")
    return _download(text, name, variant, folders)


def check_push(name: str) -> str:
    """Return the repository that a model is to be pushed to: "owner/model".

    Raises:
      UsageError: it is no such name, has a revision, or `huggingface_hub` is not installed.
      FailureError: the hub does not know who asks, or does not answer.
    """
    found = parse_name(name)
    if found is None or found.revision is not None or found.file is not None:
        raise UsageError(f"push is {name}: give a name on the Hugging Face hub, owner/model.")
    _check_installed("push")
    from huggingface_hub import HfApi

    with _asking(f"{name} cannot be pushed to", "log in by `hf auth login`, or set HF_TOKEN"):
        HfApi().whoami()
    return found.repo


def push(
    repo: str, files: Mapping[str, pathlib.Path | bytes], *, message: str, private: bool = False
) -> str:
    """Add files to a model on the hub in one commit, and make the model if there is none.

    Files of the same names get another version there, others stay.

    Args:
      repo: "owner/model".
      files: name there -> a file here, or what it holds.
      message: of the commit.
      private: whether a model that is made is seen by its owner alone.

    Returns:
      the address of the commit.

    Raises:
      FailureError: the hub does not take them.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
        for name, content in sorted(files.items())
    ]
    with _asking(f"{repo} cannot be pushed to", "look at the name, your rights and the network"):
        HfApi().create_repo(repo, private=private, exist_ok=True)
        return HfApi().create_commit(repo, operations, commit_message=message).commit_url


def _check_installed(what: str) -> None:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UsageError(
            f"{what} needs the package huggingface_hub: install it with pip install -e '.[hub]'."
        )


def _download(
    text: str, name: HubName, variant: str | None, folders: Sequence[str]
) -> pathlib.Path:
    from huggingface_hub import HfApi, snapshot_download

    repo, revision, _ = name
    with _asking(
        f"{text} is no file and no directory, and cannot be downloaded from",
        "look at the name and the network, or name a directory",
    ):
        try:
            there = HfApi().list_repo_files(repo, revision=revision)
        except Exception as error:
            kept = _kept_copy(name, folders) if _is_of_client(error) else None
            if kept is None:
                raise
            return kept
        file = _file(name, there, folders)
        wanted = [glob.escape(file)] if file else _needed(there, variant, folders)
        kept = pathlib.Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
        return kept / file if file else kept


def _file(name: HubName, there: Sequence[str], folders: Sequence[str]) -> str | None:
    """Return the one file that a model is read from; None if it is in a layout of diffusers.

    Args:
      name: of the model.
      there: its files.
      folders: as `resolve`.

    Raises:
      UsageError: it has not the file that is asked for, or several files of weights.
    """
    files = sorted(file for file in there if file.endswith(SUFFIXES) and _NEVER not in file)
    listed = ", ".join(files[:20]) + (f" and {len(files) - 20} more" if len(files) > 20 else "")
    if name.file is not None:
        if name.file not in there:
            raise UsageError(f"{name.repo} has no {name.file}: there is {listed or 'no weights'}.")
        return name.file
    is_laid_out = any(
        folder in ("", *folders) and has_weights([file])
        for folder, _, file in (path.rpartition("/") for path in there)
    )
    if is_laid_out or not files or tuple(folders) != FOLDERS:
        return None  # then `weight_files` says what is missing, if anything is
    if len(files) > 1:
        raise UsageError(
            f"{name.repo} has several files of weights: {listed}. Name one of them, as "
            f"{PREFIX}{name.repo}/{files[0]}."
        )
    return files[0]


@contextlib.contextmanager
def _asking(what: str, remedy: str) -> Iterator[None]:
    """Make one sentence of the errors of the client, `what` (the error): `remedy`.

    Its warnings of each further try are not printed.

    Raises:
      FailureError: the client fails.
    """
    logger = logging.getLogger(_CLIENTS[0])
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except Exception as error:
        if not _is_of_client(error):
            raise
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise FailureError(f"{what} the Hugging Face hub ({reason}): {remedy}.") from error
    finally:
        logger.setLevel(level)


def _kept_copy(name: HubName, folders: Sequence[str]) -> pathlib.Path | None:
    """Return where an earlier download of a model lies, or None."""
    from huggingface_hub import snapshot_download

    patterns = f"*{_ALWAYS[0]}" if name.file is None else glob.escape(name.file)
    try:
        # the client refuses a copy that lacks files of these patterns: what `_needed` always takes
        kept = pathlib.Path(
            snapshot_download(
                name.repo,
                revision=name.revision,
                local_files_only=True,
                allow_patterns=patterns,
                ignore_patterns=f"*{_NEVER}*",
            )
        )
    except Exception as error:
        if not _is_of_client(error):
            raise
        return None
    there = [path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()]
    if name.file is not None and name.file not in there:
        return None
    file = _file(name, there, folders)
    return kept / file if file else kept


def _needed(files: list[str], variant: str | None, folders: Sequence[str]) -> list[str]:
    """Return the files to download of those that a model has.

    Raises:
      UsageError: as `weight_files.find_weights`.
    """
    wanted = [name for name in files if name.endswith(_ALWAYS) and _NEVER not in name]
    there = {folder: [] for folder in ("", *folders)}
    for folder, _, name in (path.rpartition("/") for path in files):
        if folder in there:
            there[folder].append(name)
    beside = there.pop("")
    for folder, names in there.items():
        if names:
            wanted += [f"{folder}/{name}" for name in choose_files(names, variant, folder)]
    if not any(there.values()):
        wanted += choose_files(beside, variant, "it")
    return sorted(set(wanted))


def _is_of_client(error: Exception) -> bool:
    package = type(error).__module__.split(".")[0].rstrip("0123456789")  # there is an httpx2
    return isinstance(error, OSError) or package in _CLIENTS
