"""The configs of Stable Diffusion 1.x and 2.x for files without any.

Sizes are those of the tensors. All that leaves no trace in them is as in the released models: the
facts about heads, sample size and scheduler are of their model cards' configs.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.autoencoder_config import SCALING_FACTOR

Shapes = Mapping[str, tuple[int, ...]]
HEADS_OF_1 = 8
HEAD_OF_2 = 64  # features of a head
SIDE_OF_V = 96  # latents of 2.x for 768x768; 64 of all others
FACTOR = 8  # pixels a latent


def unet_config(path: pathlib.Path, shapes: Shapes, *, is_2: bool) -> dict[str, Any]:
    """Return the config of a U-Net.

    Args:
      path: of the file, for messages.
      shapes: of its tensors, by diffusers' names.
      is_2: whether it is of Stable Diffusion 2.x.

    Raises:
      UsageError: a tensor is missing that decides its sizes.
    """
    try:
        widths = _widths(shapes, "down_blocks.{}.resnets.0.conv1.weight")
        attends = [
            f"down_blocks.{i}.attentions.0.proj_in.weight" in shapes for i in range(len(widths))
        ]
        out_channels, in_channels = shapes["conv_out.weight"][0], shapes["conv_in.weight"][1]
        first = f"down_blocks.{attends.index(True)}.attentions.0."
        context_size = shapes[f"{first}transformer_blocks.0.attn2.to_k.weight"][1]
        is_linear = len(shapes[f"{first}proj_in.weight"]) == 2
    except (KeyError, IndexError, ValueError) as error:
        raise UsageError(f"The U-Net in {path} lacks tensors ({error}).") from error
    return {
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": [max(1, w // HEAD_OF_2) for w in widths] if is_2 else HEADS_OF_1,
        "block_out_channels": widths,
        "cross_attention_dim": context_size,
        "down_block_types": [f"{'CrossAttn' * attending}DownBlock2D" for attending in attends],
        "in_channels": in_channels,
        "layers_per_block": _count(shapes, "down_blocks.0.resnets.{}.conv1.weight"),
        "norm_eps": 1e-5,
        "out_channels": out_channels,
        "sample_size": SIDE_OF_V if is_2 and in_channels == out_channels else 64,
        "up_block_types": [f"{'CrossAttn' * attending}UpBlock2D" for attending in attends[::-1]],
        "use_linear_projection": is_linear,
    }


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Return the config of a VAE from the shapes of its tensors, by diffusers' names.

    Raises:
      UsageError: a tensor is missing that decides its sizes.
    """
    try:
        widths = _widths(shapes, "encoder.down_blocks.{}.resnets.0.conv1.weight")
        channels = shapes["encoder.conv_in.weight"][1]
        latent_channels = shapes["decoder.conv_in.weight"][1]
        out_channels = shapes["decoder.conv_out.weight"][0]
    except (KeyError, IndexError) as error:
        raise UsageError(f"The VAE in the file lacks tensors ({error}).") from error
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "in_channels": channels,
        "latent_channels": latent_channels,
        "layers_per_block": _count(shapes, "encoder.down_blocks.0.resnets.{}.conv1.weight"),
        "out_channels": out_channels,
        "sample_size": 512,
        "scaling_factor": SCALING_FACTOR,
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
    }


def scheduler_config(prediction_type: str, *, is_2: bool) -> dict[str, Any]:
    """Return the config of the scheduler that a model was released with."""
    config = {
        "_class_name": "DDIMScheduler" if is_2 else "PNDMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": prediction_type,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "trained_betas": None,
    }
    return config if is_2 else config | {"skip_prk_steps": True}


def _count(shapes: Shapes, name: str) -> int:
    """Return how many tensors there are whose name has a number in place of {}."""
    pattern = re.compile(re.escape(name).replace(r"\{\}", r"\d+"))
    return sum(pattern.fullmatch(found) is not None for found in shapes)


def _widths(shapes: Shapes, name: str) -> list[int]:
    """Return the channels that the first block of each level gives."""
    levels = _count(shapes, name)
    if not levels:
        raise KeyError(name.format(0))
    return [shapes[name.format(i)][0] for i in range(levels)]
