"""Networks of EDM (NVlabs/edm): snapshots of its training, and state dicts.

A snapshot, `network-snapshot-000000.pkl`, has under "ema" a preconditioner, whose class is the
process, with the network as its `model`: NCSN++ or DDPM++ (`SongUNet`), or ADM (`DhariwalUNet`).
Names and shapes of its tensors say all of the network but dropout. The networks of EDM2 (`UNet`)
are recognised and refused.
"""

import itertools
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.families.foreign import Assumption, Foreign, Request, Tensors
from ddpm_jax.interop.containers import Container
from ddpm_jax.interop.edm import edm_params_from_state_dict, edm_params_to_state_dict
from ddpm_jax.interop.tensor_store import Renamed
from ddpm_jax.schema import format_value

FAMILY = "EDM"
LEVELS = "u"  # of an `iDDPMPrecond`, a table of its noise levels
# a block of their encoders, "enc.32x32_conv": what tells a state dict without its classes
_FIRST = re.compile(r"(?P<prefix>(?:.+\.)?)enc\.(?P<side>[1-9]\d{0,4})x\d+_conv\.weight")
_EDM = {"diffusion.process": "edm", "diffusion.parameterization": "edm"}


class Preconditioner(NamedTuple):
    """A class of theirs: the process and what the network predicts, as fields of ours."""

    fields: Mapping[str, Any]
    constants: Mapping[str, float] = {}  # attributes of its objects that are the same in ours
    copied: Mapping[str, str] = {}  # attributes that are fields of ours


PRECONDITIONERS = {
    "EDMPrecond": Preconditioner(_EDM, copied={"sigma_data": "diffusion.sigma_data"}),
    "VPPrecond": Preconditioner(
        {"diffusion.process": "vp", "diffusion.parameterization": "eps"},
        {"beta_d": 19.9, "beta_min": 0.1, "M": 1000},
    ),
    "VEPrecond": Preconditioner(
        {"diffusion.process": "ve", "diffusion.parameterization": "score"},
        copied={"sigma_min": "diffusion.sigma_min", "sigma_max": "diffusion.sigma_max"},
    ),
    "iDDPMPrecond": Preconditioner(
        {
            "diffusion.process": "chain",
            "diffusion.schedule": "cosine",
            "diffusion.parameterization": "eps",
        },
        {"C_1": 0.001, "C_2": 0.008},
        {"M": "diffusion.num_timesteps"},
    ),
}
_CIFAR = {"data.image_size": 32, "model.ch": 128, "model.ch_mult": (2, 2, 2)}
RELEASED = {  # name -> (fields, parameters as published)
    "EDM's DDPM++ of CIFAR-10": (_CIFAR | {"edm_unet.embedding": "positional"}, "55.7M"),
    "EDM's NCSN++ of CIFAR-10": (_CIFAR | {"edm_unet.embedding": "fourier"}, "56M"),
    "EDM's ADM of ImageNet at 64x64": (
        {"data.image_size": 64, "model.ch": 192, "model.name": "adm_unet"},
        "296M",
    ),
}


class _Found(NamedTuple):
    """A network in a group of tensors."""

    tensors: Tensors  # by the names of its state dict
    around: str  # before the names of the preconditioner's facts: "ema."
    levels: int  # in the table `LEVELS`; 0: there is none
    side: int  # of the images
    path: pathlib.Path


