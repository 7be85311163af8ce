"""The config of diffusers' `UNet2DModel` as the fields of our `UNet`, and back.

The blocks of a level say whether it has attention and how it is resampled:

    DownBlock2D, UpBlock2D                           a convolution
    AttnDownBlock2D, AttnUpBlock2D                   attention; `downsample_type`, `upsample_type`
    ResnetDownsampleBlock2D, ResnetUpsampleBlock2D   a residual block
"""

from collections.abc import Mapping
from typing import Any

from ddpm_jax.errors import UsageError
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
)
from ddpm_jax.interop.json_config import known_fields
from ddpm_jax.models.unet import UNet

CLASS = "UNet2DModel"
# the defaults of the class, which old files leave out
DEFAULTS: dict[str, Any] = {
    "add_attention": True,
    "attention_head_dim": 8,
    "attn_norm_num_groups": None,
    "block_out_channels": (224, 448, 672, 896),
    "down_block_types": ("DownBlock2D", *["AttnDownBlock2D"] * 3),
    "downsample_padding": 1,
    "downsample_type": "conv",
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_type": "UNetMidBlock2D",
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "out_channels": 3,
    "resnet_time_scale_shift": "default",
    "sample_size": None,
    "time_embedding_dim": None,
    "up_block_types": (*["AttnUpBlock2D"] * 3, "UpBlock2D"),
    "upsample_type": "conv",
}
# their other options, which our network has at these values alone
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "act_fn": SWISH,
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "mid_block_scale_factor": (1, 1.0),
    "time_embedding_type": ("positional",),
}
WITHOUT_EFFECT = OF_AVERAGES | {"num_train_timesteps"}  # the latter is of learned time embeddings
BLOCK_TYPES = {  # way -> (attention, resampled by a residual block) -> type
    "down": {
        (False, False): "DownBlock2D",
        (True, False): "AttnDownBlock2D",
        (False, True): "ResnetDownsampleBlock2D",
    },
    "up": {
        (False, False): "UpBlock2D",
        (True, False): "AttnUpBlock2D",
        (False, True): "ResnetUpsampleBlock2D",
    },
}
RESAMPLINGS = {"conv": False, "resnet": True}  # of levels with attention
MID_BLOCKS = {"UNetMidBlock2D": True, None: False}
BOOLEANS = {False: False, True: True}
OLD_PREFIX = "UNetRes"  # of the types in the oldest files


def unet2d_from_config(config: Mapping[str, Any], size: int | None = None) -> UNet:
    """Return the network that a config of diffusers' `UNet2DModel` describes.

    Options that are absent have the defaults of their class; `json_config.known_fields` says which
    others are passed over. `num_class_embeds` K is K classes without a null class.

    Args:
      config: the JSON object.
      size: height and width of the images, where it is not that of the config.

    Raises:
      UsageError: an option has a value that our network does not have, or is unknown and set.
    """
    given = {name: value for name, value in config.items() if name not in WITHOUT_EFFECT}
    options = Options(known_fields(given, DEFAULTS, UNSUPPORTED, f"The {CLASS}"), CLASS)
    widths = options.whole_numbers("block_out_channels")
    attends, by_block = _levels(options, len(widths))
    resampling = "conv"
    block_down = tuple(i for i, is_block in enumerate(by_block["down"][:-1]) if is_block)
    block_up = tuple(i for i, is_block in enumerate(by_block["up"]) if is_block and i)
    if len(block_down) == len(block_up) == len(widths) - 1 > 0:
        resampling, block_down, block_up = "block", (), ()
    if options.values["time_embedding_dim"] not in (None, 4 * widths[0]):
        raise options.unsupported("time_embedding_dim", f"null or {4 * widths[0]}")
    resolution = _resolution(options, 2 ** (len(widths) - 1)) if size is None else size
    num_classes = options.values["num_class_embeds"]
    mid_block = _mid_block(options)
    return UNet(
        resolution=resolution,
        ch=widths[0],
        ch_mult=multiples(widths),
        num_res_blocks=options.whole("layers_per_block", BLOCKS),
        attn_resolutions=tuple(resolution >> i for i, attending in enumerate(attends) if attending),
        head_channels=_head_channels(options, widths, attends, "attention" in mid_block),
        resampling=resampling,
        block_down=block_down,
        block_up=block_up,
        mid_block=mid_block,
        dropout=options.number("dropout"),
        norm_eps=options.number("norm_eps"),
        norm_groups=options.whole("norm_num_groups"),
        downsample_padding=options.choice("downsample_padding", PADDINGS),
        scale_shift_norm=options.choice("resnet_time_scale_shift", SCALE_SHIFTS),
        time_embedding=options.choice("flip_sin_to_cos", TIME_EMBEDDINGS, "freq_shift"),
        out_channels=options.whole("out_channels"),
        num_classes=0 if num_classes is None else options.whole("num_class_embeds"),
        null_class=num_classes is None,
    )


