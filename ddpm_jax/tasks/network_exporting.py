"""Networks of ours written as one file, under our names or those of another project."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from ddpm_jax.archives import write_safetensors
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.experiments.run_settings import frozen_first_stage, run_settings
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.files import reporting
from ddpm_jax.interop.openai import (
    classifier_params_to_openai,
    constructor,
    unet_params_to_openai,
)
from ddpm_jax.interop.original import unet_params_to_original
from ddpm_jax.interop.torch_writing import write_torch
from ddpm_jax.models.classifier import Classifier
from ddpm_jax.models.unet import UNet
from ddpm_jax.tasks.exporting import (
    LICENSE,
    check_is_of_others,
    new_file,
    write_diffusers,
)
from ddpm_jax.tasks.unconditional_exporting import write_unconditional

# fields of a U-Net that the original code has too, or that change nothing that is computed; of
# classes `unet_params_to_original` says that they are refused
_SIZES = {
    "ch", "ch_mult", "num_res_blocks", "attn_resolutions", "dropout", "out_channels", "resolution",
    "num_classes", "dtype", "remat", "qkv_order", "parent", "name",
}  # fmt: skip


def _ours(trained: TrainedModel) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in flatten_dict(trained.params, sep=".").items()}


def _openai(trained: TrainedModel) -> dict[str, np.ndarray]:
    network = trained.model.network
    if isinstance(network, Classifier):
        return classifier_params_to_openai(trained.params, network)
    return unet_params_to_openai(trained.params, _unet(trained))


def _original(trained: TrainedModel) -> dict[str, np.ndarray]:
    unet = _unet(trained)
    for field in dataclasses.fields(UNet):
        value = getattr(unet, field.name)
        if field.name not in _SIZES and value != field.default:  # which is that of DDPM
            raise UsageError(
                f"{field.name} is {value!r}, and in the original code it is always "
                f"{field.default!r}: choose another format."
            )
    return unet_params_to_original(trained.params)


def _unet(trained: TrainedModel) -> UNet:
    network = trained.model.network
    if not isinstance(network, UNet):
        raise UsageError(
            f"{trained.directory} has no U-Net of DDPM: choose another format to write."
        )
    return network


WRITERS: dict[str, Callable[[TrainedModel], Mapping[str, np.ndarray]]] = {
    "safetensors": _ours,
    "openai": _openai,
    "original": _original,
}


ENDINGS = {"openai": (".safetensors", ".pt")}  # of files of a format, besides ".safetensors" alone


def write_for_diffusers(
    trained: TrainedModel, directory: str | os.PathLike, *, license: str = LICENSE
) -> None:
    """Write a model as a directory that diffusers loads, by the pipeline it has for such a model.

    That is `StableDiffusionPipeline` for a model of texts over latents (`exporting`), and
    `DDPMPipeline` for one over pixels (`unconditional_exporting`), which say what they raise.
    """
    of_pixels = frozen_first_stage(trained.model) is None and isinstance(
        trained.model.network, UNet
    )
    write = write_unconditional if of_pixels else write_diffusers
    write(trained, directory, license=license)


def write_network(trained: TrainedModel, file: str | os.PathLike, form: str) -> str:
    """Write the network of a model to a new file, float32.

    Args:
      trained: the model.
      file: its name ends in .safetensors, or in .pt for a file of PyTorch, which OpenAI's code
        loads.
      form: "safetensors": our parameters, by their path joined by dots, with the config of the run
        as JSON in the metadata; "openai": a state dict of improved- or guided-diffusion;
        "original": the variables of Ho et al.'s code.

    Returns:
      how the other project builds this network, if its files do not say it; otherwise "".

    Raises:
      UsageError: an unknown form, the file exists, or the network has an option that the other
        project lacks; what `exporting.check_is_of_others` raises, for another project's form.
      FailureError: it cannot be written.
    """
    write = choose("format", form, WRITERS)
    path = new_file(file, *ENDINGS.get(form, ()))
    if form != "safetensors":
        check_is_of_others(trained)
    builder = ""
    if form == "openai":
        name, arguments = constructor(trained.model.network, trained.model.image_shape[2])
        builder = f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
    tensors = write(trained)
    with reporting(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".pt":
            write_torch(path, tensors)
        else:
            write_safetensors(path, tensors, _metadata(trained, form, builder))
    return builder


def _metadata(trained: TrainedModel, form: str, builder: str) -> dict[str, str]:
    facts: dict[str, Any] = {"sha256": trained.sha256, "weights": trained.average}
    if form == "safetensors":
        facts["config"] = json.dumps(run_settings(trained.model))
    if builder:
        facts["network"] = builder
    return facts | {"step": str(trained.step)}
