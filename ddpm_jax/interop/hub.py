"""Checkpoints by the name that they have on the Hugging Face hub: "owner/model".

Only this file imports `huggingface_hub`, which the extra `hub` installs. Of a model the JSON files,
the tokenizer and one copy of the weights are downloaded, the one that `weight_files` would take.
"""

import importlib.util
import os
import pathlib
import re
from collections.abc import Sequence

from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.files import as_path, is_folder, is_remote, local_copy
from ddpm_jax.interop.weight_files import choose_files

FOLDERS = ("unet", "unet_ema", "vae", "text_encoder")
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_CLIENTS = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3")


def resolve(
    name_or_path: str | os.PathLike,
    *,
    variant: str | None = None,
    folders: Sequence[str] = FOLDERS,
) -> pathlib.Path:
    """Return the local directory or file of a checkpoint, downloading what is not there yet.

    Args:
      name_or_path: an existing path, a directory in a bucket, or "owner/model" on the hub.
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
    name = os.fspath(name_or_path)
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name} is no file and no directory.")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UsageError(
            f"{name} is no file and no directory; as a name on the Hugging Face hub it needs the "
            "package huggingface_hub: install it with pip install -e '.[hub]'."
        )
    return _download(name, variant, folders)


def _download(name: str, variant: str | None, folders: Sequence[str]) -> pathlib.Path:
    from huggingface_hub import HfApi, snapshot_download

    try:
        try:
            files = _needed(HfApi().list_repo_files(name), variant, folders)
        except Exception as error:
            kept = _kept_copy(name) if _is_of_client(error) else None
            if kept is None:
                raise
            return kept
        return pathlib.Path(snapshot_download(name, allow_patterns=files))
    except Exception as error:
        if not _is_of_client(error):
            raise
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise FailureError(
            f"{name} is no file and no directory, and cannot be downloaded from the Hugging Face "
            f"hub ({reason}): look at the name and the network, or name a directory."
        ) from error


def _kept_copy(name: str) -> pathlib.Path | None:
    """Return where an earlier download of a model lies, or None."""
    from huggingface_hub import snapshot_download

    try:
        return pathlib.Path(snapshot_download(name, local_files_only=True))
    except Exception as error:
        if not _is_of_client(error):
            raise
        return None


def _needed(files: list[str], variant: str | None, folders: Sequence[str]) -> list[str]:
    """Return the files to download of those that a model has.

    Raises:
      UsageError: as `weight_files.find_weights`.
    """
    small = (".json", "merges.txt")
    wanted = [name for name in files if name.endswith(small) and "safety_checker" not in name]
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
