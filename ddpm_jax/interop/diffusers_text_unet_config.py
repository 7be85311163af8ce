"""The config of diffusers' `UNet2DConditionModel` as the fields of our `TextUNet`, and back."""

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

from ddpm_jax.errors import UsageError
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
    "norm_num_groups": 32,
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
WITHOUT_EFFECT = {
    "addition_time_embed_dim",
    "addition_embed_type_num_heads",
    "projection_class_embeddings_input_dim",
    "mid_block_only_cross_attention",
    *("decay", "inv_gamma", "min_decay", "min_value", "optimization_step", "power"),
    *("update_after_step", "use_ema_warmup"),
    *("use_memory_efficient_attention", "split_head_dim"),
}
TIME_EMBEDDINGS = {  # (flip_sin_to_cos, freq_shift)
    (True, 0): "cos_sin",
    (True, 1): "cos_sin_inclusive",
    (False, 1): "sin_cos",
}
MIDDLES = {
    "UNetMidBlock2DCrossAttn": "transformer",
    "UNetMidBlock2D": "block",
    None: "none",
}
SCALE_SHIFTS = {"default": False, "scale_shift": True}
PADDINGS = {0: "end", 1: "both"}
BOOLEANS = {False: False, True: True}
LARGEST = 1 << 16  # of a width, a side, a number of classes
BLOCKS = 32  # of a level, or in a transformer: Stable Diffusion XL has 10
LEVELS = 10


