"""Stable Diffusion written as a directory that diffusers loads; `diffusers_directory` reads it."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ddpm_jax.archives import write_safetensors
from ddpm_jax.errors import UsageError
from ddpm_jax.files import as_path, is_remote, reporting
from ddpm_jax.interop.autoencoder_config import autoencoder_to_config
from ddpm_jax.interop.autoencoder_kl import autoencoder_params_to_diffusers
from ddpm_jax.interop.clip_text import config_from_text_encoder, text_params_to_transformers
from ddpm_jax.interop.diffusers_directory import INDEX
from ddpm_jax.interop.diffusers_text_unet import text_unet_params_to_diffusers
from ddpm_jax.interop.diffusers_text_unet_config import text_unet_to_config
from ddpm_jax.interop.pipeline_params import Networks, PipelineParams
from ddpm_jax.interop.pipeline_parts import Part, Pipeline

VERSION = "0.35.0"  # the oldest diffusers that the tests load such a directory with
WEIGHTS = {  # part -> its file of weights
    "unet": "diffusion_pytorch_model.safetensors",
    "unet_ema": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
_TOKENIZER = (
    *("vocab.json", "merges.txt", "tokenizer.json"),
    *("special_tokens_map.json", "tokenizer_config.json"),
)
_CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
license: {license}
tags:
- {kind}
---

# {name}

A latent diffusion model of images given texts, in the layout of diffusers:

```python
from diffusers import {kind}

images = {kind}.from_pretrained("{name}")("a prompt").images
```

| part | class | parameters |
|---|---|---|
{parts}

Scheduler: {scheduler}.

There is no safety checker: what the model draws is not filtered, and filtering it is the duty of
whoever uses it.
"""


def write_pipeline(
    directory: str | os.PathLike,
    pipeline: Pipeline,
    *,
    tokenizer: Callable[[pathlib.Path], None] | None = None,
    license: str = "unknown",
) -> None:
    """Write a directory that the pipeline's class in diffusers loads.

    A kill or a full disk leaves nothing under that name.

    Args:
      directory: where; nothing may be there yet.
      pipeline: its parts, whose weights are written in the types that they have.
      tokenizer: writes the files of the tokenizer into a folder; None: they are copied from
        `pipeline.tokenizer`.
      license: of the weights, for the model card: "creativeml-openrail-m" for descendants of Stable
        Diffusion 1.x, "openrail++" for those of 2.x.

    Raises:
      UsageError: the directory exists or is in a bucket; there is no tokenizer.
      FailureError: it cannot be written.
    """
    target = check_new(directory)
    if tokenizer is None and pipeline.tokenizer is None:
        raise UsageError(f"{pipeline.path} has no tokenizer that could be copied.")
    with written_whole(target) as half:
        _write_parts(half, pipeline)
        (half / "tokenizer").mkdir()
        (tokenizer or _copying(pipeline.tokenizer))(half / "tokenizer")
        (half / "README.md").write_text(_card(target.name, pipeline, license))


@contextlib.contextmanager
def written_whole(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Give a directory to write to, which gets its name when all of it is there.

    Args:
      target: the name; `check_new` has accepted it.

    Raises:
      FailureError: it cannot be written.
    """
    half = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with reporting(target):
            half.mkdir(parents=True)
            yield half
            half.rename(target)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def check_new(directory: str | os.PathLike) -> pathlib.Path:
    """Return the path of a directory to be written.

    Raises:
      UsageError: it exists or is in a bucket.
    """
    target = as_path(directory)
    if is_remote(target):
        raise UsageError(f"{target} is in a bucket: write to a local directory, then copy it.")
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target} exists: name a new directory.")
    return target


def pipeline_from_params(
    networks: Networks,
    params: PipelineParams,
    *,
    scheduler: Mapping[str, Any],
    sample_size: int,
    tokenizer: pathlib.Path | None = None,
) -> Pipeline:
    """Return networks and parameters of ours under diffusers' names, to be written.

    Args:
      networks: without weights.
      params: theirs, NumPy or JAX arrays.
      scheduler: the config of diffusers' scheduler, with "_class_name".
      sample_size: height of the latents that the U-Net was trained on.
      tokenizer: a folder with its files.

    Raises:
      UsageError: diffusers has no such network.
    """
    unet, vae, text, scale = networks
    in_channels = unet.out_channels + unet.low_res_channels
    is_inpainting = unet.low_res_channels == unet.out_channels + 1
    return Pipeline(
        path=pathlib.Path(),
        kind=f"StableDiffusion{'Inpaint' * is_inpainting}Pipeline",
        unet=Part(
            text_unet_to_config(unet, sample_size, in_channels),
            text_unet_params_to_diffusers(params.unet, unet),
        ),
        vae=Part(
            autoencoder_to_config(vae, scale), autoencoder_params_to_diffusers(params.vae, vae)
        ),
        text_encoder=Part(
            config_from_text_encoder(text), text_params_to_transformers(params.text_encoder, text)
        ),
        scheduler=scheduler,
        tokenizer=tokenizer,
    )


def _parts(pipeline: Pipeline) -> dict[str, Part]:
    parts = {name: getattr(pipeline, name) for name in WEIGHTS}
    return {name: part for name, part in parts.items() if part is not None}


def _write_parts(folder: pathlib.Path, pipeline: Pipeline) -> None:
    for name, part in _parts(pipeline).items():
        write_part(folder, name, part)
    index = {
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_index(folder, pipeline.kind, pipeline.scheduler, index)


def write_part(folder: pathlib.Path, name: str, part: Part) -> None:
    """Write the config and the weights of a network into a folder of its own."""
    (folder / name).mkdir()
    _write_json(folder / name / "config.json", part.config)
    write_safetensors(folder / name / WEIGHTS[name], part.tensors, {"format": "pt"})


def write_index(
    folder: pathlib.Path, kind: str, scheduler: Mapping[str, Any], parts: Mapping[str, Any]
) -> None:
    """Write the scheduler's config, and the file that names the class of a pipeline and its parts.

    Args:
      folder: of the pipeline.
      kind: its class.
      scheduler: the config, with "_class_name".
      parts: the other entries.
    """
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler/scheduler_config.json", scheduler)
    index = {
        "_class_name": kind,
        "_diffusers_version": VERSION,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        **parts,
    }
    _write_json(folder / INDEX, index)


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _copying(source: pathlib.Path | None) -> Callable[[pathlib.Path], None]:
    def copy(folder: pathlib.Path) -> None:
        for name in _TOKENIZER:
            if source is not None and (source / name).exists():
                shutil.copyfile(source / name, folder / name)

    return copy


def _card(title: str, pipeline: Pipeline, license: str) -> str:
    rows = [
        f"| {name} | {part.config.get('_class_name', 'CLIPTextModel')} "
        f"| {sum(part.tensors[key].size for key in part.tensors):,} |"
        for name, part in _parts(pipeline).items()
    ]
    return _CARD.format(
        license=license,
        kind=pipeline.kind,
        name=title,
        parts="\n".join(rows),
        scheduler=pipeline.scheduler["_class_name"],
    )
