"""A text-to-image model of another project: the configs and weights of its parts.

Where it comes from is decided in `diffusers_directory` and `single_file`: both give a `Pipeline`,
whose configs and tensors have the names of diffusers and transformers.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Part:
    """A network: its config, as in its JSON file, and its tensors, which are not read yet."""

    config: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """The parts of Stable Diffusion under diffusers' names."""

    path: pathlib.Path  # the directory, or the file
    kind: str  # a key of `diffusers_directory.PIPELINES`: "StableDiffusionPipeline"
    unet: Part
    vae: Part
    text_encoder: Part
    # its JSON, with "_class_name", a member of `diffusers_directory.SCHEDULERS`
    scheduler: Mapping[str, Any]
    # the folder with vocab.json and merges.txt, or tokenizer.json; None: the model has none, and
    # CLIP's vocabulary is meant, padded with `pad_token`
    tokenizer: pathlib.Path | None
    pad_token: str = "<|endoftext|>"
    unet_ema: Part | None = None  # the moving average of the U-Net's weights, where it is kept
    # The checkpoint has a classifier that blackens pictures. It is not read: filtering what a model
    # draws is up to the user.
    has_safety_checker: bool = False
