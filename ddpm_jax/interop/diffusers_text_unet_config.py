"""The config of diffusers' `UNet2DConditionModel` as the fields of our `TextUNet`, and back."""

from collections.abc import Mapping
from typing import Any

from ddpm_jax.interop.diffusers_options import (
    BLOCKS,
    OF_AVERAGES,
    PADDINGS,
    SCALE_SHIFTS,
    SWISH,
    TIME_EMBEDDINGS,
    Options,
    key_of,
    multiples,
    plain,
)
from ddpm_jax.interop.json_config import known_fields
from ddpm_jax.models.text_unet import TextUNet

CLASS = "UNet2DConditionModel"
# the defaults of the class, which old files leave out
DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "only_cross_attention": False,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "dropout": 0.0,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "num_class_embeds": None,
    "upcast_attention": False,
    "resnet_time_scale_shift": "default",
}
# their other options, which our network has at the default alone
UNSUPPORTED: dict[str, Any] = {
    "center_input_sample": False,
    "mid_block_scale_factor": 1,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "cross_attention_norm": None,
}
# options of what is refused above, or of a middle that is; what training adds to a file of
# averages; how attention is computed in Flax
WITHOUT_EFFECT = OF_AVERAGES | {
    "addition_time_embed_dim",
    "addition_embed_type_num_heads",
    "projection_class_embeddings_input_dim",
    "mid_block_only_cross_attention",
    *("use_memory_efficient_attention", "split_head_dim"),
}
MIDDLES = {
    "UNetMidBlock2DCrossAttn": "transformer",
    "UNetMidBlock2D": "block",
    None: "none",
}
BOOLEANS = {False: False, True: True}


def text_unet_from_config(config: Mapping[str, Any]) -> TextUNet:
    """Return the network that a config of diffusers' `UNet2DConditionModel` describes.

    Channels of the input beyond those of the output are those of `low_res`. Options that are absent
    have the defaults of their class; `json_config.known_fields` says which others are passed over.

    Raises:
      UsageError: an option has a value that our network does not have, or is unknown and set.
    """
    given = {name: value for name, value in config.items() if name not in WITHOUT_EFFECT}
    unused = {name: (value,) for name, value in UNSUPPORTED.items()}
    unused["act_fn"] = SWISH
    options = Options(known_fields(given, DEFAULTS, unused, f"The {CLASS}"), CLASS)
    channels = options.whole_numbers("block_out_channels")
    attends = _attending_levels(options, len(channels))
    resolution = _resolution(options, 2 ** (len(channels) - 1))
    in_channels, out_channels = options.whole("in_channels"), options.whole("out_channels")
    num_classes = options.values["num_class_embeds"]
    return TextUNet(
        resolution=resolution,
        ch=channels[0],
        ch_mult=multiples(channels),
        num_res_blocks=options.equal("layers_per_block", BLOCKS),
        attn_resolutions=tuple(resolution >> i for i, attending in enumerate(attends) if attending),
        num_heads=options.per_level("attention_head_dim", int, len(channels)),
        dropout=options.number("dropout"),
        norm_eps=options.number("norm_eps"),
        norm_groups=options.whole("norm_num_groups"),
        downsample_padding=options.choice("downsample_padding", PADDINGS),
        scale_shift_norm=options.choice("resnet_time_scale_shift", SCALE_SHIFTS),
        time_embedding=options.choice("flip_sin_to_cos", TIME_EMBEDDINGS, "freq_shift"),
        context_size=options.equal("cross_attention_dim"),
        depth=options.per_level("transformer_layers_per_block", int, len(channels), BLOCKS),
        only_cross_attention=options.per_level("only_cross_attention", bool, len(channels)),
        upcast_attention=options.choice("upcast_attention", BOOLEANS),
        mid_block=options.choice("mid_block_type", MIDDLES),
        linear_projection=options.choice("use_linear_projection", BOOLEANS),
        out_channels=out_channels,
        num_classes=0 if num_classes is None else options.whole("num_class_embeds"),
        null_class=False,
        low_res_channels=max(0, in_channels - out_channels),
    )


def text_unet_to_config(unet: TextUNet, sample_size: int, in_channels: int) -> dict[str, Any]:
    """Return the config of diffusers' `UNet2DConditionModel` that describes a network.

    Args:
      unet: the network.
      sample_size: height of the images or latents that it was trained on.
      in_channels: of its input, those of `low_res` included.

    Returns:
      JSON-able; where the network has a null class, it is one of `num_class_embeds`.
    """
    attends = [attending for _, _, attending in unet.levels]
    flip_sin_to_cos, freq_shift = key_of(TIME_EMBEDDINGS, unet.time_embedding)
    return {
        "_class_name": CLASS,
        **UNSUPPORTED,
        "sample_size": sample_size,
        "in_channels": in_channels,
        "out_channels": unet.out_channels,
        "flip_sin_to_cos": flip_sin_to_cos,
        "freq_shift": freq_shift,
        "down_block_types": [f"{'CrossAttn' * a}DownBlock2D" for a in attends],
        "mid_block_type": key_of(MIDDLES, unet.mid_block),
        "up_block_types": [f"{'CrossAttn' * a}UpBlock2D" for a in reversed(attends)],
        "only_cross_attention": plain(unet.only_cross_attention),
        "block_out_channels": list(unet.widths),
        "layers_per_block": unet.num_res_blocks,
        "downsample_padding": key_of(PADDINGS, unet.downsample_padding),
        "dropout": unet.dropout,
        "act_fn": "silu",
        "norm_eps": unet.norm_eps,
        "norm_num_groups": unet.norm_groups,
        "cross_attention_dim": unet.context_size,
        "transformer_layers_per_block": plain(unet.depth),
        "attention_head_dim": plain(unet.num_heads),
        "use_linear_projection": unet.linear_projection,
        "num_class_embeds": unet.num_classes + unet.null_class if unet.num_classes else None,
        "upcast_attention": unet.upcast_attention,
        "resnet_time_scale_shift": key_of(SCALE_SHIFTS, unet.scale_shift_norm),
    }


def _attending_levels(options: Options, levels: int) -> list[bool]:
    """Return whether each level has transformers, which is the same on both ways."""
    ways = []
    for way in ("down", "up"):
        known = (f"CrossAttn{way.title()}Block2D", f"{way.title()}Block2D")
        kinds = options.blocks(f"{way}_block_types", known, levels)
        ways.append([kind == known[0] for kind in kinds])
    if ways[0] != ways[1][::-1]:
        raise options.unsupported(
            "up_block_types", "attention on the same levels as on the way down"
        )
    return ways[0]


def _resolution(options: Options, stride: int) -> int:
    """Return the size of an image, rounded up to one that the network takes."""
    size = options.size("sample_size")
    return -(-(64 if size is None else size[0]) // stride) * stride
