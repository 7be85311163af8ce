"""The U-Net that reads texts, and its encoder, from a config; and a config from these networks."""

from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.experiments.config import own_fields
from ddpm_jax.models.text_encoder import TextEncoder, check_text_encoder
from ddpm_jax.models.text_unet import TextUNet, check_text_unet, per_level

_NAMED_ALIKE = ("mid_block", "upcast_attention", "linear_projection", "null_class")
_OTHERWISE = ("name", "dtype", "num_heads")  # fields of config.model that are not set by their name
_OF_THE_ENCODER = ("vocab_size", "width", "layers", "heads", "hidden", "activation")
ENCODER_FIELDS = (*_OF_THE_ENCODER, "length")  # of the group `text`: what fixes the weights


def make_text_unet(
    config: ConfigDict, model: dict[str, Any], conditions: dict[str, Any], height: int, width: int
) -> TextUNet:
    """Build the network.

    Args:
      config: every field.
      model: the fields of its group `model` that the network has.
      conditions: fields that follow from what the network is given: see `networks.make_network`.
      height, width: of what diffuses.

    Raises:
      UsageError: a field has a value that cannot work, alone or with the others.
    """
    own, levels = config.text_unet, len(config.model.ch_mult)
    if own.heads:
        model = {**model, "num_heads": tuple(own.heads)}
    only_cross = tuple(level in own.only_cross_attention for level in range(levels))
    unet = TextUNet(
        **model | conditions | {name: own[name] for name in _NAMED_ALIKE},
        resolution=height,
        depth=tuple(own.depths) if len(own.depths) > 1 else own.depths[0],
        only_cross_attention=only_cross if any(only_cross) else False,
        context_size=config.text.width,
    )
    check_text_unet(unet, height=height, width=width)
    return unet


def make_encoder(config: ConfigDict, dtype: Any) -> TextEncoder | None:
    """Build the encoder of texts, computing in `dtype`; None for a network that reads none.

    Raises:
      UsageError: a field has a value that cannot work, alone or with the others.
    """
    if config.model.name != "text_unet":
        return None
    fields = {name: config.text[name] for name in _OF_THE_ENCODER}
    encoder = TextEncoder(**fields, context_length=config.text.length, dtype=dtype)
    check_text_encoder(encoder)
    return encoder


def set_networks(config: ConfigDict, unet: TextUNet, encoder: TextEncoder) -> None:
    """Set the fields of a config whose networks these are."""
    config.model.name = "text_unet"
    for name in set(own_fields(config, "model")) - set(_OTHERWISE):
        config.model[name] = getattr(unet, name)
    for name in _NAMED_ALIKE:
        config.text_unet[name] = getattr(unet, name)
    levels = len(unet.ch_mult)
    heads, depths = unet.heads, per_level(unet.depth, levels)
    config.model.num_heads = heads[0]
    config.text_unet.heads = () if len(set(heads)) == 1 else heads
    config.text_unet.depths = depths[:1] if len(set(depths)) == 1 else depths
    only_cross = per_level(unet.only_cross_attention, levels)
    config.text_unet.only_cross_attention = tuple(i for i in range(levels) if only_cross[i])
    config.condition.num_classes = unet.num_classes
    config.condition.inpainting = bool(unet.low_res_channels)
    for name in _OF_THE_ENCODER:
        config.text[name] = getattr(encoder, name)
    config.text.length = encoder.context_length