def recognise(container: Container, request: Request) -> Foreign | None:
    """Describe a network of EDM; None if the files are another's.

    Args:
      container: a snapshot, whose facts have classes and attributes, or a state dict.
      request: `preset` is not taken.

    Raises:
      UsageError: it is of EDM2, or of a process that ours lack, or its tensors are of no such
        network; a preset is asked for.
    """
    found = _networks(container)
    if not found:
        return None
    if request.preset is not None:
        raise UsageError(f"There are no presets of {FAMILY}: leave {request.preset!r} out.")
    network = next(iter(found.values()))
    fields, assumed = _network(network, container.facts)
    is_doubled = "diffusion.variance" in fields
    asked = request.fields.get("diffusion.process")
    said, guessed = _process(network, container.facts, asked, is_doubled=is_doubled)
    fields, assumed = fields | said, assumed | guessed
    process = {name: guess.value for name, guess in assumed.items()} | fields
    if process.get("diffusion.process", asked) != "chain" and (network.levels or is_doubled):
        raise _other_process(network, process.get("diffusion.process", asked))
    name, published = _released(fields)
    unread = [LEVELS] if network.levels else []
    return Foreign(
        family=FAMILY,
        fields=fields,
        assumed={name: guess for name, guess in assumed.items() if name not in request.fields},
        weights={kind: one.tensors for kind, one in found.items()},
        read=edm_params_from_state_dict,
        write=edm_params_to_state_dict,
        unread=(*unread, *container.unread.values()),
        released_as=name,
        published=published,
    )


def _networks(container: Container) -> dict[str, _Found]:
    """Return the networks by the kind of their weights, the average first.

    Raises:
      UsageError: one is of EDM2.
    """
    found = {}
    for group, tensors in sorted(container.groups.items(), key=lambda one: one[0] != "ema"):
        first = next(filter(None, map(_FIRST.fullmatch, tensors)), None)
        if first is None:
            continue
        prefix, path = first["prefix"], container.path
        if f"{prefix}map_layer0.weight" not in tensors:
            raise UsageError(
                f"{path} has {first[0]} and no map_layer0, as networks of EDM2 do: their layers, "
                "which keep magnitudes, are in no network here, so they cannot be read."
            )
        table = prefix.removesuffix("model.") + LEVELS  # of the preconditioner around a "model."
        names = [name for name in tensors if name.startswith(prefix) and name != table]
        network = Renamed(tensors, lambda name, p=prefix: name.removeprefix(p), names)
        levels = np.size(tensors[table]) if prefix and table in tensors else 0
        around = f"{group}." if group else ""
        found.setdefault(
            "ema" if group == "ema" else "raw",
            _Found(network, around, levels, int(first["side"]), path),
        )
    return found


