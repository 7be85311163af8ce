"""Which files a model is read from: our own run, Stable Diffusion, another project's network."""

import os
import pathlib

from ddpm_jax.checkpoints.reader import saved_steps
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.experiments.file_options import FileOptions
from ddpm_jax.families.foreign import Request
from ddpm_jax.families.recognition import Recognised, recognise, recognise_container
from ddpm_jax.files import as_path, is_folder, is_remote
from ddpm_jax.interop.containers import Container, is_container, open_container
from ddpm_jax.interop.diffusers_directory import INDEX, PIPELINES, read_json, read_pipeline
from ddpm_jax.interop.hub import PREFIX, SUFFIXES, may_be_on_hub, parse_name, resolve
from ddpm_jax.interop.pipeline_parts import Pipeline

_PARTS = (INDEX, "unet", "text_encoder")
PARAMETERIZATIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x_0"}
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".bin", ".pth")


def is_foreign(path: str | os.PathLike) -> bool:
    """Return whether a model is in the files of another project and not a run of this package.

    It is a directory of Stable Diffusion or of another network (`containers.is_container`), a file,
    or a name that is not on the disk.
    """
    place = as_path(path)
    if is_remote(place) or saved_steps(place):
        return False
    if is_folder(place):
        return any((place / part).exists() for part in _PARTS) or is_container(place)
    return place.exists() or is_container(place) or may_be_on_hub(str(path))


def check_is_whole(path: str | os.PathLike) -> None:
    """Refuse a folder that is one part of a model in diffusers' layout, or its file of Flax.

    Raises:
      UsageError: it is.
    """
    place = as_path(path)
    folder = place.parent if place.suffix == ".msgpack" else place
    if is_remote(place) or saved_steps(place) or not (folder / "config.json").is_file():
        return
    config = read_json(folder / "config.json")
    kind = config.get("_class_name") or config.get("model_type")  # of diffusers, transformers
    if kind and kind != "UNet2DModel":  # which is a model by itself
        raise UsageError(
            f"{place} is one part of a model, {str(kind)[:80]}: give the directory that holds "
            f"{'it' if folder == place else folder.name}."
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
    place, found = as_path(path), parse_name(os.fspath(path))
    if found and not place.exists():
        return as_path(kind) / found.repo.split("/")[1]
    name = place.stem if place.suffix in SINGLE_FILES else pathlib.Path(os.path.abspath(path)).name
    return as_path(kind) / name


def _is_stable_diffusion(place: pathlib.Path) -> bool:
    """Return whether a directory is of Stable Diffusion, and not of another network.

    It is if it has an encoder of texts or names such a pipeline.
    """
    index = read_json(place / INDEX) if (place / INDEX).exists() else {}
    return (place / "text_encoder").exists() or index.get("_class_name") in PIPELINES


def _has_stable_diffusion(container: Container) -> bool:
    """Return whether the names of the tensors in a file begin as in the code of its authors."""
    from ddpm_jax.interop.single_file import PREFIXES

    return any(name.startswith(PREFIXES) for name in container.groups.get("", ()))


def open_model(
    path: str | os.PathLike, options: FileOptions | None = None
) -> Pipeline | Recognised:
    """Open a model of another project; its weights are not read yet.

    Args:
      path: Stable Diffusion as `open_pipeline` takes it; files as `recognition.recognise` does; or
        the name of either on the Hugging Face hub.
      options: how they are read.

    Raises:
      UsageError: it is none of these, or cannot be read.
      FailureError: it cannot be downloaded.
    """
    options = options or FileOptions()
    place = as_path(path)
    if not is_container(place):
        _check_is_there(path)
        place = resolve(path, variant=options.variant)
    container = open_container(place) if place.is_file() else None
    if _is_stable_diffusion(place) if container is None else _has_stable_diffusion(container):
        if options.preset or options.fields:
            raise UsageError(f"{path} says all of itself: leave out {' and '.join(options.given)}.")
        return open_pipeline(
            place, variant=options.variant, prediction_type=options.prediction_type
        )
    check_is_whole(place)
    if options.variant is not None and not place.is_dir():
        raise UsageError(f"variant is for a directory, and {path} is none: leave it out.")
    fields = dict(options.fields)
    if options.prediction_type is not None:
        fields["diffusion.parameterization"] = choose(
            "prediction_type", options.prediction_type, PARAMETERIZATIONS
        )
    request = Request(fields, options.preset)
    if container is not None:
        return recognise_container(container, request)
    return recognise(place, request, variant=options.variant)


def _check_is_there(path: str | os.PathLike) -> None:
    """Refuse a local path that does not exist before anything is asked of the hub.

    Raises:
      UsageError: there is nothing, and it cannot be meant as a name on the hub.
    """
    place, name = as_path(path), os.fspath(path)
    if is_remote(place) or place.exists() or may_be_on_hub(name) or parse_name(name) is None:
        return
    hint = ""
    if not name.endswith(SUFFIXES):
        hint = f": if it is a name on the Hugging Face hub, give it as {PREFIX}{name}"
    raise UsageError(f"{name} is no file and no directory{hint}.")


def open_network(path: str | os.PathLike, options: FileOptions | None = None) -> Recognised:
    """Open a network of another project that is not Stable Diffusion; see `open_model`.

    Raises:
      UsageError: as `open_model`, or it is Stable Diffusion, or a run of this package.
      FailureError: it cannot be downloaded.
    """
    if saved_steps(path):
        raise UsageError(f"{path} is a run of this package, which needs no import.")
    found = open_model(path, options)
    if isinstance(found, Recognised):
        return found
    raise UsageError(
        f"{path} is Stable Diffusion, which needs no import: give it as --ckpt, or as "
        "--config.init_from."
    )


def open_pipeline(
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
    from ddpm_jax.interop.single_file import read_single_file

    return read_single_file(place, prediction_type=prediction_type)
