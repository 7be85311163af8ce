"""The fields of our `Autoencoder` from the config of diffusers' `AutoencoderKL`, and back."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.json_config import known_fields
from ddpm_jax.models.autoencoder import Autoencoder
from ddpm_jax.models.layers import NUM_GROUPS
from ddpm_jax.schema import Malformed, Number, Whole, check

SCALING_FACTOR = 0.18215  # of Stable Diffusion, whose old configs have none
_WHAT = "The config of the VAE"
_USED = {  # field -> value where it is absent, the default of the class
    "block_out_channels": [64],
    "down_block_types": ["DownEncoderBlock2D"],
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": NUM_GROUPS,
    "out_channels": 3,
    "sample_size": 32,
    "scaling_factor": SCALING_FACTOR,
    "up_block_types": ["UpDecoderBlock2D"],
}
_UNUSED = {
    "act_fn": ("silu",),
    # of half precision, and of the size from which decoding by tiles pays: no matter of the network
    "force_upcast": (None, True, False),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True,),
    "shift_factor": (None, 0, 0.0),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}
_COUNT = Whole(1, 1 << 16)
_KINDS = {
    "in_channels": _COUNT,
    "latent_channels": _COUNT,
    "layers_per_block": Whole(1, 32),
    "norm_num_groups": Whole(1, 1024),
    "out_channels": _COUNT,
    "sample_size": _COUNT,
    "scaling_factor": Number(),
}
_LISTS = ("block_out_channels", "down_block_types", "up_block_types")
_PLAIN, _ATTENTIVE = (
    ("DownEncoderBlock2D", "UpDecoderBlock2D"),
    (
        "AttnDownEncoderBlock2D",
        "AttnUpDecoderBlock2D",
    ),
)


class LatentCoder(NamedTuple):
    """What a config of `AutoencoderKL` says."""

    fields: dict[str, Any]  # of `Autoencoder(**fields)`
    scaling_factor: float  # s of z = s E(x)


def autoencoder_from_config(config: Mapping[str, Any]) -> LatentCoder:
    """Return our fields of a VAE.

    The size of the images is free: the network is convolutional, and their sides need to be
    multiples of its factor only.

    Args:
      config: the object in vae/config.json.

    Raises:
      UsageError: a field is not of its kind, or asks for a network that cannot be built here.
    """
    config = known_fields(config, _USED, _UNUSED, _WHAT)
    try:
        for name, kind in _KINDS.items():
            check(config[name], kind, name)
        widths, *_ = (_list(config, name) for name in _LISTS)
        for width in widths:
            check(width, _COUNT, "block_out_channels")
    except Malformed as error:
        raise UsageError(f"{_WHAT} is damaged: {error}.") from error
    if any(width % widths[0] for width in widths):
        raise UsageError(
            f"{_WHAT} has block_out_channels {widths}: multiples of the first are expected."
        )
    side = config["sample_size"]
    fields = {
        "resolution": side,
        "ch": widths[0],
        "ch_mult": tuple(width // widths[0] for width in widths),
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": tuple(side >> i for i, has in enumerate(_attention(config)) if has),
        "dropout": 0.0,
        "norm_groups": config["norm_num_groups"],
        "image_channels": config["in_channels"],
        "latent_channels": config["latent_channels"],
        "out_channels": config["out_channels"],
    }
    return LatentCoder(fields, float(config["scaling_factor"]))


def _list(config: Mapping[str, Any], name: str) -> list[Any]:
    value = config[name]
    if not isinstance(value, list) or not 1 <= len(value) <= 10:
        raise Malformed(f"its {name} is no list of 1 to 10 levels")
    return value


def _attention(config: Mapping[str, Any]) -> list[bool]:
    """Return whether each level has attention, from the image down."""
    levels = len(config["block_out_channels"])
    attention = [kind in _ATTENTIVE for kind in config["down_block_types"]]
    expected = [
        [kinds[i] for kinds in ((_PLAIN, _ATTENTIVE)[has] for has in order)]
        for i, order in enumerate((attention, attention[::-1]))
    ]
    found = [config["down_block_types"], config["up_block_types"]]
    if found != expected or len(attention) != levels:
        raise UsageError(
            f"{_WHAT} has the blocks {found[0]} and {found[1]}: for each of the {levels} levels "
            f"one of {_PLAIN[0]} and {_ATTENTIVE[0]} is expected, and the same way up."
        )
    return attention


def autoencoder_to_config(model: Autoencoder, scaling_factor: float) -> dict[str, Any]:
    """Return the config of diffusers' `AutoencoderKL` for a VAE of ours.

    Raises:
      UsageError: diffusers has no such network.
    """
    if not model.moments or model.num_codes or model.out_channels != model.image_channels:
        raise UsageError(
            "Only a VAE can be written as AutoencoderKL, whose decoder predicts the image alone."
        )
    fixed = {
        "num_heads": 1,
        "norm_eps": 1e-6,
        "downsample_padding": "end",
    }
    for name, value in fixed.items():
        if getattr(model, name) != value:
            raise UsageError(
                f"{name} is {getattr(model, name)!r}, and diffusers' AutoencoderKL has {value!r}."
            )
    kinds = [(_PLAIN, _ATTENTIVE)[has] for _, _, has in model.levels]
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [width for _, width, _ in model.levels],
        "down_block_types": [down for down, _ in kinds],
        "in_channels": model.image_channels,
        "latent_channels": model.latent_channels,
        "layers_per_block": model.num_res_blocks,
        "norm_num_groups": model.norm_groups,
        "out_channels": model.out_channels,
        "sample_size": model.resolution,
        # the shortest number that is this one in float32, in which it is kept
        "scaling_factor": float(str(np.float32(scaling_factor))),
        "up_block_types": [up for _, up in kinds[::-1]],
    }