def _network(
    found: _Found, facts: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Assumption]]:
    """Return the fields of the network, and what its shapes do not tell.

    Raises:
      UsageError: its tensors are of no such network.
    """
    side = found.side
    ch, channels, *_ = _shape(found, f"enc.{_at(side)}_conv.weight")
    features, embedded = _shape(found, "map_layer0.weight", 2)
    is_song = "map_layer1.weight" in found.tensors and "out_conv.weight" not in found.tensors
    last = f"dec.{_at(side)}_aux_conv.weight" if is_song else "out_conv.weight"
    out_channels, *_ = _shape(found, last)
    if out_channels not in (channels, 2 * channels):
        raise _unlike(found, last, f"has {out_channels} outputs of {channels} inputs")
    if embedded % ch or features % ch:
        raise _unlike(found, "map_layer0.weight", f"has {features, embedded}, no multiples of {ch}")
    widths, attends = _levels(found)
    fields = {
        "objective": "diffusion",
        "data.channels": channels,
        "data.image_size": side,
        "model.name": "song_unet" if is_song else "adm_unet",
        "model.ch": ch,
        "model.ch_mult": tuple(_multiple(width, ch) for width in widths),
        "model.num_res_blocks": _count(found, f"enc.{_at(side)}_block{{}}.conv0.weight"),
        "model.attn_resolutions": attends,
        "model.norm_eps": 1e-6 if is_song else 1e-5,
        "edm_unet.temb_mult": features // ch,
        "condition.num_classes": _inputs(found, "map_label.weight"),
        "edm_unet.augment_dim": _inputs(found, "map_augment.weight"),
    }
    if is_song:
        fields |= _song(found, embedded // ch, len(widths))
    if out_channels != channels:
        fields["diffusion.variance"] = "learned_range"  # as networks of Improved DDPM have it
    return fields, _training(found, facts, fields)


def _levels(found: _Found) -> tuple[list[int], tuple[int, ...]]:
    """Return the channels of each level, and the heights of those with attention."""
    widths, attends, side = [], [], found.side
    while side and (block := f"enc.{_at(side)}_block0") + ".conv1.weight" in found.tensors:
        width, *_ = _shape(found, f"{block}.conv1.weight")
        widths.append(width)
        attends += [side] if f"{block}.qkv.weight" in found.tensors else []
        side //= 2
    if not widths:
        raise _unlike(found, f"enc.{_at(found.side)}_block0.conv1.weight", "is missing")
    return widths, tuple(attends)


def _song(found: _Found, embedding_mult: int, levels: int) -> dict[str, Any]:
    """Return the fields that a `SongUNet` alone has."""
    side = found.side
    below = f"enc.{_at(side // 2)}"
    encoder = next(
        (kind for kind in ("skip", "residual") if f"{below}_aux_{kind}.weight" in found.tensors),
        "standard",
    )
    fields = {
        "edm_unet.embedding": "fourier" if "map_noise.freqs" in found.tensors else "positional",
        "edm_unet.embedding_mult": embedding_mult,
        "edm_unet.encoder": encoder,
    }
    if levels == 1:
        return fields
    is_skip = f"dec.{_at(side // 2)}_aux_conv.weight" in found.tensors
    name = f"{below}_down.conv0.resample_filter"
    taps = np.asarray(found.tensors[name] if _shape(found, name) else (), np.float64)[0, 0].sum(0)
    smallest = np.abs(taps).min()
    if not np.isfinite(taps).all() or not smallest or (np.abs(taps / smallest) > 1024).any():
        raise _unlike(found, name, "is no filter")
    return fields | {
        "edm_unet.decoder": "skip" if is_skip else "standard",
        "edm_unet.resample_filter": tuple(int(tap) for tap in np.round(taps / smallest)),
    }


def _training(
    found: _Found, facts: Mapping[str, Any], fields: Mapping[str, Any]
) -> dict[str, Assumption]:
    """Return what only training reads, by the facts of a snapshot or by default."""
    start = f"{found.around}model."
    dropouts = (value for name, value in facts.items() if name.endswith("block0.dropout"))
    dropout = next(filter(_is_share, dropouts), None)
    why = "its default" if dropout is None else "of its blocks"
    assumed = {
        "model.dropout": Assumption(
            0.1 if dropout is None else float(dropout), f"{why}; of training only"
        )
    }
    if "diffusion.variance" in fields:
        assumed["diffusion.loss"] = Assumption("hybrid", "it trains the variance; of training only")
    if fields["condition.num_classes"]:
        hidden = facts.get(f"{start}label_dropout", 0)
        hidden = float(hidden) if _is_share(hidden) else 0.0
        assumed["condition.null_class"] = Assumption(
            hidden > 0, f"labels were {'' if hidden else 'not '}hidden in its training"
        )
        assumed["condition.label_dropout"] = Assumption(hidden, "as in its training; of that only")
    return assumed


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _process(
    found: _Found, facts: Mapping[str, Any], asked: Any, *, is_doubled: bool
) -> tuple[dict[str, Any], dict[str, Assumption]]:
    """Return the fields of the process, and what is not known of it.

    Args:
      found: the network.
      facts: of its files.
      asked: the process that the user names; None for none.
      is_doubled: whether it has two outputs for each channel.

    Raises:
      UsageError: its preconditioner is none of theirs, or has other constants.
    """
    clip = {"diffusion.clip": Assumption("none", "its samplers clip the finished image alone")}
    name = facts.get(f"{found.around}_class_name")
    if name is None:
        if found.levels:
            fields = PRECONDITIONERS["iDDPMPrecond"].fields
            return {**fields, "diffusion.num_timesteps": found.levels - 1}, clip
        return {}, _assumed_process(asked, is_doubled=is_doubled) | clip
    if name not in PRECONDITIONERS:
        raise UsageError(
            f"{found.path} has a network within {format_value(name)}: of {FAMILY} those within "
            f"{', '.join(PRECONDITIONERS)} are read."
        )
    known = PRECONDITIONERS[name]
    for constant, value in known.constants.items():
        there = facts.get(f"{found.around}{constant}", value)
        if there != value:
            raise UsageError(
                f"{constant} of the {name} of {found.path} is {format_value(there)}, and {value} "
                "in the process here: it cannot be read."
            )
    fields = dict(known.fields)
    for attribute, field in known.copied.items():
        value = facts.get(f"{found.around}{attribute}")
        if isinstance(value, int | float):
            fields[field] = value
    if name == "EDMPrecond":
        clip["diffusion.levels"] = Assumption("lognormal", "as in its training; of that only")
    return fields, clip


def _assumed_process(asked: Any, *, is_doubled: bool) -> dict[str, Assumption]:
    """Return the fields of the process of a state dict, which does not say it; see `_process`."""
    why = "a state dict does not tell its preconditioner"
    if asked is None and is_doubled:
        name, why = "iDDPMPrecond", "it has two outputs for each channel, as iDDPM's networks have"
    elif asked is None:
        name = "EDMPrecond"
    else:
        of_process = {one.fields["diffusion.process"]: key for key, one in PRECONDITIONERS.items()}
        if asked not in of_process:
            return {}
        name = of_process[asked]
        why = f"as in {name}, whose process this is"
    assumed = {key: Assumption(value, why) for key, value in PRECONDITIONERS[name].fields.items()}
    if name == "iDDPMPrecond":
        assumed["diffusion.num_timesteps"] = Assumption(1000, "iDDPM's")
    if name == "EDMPrecond":
        assumed["diffusion.levels"] = Assumption("lognormal", f"{why}; of training only")
    return assumed


def _other_process(found: _Found, process: Any) -> UsageError:
    """Return what refuses a process that is not iDDPM's for a network that only iDDPM has."""
    if found.levels:
        what = f"{LEVELS}, a table of the levels of a chain"
    else:
        what = "two outputs for each channel, of which one is a variance"
    return UsageError(
        f"{found.path} has {what}, as networks within iDDPMPrecond alone have, but "
        f"diffusion.process is {format_value(process)}: it can only be 'chain'."
    )


def _released(fields: Mapping[str, Any]) -> tuple[str, str]:
    """Return the released network of this architecture and its parameters; "" for none."""
    for name, (known, published) in RELEASED.items():
        if all(fields.get(field) == value for field, value in known.items()):
            return name, published
    return "", ""


def _at(side: int) -> str:
    return f"{side}x{side}"


def _multiple(width: int, ch: int) -> float:
    return width // ch if width % ch == 0 else width / ch


def _count(found: _Found, name: str) -> int:
    """Return how many tensors of a name, with 0, 1, ... in it, there are."""
    return next(i for i in itertools.count() if name.format(i) not in found.tensors)


def _inputs(found: _Found, name: str) -> int:
    """Return the inputs of a linear map; 0 if it is missing."""
    return _shape(found, name, 2)[1] if name in found.tensors else 0


def _shape(found: _Found, name: str, length: int = 4) -> tuple[int, ...]:
    """Return the shape of a tensor with so many axes.

    Raises:
      UsageError: it is missing, or has another number, or an empty one.
    """
    shape = np.shape(found.tensors[name]) if name in found.tensors else None
    if shape is None or len(shape) != length or 0 in shape:
        raise _unlike(found, name, "is missing" if shape is None else f"has the shape {shape}")
    return shape


def _unlike(found: _Found, name: str, what: str) -> UsageError:
    return UsageError(
        f"{name} of {found.path} {what}: of {FAMILY} the networks SongUNet and DhariwalUNet are "
        "read."
    )