def unet2d_to_config(unet: UNet, sample_size: int, in_channels: int) -> dict[str, Any]:
    """Return the config of diffusers' `UNet2DModel` that describes a network.

    Args:
      unet: the network.
      sample_size: height and width of the images that it was trained on.
      in_channels: of its input.

    Returns:
      JSON-able; where the network has a null class, it is one of `num_class_embeds`.

    Raises:
      UsageError: diffusers has no such network; the sentence names the first field that it lacks.
    """
    _check_has(unet)
    attends = [attending for _, _, attending in unet.levels]
    last = len(unet.widths) - 1
    everywhere = unet.resampling == "block"
    by_block = {
        "down": [(everywhere and i < last) or i in unet.block_down for i in range(last + 1)],
        "up": [(everywhere and i > 0) or i in unet.block_up for i in range(last + 1)],
    }
    kinds, of_attending = {}, {}
    for way, end in (("down", last), ("up", 0)):
        found = {by_block[way][i] for i in range(last + 1) if attends[i] and i != end}
        if len(found) > 1:
            raise UsageError(
                f"block_{way} is {getattr(unet, f'block_{way}')}, and diffusers resamples all "
                "levels with attention in one way."
            )
        of_attending[way] = key_of(RESAMPLINGS, found == {True})
        kinds[way] = [
            BLOCK_TYPES[way][attends[i], by_block[way][i] and not attends[i]]
            for i in range(last + 1)
        ]
    flip_sin_to_cos, freq_shift = key_of(TIME_EMBEDDINGS, unet.time_embedding)
    normalises = unet.mid_block == "attention" and unet.scale_shift_norm
    return {
        "_class_name": CLASS,
        **{name: values[0] for name, values in UNSUPPORTED.items()},
        "add_attention": "attention" in unet.mid_block,
        "attention_head_dim": _attention_head_dim(unet),
        "attn_norm_num_groups": unet.norm_groups if normalises else None,
        "block_out_channels": list(unet.widths),
        "down_block_types": kinds["down"],
        "downsample_padding": key_of(PADDINGS, unet.downsample_padding),
        "downsample_type": of_attending["down"],
        "dropout": unet.dropout,
        "flip_sin_to_cos": flip_sin_to_cos,
        "freq_shift": freq_shift,
        "in_channels": in_channels,
        "layers_per_block": unet.num_res_blocks,
        "mid_block_type": key_of(MID_BLOCKS, unet.mid_block != "none"),
        "norm_eps": unet.norm_eps,
        "norm_num_groups": unet.norm_groups,
        "num_class_embeds": unet.num_classes + unet.null_class if unet.num_classes else None,
        "num_train_timesteps": None,
        "out_channels": unet.out_channels,
        "resnet_time_scale_shift": key_of(SCALE_SHIFTS, unet.scale_shift_norm),
        "sample_size": sample_size,
        "time_embedding_dim": None,
        "up_block_types": kinds["up"][::-1],
        "upsample_type": of_attending["up"],
    }


