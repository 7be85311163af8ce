"""Checkpoints of denoising-diffusion-pytorch, `model-10.pt`, by its author called lucidrains.

The trainer saves "model", the state dict of a `GaussianDiffusion`, and "ema", that of its moving
average, besides a copy of the first. Of the process they have the tables, which say its schedule
and what the network predicts; the network, under `model.`, is a `LinearUNet`.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.errors import UsageError
from ddpm_jax.families.foreign import Assumption, Foreign, Request, Tensors
from ddpm_jax.interop.containers import Container
from ddpm_jax.interop.lucidrains import (
    linear_unet_params_from_lucidrains,
    linear_unet_params_to_lucidrains,
)
from ddpm_jax.interop.tensor_store import Renamed
from ddpm_jax.models.linear_unet import MEMORY

FAMILY = "denoising-diffusion-pytorch"
NETWORK = "model."  # before the names of the network in a `GaussianDiffusion`
PLACES = (  # kind of weights, group, what is before the names of a `GaussianDiffusion` in it
    ("raw", "model", ""),
    ("raw", "", ""),
    ("ema", "ema", "ema_model."),
)
# what tells this network from others
SIGNS = ("init_conv.weight", "time_mlp.1.weight", "downs.0.0.block1.proj.weight", "final_conv.bias")
SCHEDULES = ("sigmoid_alphas_bar", "linear", "cosine")
GAMMA = 5.0  # of min-SNR, their default and ours
GROUPS = 8  # of the norms before version 2, by default
# Their "sigmoid" takes the ends of its curve in single precision, which moves the last betas by
# 1e-4 of their size where T is 1000.
RTOL = 1e-3


class _Saved(NamedTuple):
    """What is in one place of a file."""

    network: Tensors
    tables: Tensors  # of the process; empty where a network was saved alone


def recognise(container: Container, request: Request) -> Foreign | None:
    """Describe a checkpoint of this project; None if it is another's.

    Args:
      container: its groups are those of `PLACES`; "" may be the state dict of a network alone.
      request: `preset` is not taken.

    Raises:
      UsageError: it is of a version before 1.9, or has options that `LinearUNet` does not have; its
        schedule is unknown; a preset is asked for.
    """
    found = {
        kind: saved
        for kind, group, start in PLACES
        if (saved := _saved(container.groups.get(group, {}), start))
    }
    if not found:
        return None
    if request.preset is not None:
        raise UsageError(f"There are no presets of {FAMILY}: leave {request.preset!r} out.")
    saved = next(iter(found.values()))
    fields, assumed = _network(saved.network, container)
    said, guessed = _process(saved.tables, container)
    fields, assumed = fields | said, assumed | guessed
    if "diffusion.variance" in fields:
        assumed["diffusion.loss"] = Assumption("hybrid", "it trains the variance; of training only")
    else:
        assumed["diffusion.variance"] = Assumption("fixed_small", "as in its code")
    return Foreign(
        family=FAMILY,
        fields=fields,
        assumed={name: guess for name, guess in assumed.items() if name not in request.fields},
        weights={kind: saved.network for kind, saved in found.items()},
        read=linear_unet_params_from_lucidrains,
        write=linear_unet_params_to_lucidrains,
        unread=tuple(container.unread.values()),
    )


def _saved(group: Tensors, start: str) -> _Saved | None:
    """Return the network, and the tables, of which all names in a group begin with `start`."""
    prefixes = (start + NETWORK, start)
    prefix = next((x for x in prefixes if all(x + sign in group for sign in SIGNS)), None)
    if prefix is None:
        return None
    names = [name for name in group if name.startswith(prefix)]
    tables = [name for name in (f"{start}betas", f"{start}loss_weight") if name in group]
    return _Saved(
        Renamed(group, lambda name: name.removeprefix(prefix), names),
        Renamed(group, lambda name: name.removeprefix(start), tables),
    )


def _network(
    tensors: Tensors, container: Container
) -> tuple[dict[str, Any], dict[str, Assumption]]:
    """Return the fields of the network, and what its shapes do not tell.

    Raises:
      UsageError: it has options that a `LinearUNet` does not have.
    """
    path = container.path
    first, channels, _, _ = _shape(tensors, "init_conv.weight", path)
    out_channels, *_ = _shape(tensors, "final_conv.weight", path)
    _, ch = _shape(tensors, "time_mlp.1.weight", path, 2)
    if "time_mlp.0.weights" in tensors:
        raise _unlike(path, "time_mlp.0.weights", "has frequencies of the time of its own")
    if first != ch:
        raise _unlike(path, "init_conv.weight", f"has {first} channels (init_dim) beside {ch}")
    if channels == 2 * out_channels:
        raise _unlike(path, "init_conv.weight", f"has {channels} inputs, for self-conditioning")
    if out_channels not in (channels, 2 * channels):
        raise _unlike(path, "final_conv.weight", f"has {out_channels} outputs of {channels} inputs")
    fields = {
        "objective": "diffusion",
        "data.channels": channels,
        "model.name": "linear_unet",
        "model.ch": ch,
        "model.norm_eps": 1e-5,
        **_levels(tensors, ch, path),
    }
    size = max(128, 2 ** (len(fields["model.ch_mult"]) - 1))
    assumed = {
        "data.image_size": Assumption(size, "as in its readme; the weights are for any size"),
        "model.dropout": Assumption(0.0, "its default; of training only"),
    }
    if "downs.0.0.block1.norm.weight" in tensors:  # before version 2
        assumed["linear_unet.norm_groups"] = Assumption(GROUPS, "its default")
    else:
        fields["linear_unet.norm_groups"] = 0
    if out_channels != channels:
        fields["diffusion.variance"] = "learned_range"  # there is no other kind in its code
    return fields, assumed


def _levels(tensors: Tensors, ch: int, path: pathlib.Path) -> dict[str, Any]:
    """Return channels and attention of the levels.

    Raises:
      UsageError: as `_network`.
    """
    mults, full, attention = [], [], None
    while f"downs.{len(mults)}.0.block1.proj.weight" in tensors:
        level = f"downs.{len(mults)}"
        is_full = f"{level}.2.to_out.weight" in tensors
        full += [len(mults)] if is_full else []
        _, heads, *rest = _shape(tensors, f"{level}.2.mem_kv", path)
        size, head_channels = rest if is_full else rest[::-1]
        attention = attention or (heads, head_channels)
        if (size, heads, head_channels) != (MEMORY, *attention):
            what = f"has {size} keys of {heads} heads with {head_channels} channels"
            wanted = "{} of {} with {}".format(MEMORY, *attention)
            raise _unlike(path, f"{level}.2.mem_kv", f"{what}, where {wanted} are expected")
        changes = f"{level}.3.1.weight"
        out = changes if changes in tensors else f"{level}.3.weight"
        width = _shape(tensors, out, path)[0]
        if width % ch:
            raise _unlike(path, out, f"has {width} channels, no multiple of {ch}")
        mults.append(width // ch)
    heads, head_channels = attention
    return {
        "model.ch_mult": tuple(mults),
        "linear_unet.full_attention": tuple(full),
        "linear_unet.heads": heads,
        "linear_unet.head_channels": head_channels,
    }


def _shape(tensors: Tensors, name: str, path: pathlib.Path, length: int = 4) -> tuple[int, ...]:
    """Return the shape of a tensor with so many axes."""
    found = np.shape(tensors[name]) if name in tensors else None
    if found is None or len(found) != length or 0 in found:
        raise _unlike(path, name, "is missing" if found is None else f"has the shape {found}")
    return found


def _unlike(path: pathlib.Path, name: str, what: str) -> UsageError:
    return UsageError(
        f"{name} of {path} {what}: of {FAMILY} networks of images are read, from version 1.9 on, "
        "without self-conditioning and with the same attention on all levels."
    )


def _process(tables: Tensors, container: Container) -> tuple[dict[str, Any], dict[str, Assumption]]:
    """Return the fields of the process, and what is not known of it.

    Raises:
      UsageError: its betas are of no schedule here.
    """
    if "betas" not in tables:
        why = "its default; a network alone does not tell"
        return {}, {
            "diffusion.num_timesteps": Assumption(1000, why),
            "diffusion.schedule": Assumption(SCHEDULES[0], why),
            "diffusion.parameterization": Assumption("v", why),
        }
    betas = np.asarray(tables["betas"], np.float64)
    fields = _schedule(betas)
    if not fields:
        raise UsageError(
            f"betas of {container.path} are of none of the schedules of {FAMILY}, "
            f"{', '.join(SCHEDULES)}, with its constants."
        )
    alphas_bar = np.cumprod(1 - betas)
    snr = alphas_bar / (1 - alphas_bar)
    clipped = np.minimum(snr, GAMMA)
    weights = {  # what is predicted, and the weighting of the loss -> their table
        ("eps", "uniform"): np.ones_like(snr),
        ("eps", "min_snr"): clipped / snr,
        ("v", "min_snr"): clipped / (snr + 1),
        ("v", None): snr / (snr + 1),
        ("x_0", "min_snr"): clipped,
        ("x_0", None): snr,
    }
    theirs = np.asarray(tables.get("loss_weight", ()), np.float64)
    for (predicted, weighting), table in weights.items():
        if theirs.shape == table.shape and np.allclose(theirs, table, rtol=RTOL, atol=0):
            fields["diffusion.parameterization"] = predicted
            if weighting:
                return fields | {"diffusion.weighting": weighting}, {}
            why = "its own, by alphas_bar, is none of ours; of training only"
            return fields, {"diffusion.weighting": Assumption("uniform", why)}
    why = "its default; loss_weight, which would tell, is unknown"
    return fields, {"diffusion.parameterization": Assumption("v", why)}


def _schedule(betas: np.ndarray) -> dict[str, Any]:
    """Return the fields of the schedule that has these betas; none if it is unknown."""
    num_timesteps = len(betas) if betas.ndim == 1 else 0
    for name in SCHEDULES if num_timesteps > 1 else ():
        ends: Mapping[str, float] = {}
        if name == "linear" and num_timesteps != 1000:
            ends = {"beta_start": 0.1 / num_timesteps, "beta_end": 20 / num_timesteps}
        if all(end <= 1 for end in ends.values()) and np.allclose(
            betas, make_betas(name, num_timesteps, **ends), rtol=RTOL, atol=0
        ):
            fields = {"schedule": name, "num_timesteps": num_timesteps, **ends}
            return {f"diffusion.{field}": value for field, value in fields.items()}
    return {}
