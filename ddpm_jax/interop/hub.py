"""Checkpoints by the name that they have on the Hugging Face hub: "owner/model".

Only this file imports `huggingface_hub`, which the extra `hub` installs. Of a model the JSON files,
the tokenizer and one copy of the weights are downloaded, the one that `weight_files` would take.
A name may begin with "hub:" and end in "@" and a branch, tag or commit; whatever it says, the files
lie in a folder named by their commit, so that `origin` can say later which they were.
"""

import contextlib
import importlib.util
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.files import as_path, is_folder, is_remote, local_copy
from ddpm_jax.interop.weight_files import choose_files

FOLDERS = ("unet", "unet_ema", "vae", "text_encoder")
PREFIX = "hub:"
_ALWAYS, _NEVER = (".json", "merges.txt"), "safety_checker"  # files that are downloaded
_NAME = re.compile(
    r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w-][\w./-]*))?", re.ASCII
)
# where the client keeps files: .../models--owner--name/snapshots/COMMIT
_KEPT = re.compile(
    r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})(?=/|$)"
)
_CLIENTS = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3")


class HubName(NamedTuple):
    """The name of a model on the hub."""

    repo: str  # "owner/model"
    revision: str | None  # a branch, a tag or a commit; None: the main branch


def parse_name(text: str) -> HubName | None:
    """Return the parts of "owner/model", "hub:owner/model" or either with "@revision".

    None if the text is no such name.
    """
    match = _NAME.fullmatch(text.removeprefix(PREFIX))
    return match and HubName(match["repo"], match["revision"])


def origin(path: str | os.PathLike) -> str:
    """Return what the files of a model are called in records.

    It is "owner/model@COMMIT" for files that were downloaded from the hub, otherwise their path.
    """
    match = _KEPT.search(os.fspath(path))
    return f"{match['owner']}/{match['name']}@{match['commit']}" if match else os.fspath(path)


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
        installed.
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
    if name is None:
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
    if found is None or found.revision is not None:
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

    repo, revision = name
    with _asking(
        f"{text} is no file and no directory, and cannot be downloaded from",
        "look at the name and the network, or name a directory",
    ):
        try:
            there = HfApi().list_repo_files(repo, revision=revision)
        except Exception as error:
            kept = _kept_copy(name) if _is_of_client(error) else None
            if kept is None:
                raise
            return kept
        wanted = _needed(there, variant, folders)
        return pathlib.Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))


@contextlib.contextmanager
def _asking(what: str, remedy: str) -> Iterator[None]:
    """Make one sentence of the errors of the client, `what` (the error): `remedy`.

    Raises:
      FailureError: the client fails.
    """
    try:
        yield
    except Exception as error:
        if not _is_of_client(error):
            raise
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise FailureError(f"{what} the Hugging Face hub ({reason}): {remedy}.") from error


def _kept_copy(name: HubName) -> pathlib.Path | None:
    """Return where an earlier download of a model lies, or None."""
    from huggingface_hub import snapshot_download

    try:
        # the client refuses a copy that lacks files of these patterns: what `_needed` always takes
        return pathlib.Path(
            snapshot_download(
                name.repo,
                revision=name.revision,
                local_files_only=True,
                allow_patterns=f"*{_ALWAYS[0]}",
                ignore_patterns=f"*{_NEVER}*",
            )
        )
    except Exception as error:
        if not _is_of_client(error):
            raise
        return None


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