def text_unet_from_config(config: Mapping[str, Any]) -> TextUNet:
    """Return the network that a config of diffusers' `UNet2DConditionModel` describes.

    Channels of the input beyond those of the output are those of `low_res`. Options that are absent
    have the defaults of their class; `json_config.known_fields` says which others are passed over.

    Raises:
      UsageError: an option has a value that our network does not have, or is unknown and set.
    """
    given = {name: value for name, value in config.items() if name not in WITHOUT_EFFECT}
    unused = {name: (value,) for name, value in UNSUPPORTED.items()}
    unused["act_fn"] = ("silu", "swish")
    options = _Options(known_fields(given, DEFAULTS, unused, f"The {CLASS}"))
    channels = options.whole_numbers("block_out_channels")
    attends = _attending_levels(options, len(channels))
    resolution = _resolution(options, 2 ** (len(channels) - 1))
    in_channels, out_channels = options.whole("in_channels"), options.whole("out_channels")
    num_classes = options.values["num_class_embeds"]
    return TextUNet(
        resolution=resolution,
        ch=channels[0],
        ch_mult=_multiples(channels),
        num_res_blocks=options.equal("layers_per_block", BLOCKS),
        attn_resolutions=tuple(resolution >> i for i, attending in enumerate(attends) if attending),
        num_heads=options.per_level("attention_head_dim", int, len(channels)),
        dropout=options.number("dropout"),
        norm_eps=options.number("norm_eps"),
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
    flip_sin_to_cos, freq_shift = _key_of(TIME_EMBEDDINGS, unet.time_embedding)
    return {
        "_class_name": CLASS,
        **UNSUPPORTED,
        "sample_size": sample_size,
        "in_channels": in_channels,
        "out_channels": unet.out_channels,
        "flip_sin_to_cos": flip_sin_to_cos,
        "freq_shift": freq_shift,
        "down_block_types": [f"{'CrossAttn' * a}DownBlock2D" for a in attends],
        "mid_block_type": _key_of(MIDDLES, unet.mid_block),
        "up_block_types": [f"{'CrossAttn' * a}UpBlock2D" for a in reversed(attends)],
        "only_cross_attention": _plain(unet.only_cross_attention),
        "block_out_channels": [unet.ch * mult for mult in unet.ch_mult],
        "layers_per_block": unet.num_res_blocks,
        "downsample_padding": _key_of(PADDINGS, unet.downsample_padding),
        "dropout": unet.dropout,
        "act_fn": "silu",
        "norm_eps": unet.norm_eps,
        "cross_attention_dim": unet.context_size,
        "transformer_layers_per_block": _plain(unet.depth),
        "attention_head_dim": _plain(unet.num_heads),
        "use_linear_projection": unet.linear_projection,
        "num_class_embeds": unet.num_classes + unet.null_class if unet.num_classes else None,
        "upcast_attention": unet.upcast_attention,
        "resnet_time_scale_shift": _key_of(SCALE_SHIFTS, unet.scale_shift_norm),
    }


class _Options(NamedTuple):
    """The options of a config, each read with a check of its type."""

    values: Mapping[str, Any]

    def whole(self, name: str) -> int:
        """Return a whole number in 1..LARGEST."""
        return _whole(name, self.values[name])

    def whole_numbers(self, name: str, largest: int = LARGEST) -> list[int]:
        """Return a list of these, one for each of at most LEVELS levels."""
        values = self.values[name]
        if not isinstance(values, list | tuple) or not 1 <= len(values) <= LEVELS:
            raise _unsupported(
                name, values, f"a list of whole numbers, one for each of 1 to {LEVELS} levels"
            )
        return [_whole(name, value, largest) for value in values]

    def number(self, name: str) -> float:
        """Return a number."""
        value = self.values[name]
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise _unsupported(name, value, "a number")
        return float(value)

    def equal(self, name: str, largest: int = LARGEST) -> int:
        """Return a whole number, the same for all levels if there is one for each."""
        values = self.values[name]
        if isinstance(values, list | tuple) and len(set(self.whole_numbers(name, largest))) > 1:
            raise _unsupported(name, values, "the same for all levels")
        return _whole(name, values[0] if isinstance(values, list | tuple) else values, largest)

    def per_level(self, name: str, kind: type, levels: int, largest: int = LARGEST) -> Any:
        """Return a value for all levels, or a tuple of one for each; numbers in 1..largest."""
        given = self.values[name]
        values = tuple(given) if isinstance(given, list | tuple) else (given,)
        if not all(type(value) is kind for value in values) or (
            isinstance(given, list | tuple) and len(values) != levels
        ):
            what = "true or false" if kind is bool else "a whole number"
            raise _unsupported(name, given, f"{what}, or {levels} of these")
        if kind is int:
            for value in values:
                _whole(name, value, largest)
        return values if isinstance(given, list | tuple) else given

    def choice(self, name: str, table: Mapping[Any, Any], further: str = "") -> Any:
        """Return what the table has for an option, or for a pair of options."""
        values = [self.values[option] for option in (name, further) if option]
        key = tuple(values) if further else values[0]
        if not all(isinstance(value, Hashable) for value in values) or key not in table:
            known = ", ".join(map(str, table))
            raise _unsupported(f"{name}, {further}" if further else name, key, f"one of {known}")
        return table[key]


def _whole(name: str, value: Any, largest: int = LARGEST) -> int:
    if type(value) is not int or not 1 <= value <= largest:
        raise _unsupported(name, value, f"a whole number in 1..{largest}")
    return value


def _unsupported(name: str, value: Any, wanted: str) -> UsageError:
    return UsageError(
        f"{name} of the {CLASS} is {_plain(value)!r}, but this network needs {wanted} there: "
        "choose a model that has it."
    )


def _attending_levels(options: _Options, levels: int) -> list[bool]:
    """Return whether each level has transformers, which is the same on both ways."""
    ways = []
    for way in ("down", "up"):
        name = f"{way}_block_types"
        types = options.values[name]
        known = [f"CrossAttn{way.title()}Block2D", f"{way.title()}Block2D"]
        is_list = isinstance(types, list | tuple) and len(types) == levels
        if not is_list or not all(block in known for block in types):
            raise _unsupported(name, types, f"{levels} of {', '.join(known)}")
        ways.append([block.startswith("CrossAttn") for block in types])
    if ways[0] != ways[1][::-1]:
        raise _unsupported(name, types, "attention on the same levels as on the way down")
    return ways[0]


def _multiples(channels: list[int]) -> tuple[int, ...]:
    if any(width % channels[0] for width in channels):
        raise _unsupported("block_out_channels", channels, "multiples of the first")
    return tuple(width // channels[0] for width in channels)


def _resolution(options: _Options, stride: int) -> int:
    """Return the size of an image, rounded up to one that the network takes."""
    size = options.values["sample_size"]
    first = size[0] if isinstance(size, list | tuple) and size else size
    return -(-(64 if first is None else _whole("sample_size", first)) // stride) * stride


def _plain(value: Any) -> Any:
    """Return a tuple as the list that JSON has, anything else as it is."""
    return list(value) if isinstance(value, tuple) else value


def _key_of(table: Mapping[Any, Any], wanted: Any) -> Any:
    return next(key for key, value in table.items() if value == wanted)
