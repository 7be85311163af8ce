"""Networks built from a config: of a diffusion model, or of a classifier of noisy images."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.diffusion.variance import output_channels
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.experiments.config import default_config, own_fields
from ddpm_jax.experiments.text_networks import make_text_unet
from ddpm_jax.models.classifier import Classifier, check_classifier
from ddpm_jax.models.dit import SIZES, DiT, Size, check_dit
from ddpm_jax.models.edm2_unet import EDM2UNet, check_edm2_unet
from ddpm_jax.models.edm_unets import ADMUNet, SongUNet, check_adm_unet, check_song_unet
from ddpm_jax.models.linear_unet import LinearUNet, check_linear_unet
from ddpm_jax.models.text_unet import TextUNet
from ddpm_jax.models.unet import UNet, check_unet
from ddpm_jax.training.conditioning import Conditioning

CUSTOM = "custom"


def make_network(
    config: ConfigDict, shape: tuple[int, int, int], dtype: Any
) -> UNet | TextUNet | DiT | LinearUNet | SongUNet | ADMUNet | EDM2UNet:
    """Build the network for noisy images of shape [H, W, C], computing in `dtype`.

    Raises:
      UsageError: a field has a value that cannot work, alone or with the others.
    """
    height, width, channels = shape
    model = _model_fields(config, dtype)
    name = config.model.name
    conditions = {
        "out_channels": output_channels(channels, config.diffusion.variance),
        "num_classes": config.condition.num_classes,
        "null_class": config.condition.null_class,
        "low_res_channels": Conditioning(**config.condition.to_dict()).image_channels(channels),
    }
    interval = bool(config.mean_flow.evaluations)
    if name == "dit":
        dit = DiT(
            **_size(config.dit)._asdict(),
            patch_size=config.dit.patch_size,
            positions=config.dit.positions,
            interval=interval,
            **model,
            **conditions,
        )
        check_dit(dit, height=height, width=width)
        return dit
    if name == "linear_unet":
        linear = LinearUNet(
            **model,
            **config.linear_unet.to_dict(),
            out_channels=conditions["out_channels"],
        )
        check_linear_unet(linear, height=height, width=width)
        return linear
    if name in ("song_unet", "adm_unet", "edm2_unet"):
        return _make_edm_unet(config, model, conditions, height, width)
    if name == "text_unet":
        return make_text_unet(config, model, conditions, height, width)
    unet = UNet(**model, resolution=height, interval=interval, **conditions)
    check_unet(unet, height=height, width=width)
    return unet


def _make_edm_unet(
    config: ConfigDict,
    model: Mapping[str, Any],
    conditions: Mapping[str, Any],
    height: int,
    width: int,
) -> SongUNet | ADMUNet | EDM2UNet:
    conditions = {name: value for name, value in conditions.items() if name != "low_res_channels"}
    fields = {**model, **conditions, "resolution": height}
    if config.model.name == "edm2_unet":
        edm2 = EDM2UNet(**fields)
        check_edm2_unet(edm2, height=height, width=width)
        return edm2
    own = config.edm_unet.to_dict()
    if config.model.name == "song_unet":
        song = SongUNet(**fields, **own)
        check_song_unet(song, height=height, width=width)
        return song
    adm = ADMUNet(**fields, temb_mult=own["temb_mult"], augment_dim=own["augment_dim"])
    check_adm_unet(adm, height=height, width=width)
    return adm


def make_classifier(config: ConfigDict, size: int, dtype: Any) -> Classifier:
    """Build the classifier of noisy images of size x size pixels, computing in `dtype`.

    Raises:
      UsageError: as `make_network`.
    """
    num_classes = config.condition.num_classes
    classifier = Classifier(
        **_model_fields(config, dtype), resolution=size, num_classes=num_classes
    )
    check_classifier(classifier, height=size, width=size)
    return classifier


def _model_fields(config: ConfigDict, dtype: Any) -> dict[str, Any]:
    """Return the fields of `config.model` that its network has, as the network takes them."""
    fields = own_fields(config, "model") | {"dtype": dtype}
    del fields["name"]
    return fields


def _size(dit: ConfigDict) -> Size:
    """Return the size that `dit.size` names.

    Raises:
      UsageError: an unknown size, or fields that contradict a named one.
    """
    own, default = (
        Size(**{field: group[field] for field in Size._fields})
        for group in (dit, default_config().dit)
    )
    size = choose("size of a transformer", dit.size, {**SIZES, CUSTOM: own})
    if dit.size != CUSTOM and own != default:
        field = next(
            field for field in Size._fields if getattr(own, field) != getattr(default, field)
        )
        raise UsageError(
            f"dit.{field} is {getattr(own, field)}, but that of the size {dit.size!r} is "
            f"{getattr(size, field)}: set dit.size to {CUSTOM!r} too, or leave dit.{field} "
            f"{getattr(default, field)}."
        )
    return size
