"""Stable Diffusion in a directory as diffusers lays it out.

    model_index.json                 part -> [library, class]
    unet/, vae/, text_encoder/       config.json and weights (`weight_files` says which)
    unet_ema/                        the moving average of the U-Net, in some
    tokenizer/                       vocab.json and merges.txt, or tokenizer.json
    scheduler/                       scheduler_config.json

Only JSON is parsed here; the weights are opened and not read. What was saved in Flax has the same
classes, whose names begin with "Flax".
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from ddpm_jax.errors import UsageError, choose, suggest
from ddpm_jax.files import read_file
from ddpm_jax.interop.pipeline_parts import Part, Pipeline
from ddpm_jax.interop.weight_files import find_weights, variants
from ddpm_jax.schema import Malformed, Table, Text, format_value, parse

INDEX, FLAX = "model_index.json", "Flax"
PIPELINES = {  # class -> what it does
    "StableDiffusionPipeline": "text to image",
    "StableDiffusionImg2ImgPipeline": "image to image",
    "StableDiffusionInpaintPipeline": "inpainting",
}
CLASSES = {  # part -> the classes that can be read
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
_NETWORKS = ("unet", "vae", "text_encoder")
_OBJECT = Table()
_NAMED = Table(required={"_class_name": Text()})


def read_pipeline(path: pathlib.Path, *, variant: str | None = None) -> Pipeline:
    """Read the configs of a directory and open its weights.

    Args:
      path: a local directory.
      variant: of the weights, "fp16" or "non_ema", say; parts that do not have it are taken without
        one. None: as `weight_files.find_weights`.

    Raises:
      UsageError: it is no such directory, or of a class that is not known here; a part is missing,
        of an unknown class or damaged; no part has the variant.
    """
    index = _read_index(path)
    kind = index["_class_name"].removeprefix(FLAX)
    choose("pipeline", kind, PIPELINES)
    for part in (*_NETWORKS, "tokenizer", "scheduler"):
        _check_part(path, part, index.get(part))
    ema = path / "unet_ema"
    folders = [path / part for part in _NETWORKS] + ([ema] if ema.is_dir() else [])
    wanted = _variants(path, folders, variant)
    unet, vae, text_encoder = (_read_part(path / part, wanted) for part in _NETWORKS)
    return Pipeline(
        path=path,
        kind=kind,
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        scheduler=_read_scheduler(path / "scheduler"),
        tokenizer=_check_tokenizer(path / "tokenizer"),
        unet_ema=_read_part(ema, wanted) if ema.is_dir() else None,
        has_safety_checker=_is_present(index.get("safety_checker")),
    )


def read_json(
    path: pathlib.Path, kind: Table = _OBJECT, *, infinite: bool = False
) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
      path: the file.
      kind: of the object.
      infinite: read -Infinity as null, since diffusers writes it where DPM-Solver has no bound.

    Raises:
      UsageError: there is no such file, or it is not of this kind.
    """
    try:
        data = read_file(path)
        return parse(data.replace(b"-Infinity", b"null") if infinite else data, kind)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror or error}).") from error
    except Malformed as error:
        raise UsageError(f"{path} is damaged: {error}.") from error


def _read_index(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_dir():
        raise UsageError(f"{path} is no directory.")
    if not (path / INDEX).exists():
        raise UsageError(_why_no_pipeline(path))
    return read_json(path / INDEX, _NAMED)


def _why_no_pipeline(path: pathlib.Path) -> str:
    """Say what a directory without model_index.json is."""
    if (path / "config.json").exists():
        config = read_json(path / "config.json")
        kinds = [config.get(name) for name in ("_class_name", "architectures", "model_type")]
        if any(kinds):
            return (
                f"{path} is one part of a model, {format_value(next(filter(None, kinds)))}: name "
                f"the directory of the whole model, which has a {INDEX}."
            )
    return f"{path} is no model in diffusers' layout: it has no {INDEX}."


def _is_present(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(x, str) for x in entry)


def _check_part(path: pathlib.Path, part: str, entry: Any) -> None:
    """Refuse a part that is absent or of an unknown class.

    Raises:
      UsageError: see above.
    """
    if not _is_present(entry):
        raise UsageError(f"{path} has no {part}: its {INDEX} does not name one.")
    if not (path / part).is_dir():
        raise UsageError(f"{path} has no folder {part}, which its {INDEX} names.")
    known, found = SCHEDULERS if part == "scheduler" else CLASSES[part], entry[1]
    if found.removeprefix(FLAX) not in known:
        raise UsageError(
            f"The {part} of {path} is of the class {found[:80]!r}, and known here are "
            f"{', '.join(known)}.{suggest(found, known)}"
        )


def _variants(
    path: pathlib.Path, folders: list[pathlib.Path], variant: str | None
) -> dict[str, str | None]:
    """Return the variant to take of each folder, by its name."""
    if variant is None:
        return {folder.name: None for folder in folders}
    found = {folder.name: variant in variants(folder) for folder in folders}
    if not any(found.values()):
        there = sorted({name for folder in folders for name in variants(folder)} - {""})
        raise UsageError(
            f"No part of {path} has weights of the variant {variant!r}: there "
            f"{'are ' + ', '.join(there) if there else 'is none'}."
        )
    return {name: variant if has else None for name, has in found.items()}


def _read_part(folder: pathlib.Path, wanted: Mapping[str, str | None]) -> Part:
    return Part(read_json(folder / "config.json"), find_weights(folder, wanted[folder.name]))


def _read_scheduler(folder: pathlib.Path) -> dict[str, Any]:
    config = read_json(folder / "scheduler_config.json", _NAMED, infinite=True)
    kind = config["_class_name"].removeprefix(FLAX)
    choose("scheduler", kind, dict.fromkeys(SCHEDULERS))
    return config | {"_class_name": kind}


def _check_tokenizer(folder: pathlib.Path) -> pathlib.Path:
    if not any((folder / name).exists() for name in ("merges.txt", "tokenizer.json")):
        raise UsageError(f"{folder} has neither tokenizer.json nor vocab.json and merges.txt.")
    return folder