def _levels(options: Options, levels: int) -> tuple[list[bool], dict[str, list[bool]]]:
    """Return whether each level has attention, and for both ways whether a block resamples it."""
    attends, by_block = {}, {}
    for way, end in (("down", "downsample_type"), ("up", "upsample_type")):
        kinds = {kind: parts for parts, kind in BLOCK_TYPES[way].items()}
        kinds |= {OLD_PREFIX + kind: parts for kind, parts in kinds.items()}
        names = options.blocks(f"{way}_block_types", tuple(kinds), levels)
        found = [kinds[name] for name in (names if way == "down" else reversed(names))]
        by_attention = options.choice(end, RESAMPLINGS)
        attends[way] = [attending for attending, _ in found]
        by_block[way] = [by_attention if attending else is_block for attending, is_block in found]
    if attends["down"] != attends["up"]:
        raise options.unsupported(
            "up_block_types", "attention on the same levels as on the way down"
        )
    return attends["down"], by_block


def _mid_block(options: Options) -> str:
    """Return what is between the ways down and up, a key of `unet.MIDDLES`."""
    if not options.choice("mid_block_type", MID_BLOCKS):
        return "none"
    if not options.choice("add_attention", BOOLEANS):
        return "blocks"
    groups, own = options.values["attn_norm_num_groups"], options.whole("norm_num_groups")
    if groups is None and options.values["resnet_time_scale_shift"] != "default":
        return "unnormalised_attention"
    if groups not in (None, own):
        raise options.unsupported("attn_norm_num_groups", f"null or {own}, as norm_num_groups,")
    return "attention"


def _head_channels(
    options: Options, widths: list[int], attends: list[bool], mid_attends: bool
) -> int:
    """Return the channels of a head of attention; 0 for one head on each level."""
    if options.values["attention_head_dim"] is None:
        return 0
    channels = options.whole("attention_head_dim")
    attending = [width for width, has in zip(widths, attends, strict=True) if has]
    for width in [*attending, *widths[-1:] * mid_attends]:
        if width % channels:
            raise options.unsupported("attention_head_dim", f"null, or a divisor of {width}")
    return channels if attending or mid_attends else 0


def _attention_head_dim(unet: UNet) -> int | None:
    """Return the channels of a head; None where there is one head on each level."""
    attending = [i for i, _, attends in unet.levels if attends]
    if "attention" in unet.mid_block:
        attending.append(len(unet.widths) - 1)
    if any(unet.heads_up[i] != unet.heads[i] for i in attending):
        raise UsageError(
            f"num_heads_up is {unet.num_heads_up}, and attention of diffusers' {CLASS} has as many "
            "heads on the way up as on the way down."
        )
    if not unet.head_channels and all(unet.heads[i] == 1 for i in attending):
        return None
    channels = {unet.widths[i] // unet.heads[i] for i in attending}
    if len(channels) == 1:
        return channels.pop()
    raise UsageError(
        f"num_heads is {unet.num_heads} on levels of {unet.widths} channels, and a head of "
        f"diffusers' {CLASS} has as many channels on all levels."
    )


def _resolution(options: Options, stride: int) -> int:
    size = options.size("sample_size")
    if size is None or size[0] != size[1] or size[0] % stride:
        raise options.unsupported(
            "sample_size", f"one whole number, a multiple of {stride}, as data.image_size is,"
        )
    return size[0]


def _check_has(unet: UNet) -> None:
    """Refuse fields that diffusers lacks.

    Raises:
      UsageError: the first of these.
    """
    lacks = {
        "low_res_channels": unet.low_res_channels != 0,
        "ch_mult": unet.widths[0] != unet.ch,
        "time_channels": unet.time_channels not in (0, unet.ch),
        "resampling": unet.resampling == "pool",
        "fourier_features": unet.fourier_features != (),
        "mid_block": unet.mid_block == "unnormalised_attention" and not unet.scale_shift_norm,
    }
    for name, is_lacking in lacks.items():
        if is_lacking:
            raise UsageError(
                f"{name} is {getattr(unet, name)!r}, which diffusers' {CLASS} does not have: it "
                "cannot be written for diffusers."
            )
