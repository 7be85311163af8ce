"""Which files a model is read from: our own run, or Stable Diffusion as others keep it."""

import os
import pathlib
import re

from ddpm_jax.checkpoints.reader import saved_steps
from ddpm_jax.errors import UsageError
from ddpm_jax.files import as_path, is_folder, is_remote
from ddpm_jax.interop.diffusers_directory import INDEX, read_json, read_pipeline
from ddpm_jax.interop.hub import resolve
from ddpm_jax.interop.pipeline_parts import Pipeline
from ddpm_jax.interop.single_file import read_single_file

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)  # "owner/name"
_PARTS = (INDEX, "unet", "text_encoder")
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".bin", ".pth")


def is_foreign(path: str | os.PathLike) -> bool:
    """Return whether a model is Stable Diffusion's and not a run of this package.

    It is a directory with `model_index.json` or parts of such a model, a file, or a name that is
    not on the disk.
    """
    place = as_path(path)
    if is_remote(place):
        return False
    if is_folder(place):
        return any((place / part).exists() for part in _PARTS) and not saved_steps(place)
    return place.exists() or _may_be_on_hub(str(path))


def check_is_whole(path: str | os.PathLike) -> None:
    """Refuse a folder that is one part of a model in diffusers' layout.

    Raises:
      UsageError: it is.
    """
    place = as_path(path)
    if is_remote(place) or saved_steps(place) or not (place / "config.json").is_file():
        return
    config = read_json(place / "config.json")
    kind = config.get("_class_name") or config.get("model_type")  # of diffusers, transformers
    if kind:
        raise UsageError(
            f"{place} is one part of a model, {str(kind)[:80]}: give the directory that holds it."
        )


def results_of(path: str | os.PathLike, kind: str) -> pathlib.Path:
    """Return where results about a model go by default.

    It is a folder in the directory of a run, runs/digits/generated. Files of others are left as
    they are: their results go to a folder of the model's name in the working directory,
    generated/stable-diffusion-v1-4.

    Args:
      path: of the model.
      kind: "generated", "evaluation" or "pictures".
    """
    if not is_foreign(path):
        return as_path(path) / kind
    place = as_path(path)
    name = place.stem if place.suffix in SINGLE_FILES else pathlib.Path(os.path.abspath(path)).name
    return as_path(kind) / name


def open_model(
    path: str | os.PathLike, *, variant: str | None = None, prediction_type: str | None = None
) -> Pipeline:
    """Open Stable Diffusion; its weights are not read yet.

    Args:
      path: a directory in diffusers' layout, a single file of the original code, or a name on the
        Hugging Face hub.
      variant: of a directory's files, "fp16" say.
      prediction_type: of a single file, a key of `single_file.PREDICTIONS`; None as there.

    Raises:
      UsageError: it is none of these, or cannot be read.
      FailureError: it cannot be downloaded.
    """
    place = resolve(path, variant=variant)
    if place.is_dir():
        if prediction_type is not None:
            raise UsageError(
                f"prediction_type is for a single file: the directory {path} says its own."
            )
        return read_pipeline(place, variant=variant)
    if place.suffix not in SINGLE_FILES:
        raise UsageError(
            f"{path} is no file of a model: its name should end in {', '.join(SINGLE_FILES)}."
        )
    if variant is not None:
        raise UsageError(f"variant is for a directory, and {path} is a single file.")
    return read_single_file(place, prediction_type=prediction_type)


def _may_be_on_hub(name: str) -> bool:
    """Return whether a name that is no path here looks like "owner/name"."""
    return bool(_NAME.fullmatch(name)) and not pathlib.Path(name).parent.exists()
