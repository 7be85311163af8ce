"""Checkpoints of the Diffusion Transformer's authors (facebookresearch/DiT).

Released are state dicts alone; training saves "model", "ema", the optimiser and its arguments. The
networks are over the latents of Stable Diffusion's autoencoder, which these files do not have.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.errors import UsageError, choose
from ddpm_jax.families.foreign import Assumption, Foreign, Request
from ddpm_jax.interop.containers import Container
from ddpm_jax.interop.dit_authors import (
    dit_params_from_authors,
    dit_params_to_authors,
    has_formula,
    tokens_a_side,
)
from ddpm_jax.models.dit import SIZES

FAMILY = "DiT"
# what tells this network from other transformers
SIGNS = (
    "x_embedder.proj.weight",
    "t_embedder.mlp.0.weight",
    "y_embedder.embedding_table.weight",
    "blocks.0.attn.qkv.weight",
    "blocks.0.adaLN_modulation.1.weight",
    "final_layer.linear.weight",
    "pos_embed",
)
LATENT_CHANNELS, FACTOR, LATENT_SCALE = 4, 8, 0.18215  # of Stable Diffusion's autoencoder
PRESETS = {"dit_xl2_256": 256, "dit_xl2_512": 512}  # released -> size of the images
HEAD = 64  # channels of a head, in the paper's S, B and L


def recognise(container: Container, request: Request) -> Foreign | None:
    """Describe a checkpoint of the authors' code; None if it is another's.

    Args:
      container: its state dict is the group "", or "model" and "ema" are.
      request: `preset` is a key of `PRESETS`; `fields` have `first_stage.ckpt` where the network
        is over latents.

    Raises:
      UsageError: a tensor has not the shape of any DiT; the first stage is not said; the preset is
        unknown, or another network.
    """
    found = {
        kind: container.groups[key]
        for kind, key in (("raw", "model"), ("raw", ""), ("ema", "ema"))
        if all(sign in container.groups.get(key, ()) for sign in SIGNS)
    }
    if not found:
        return None
    tensors = next(iter(found.values()))
    fields, assumed = _network(tensors, request)
    if not all(map(has_formula, found.values())):
        fields["dit.positions"] = "table"
    side = tokens_a_side(tensors)
    pixels = side * fields["dit.patch_size"]
    if fields["data.channels"] == LATENT_CHANNELS:
        _check_first_stage(container, request)
        pixels *= FACTOR
        fields["data.channels"] = 3
        scale = "that of Stable Diffusion's autoencoder, as in the paper"
        assumed["first_stage.latent_scale"] = Assumption(LATENT_SCALE, scale)
        why = f"{side}x{side} tokens over latents that are {FACTOR} times smaller"
        assumed["data.image_size"] = Assumption(pixels, why)
    else:
        fields["data.image_size"] = pixels
    return Foreign(
        family=FAMILY,
        fields=fields,
        assumed={name: guess for name, guess in assumed.items() if name not in request.fields},
        weights=found,
        read=dit_params_from_authors,
        write=functools.partial(_write, side),
        unread=tuple(container.unread.values()),
        released_as=_released(fields, assumed, pixels, container, request),
    )


def _network(
    tensors: Mapping[str, np.ndarray], request: Request
) -> tuple[dict[str, Any], dict[str, Assumption]]:
    """Return the fields of the network, and what the shapes do not tell of it and its process."""
    hidden, channels, patch, _ = _shape(tensors, "x_embedder.proj.weight", 4)
    rows, _ = _shape(tensors, "y_embedder.embedding_table.weight", 2)
    per_patch, _ = _shape(tensors, "final_layer.linear.weight", 2)
    values = channels * patch**2
    if per_patch not in (values, 2 * values):
        raise UsageError(
            f"final_layer.linear.weight has {per_patch} rows: for patches of {patch}x{patch} "
            f"pixels of {channels} channels {values} are expected, or {2 * values} where the "
            "variance is learned."
        )
    is_learned = per_patch != values
    asked = request.fields
    null_class = asked.get("condition.null_class", asked.get("condition.num_classes") != rows)
    size_fields, size_assumed = _size(hidden, tensors, request)
    fields = size_fields | {
        "objective": "diffusion",
        "data.channels": channels,
        "model.name": "dit",
        "model.time_embedding": "cos_sin",
        "model.norm_eps": 1e-6,
        "dit.patch_size": patch,
        "dit.positions": "formula",
        "condition.num_classes": rows - null_class,
    }
    if is_learned:
        fields["diffusion.variance"] = "learned_range"  # there is no other kind in their code
    code, training = "as in the authors' code", "; of training only"
    null_row = f"the last of the {rows} rows of y_embedder, as in the authors' networks"
    assumed = {
        "diffusion.parameterization": Assumption(
            "eps",
            f"a diffusion {code}, and not flow matching: SiT's files have the same names and "
            "shapes, and images of theirs would be noise here",
        ),
        "diffusion.num_timesteps": Assumption(1000, code),
        "diffusion.schedule": Assumption("linear", code),
        "diffusion.loss": Assumption("hybrid" if is_learned else "simple", code + training),
        "condition.null_class": Assumption(null_class, null_row),
        "condition.label_dropout": Assumption(0.1 if null_class else 0.0, code + training),
        "model.dropout": Assumption(0.0, code),
    }
    if not is_learned:
        assumed["diffusion.variance"] = Assumption("fixed_large", code)
    return fields, assumed | size_assumed


def _size(
    hidden: int, tensors: Mapping[str, np.ndarray], request: Request
) -> tuple[dict[str, Any], dict[str, Assumption]]:
    """Return the size of a network, one of the paper's if it is not said to have other heads."""
    depth = 0
    while f"blocks.{depth}.attn.qkv.weight" in tensors:
        depth += 1
    for name, size in SIZES.items():
        is_one = (size.hidden_size, size.depth) == (hidden, depth)
        if is_one and not request.fields.keys() & {"dit.size", "dit.num_heads"}:
            why = f"with {hidden} channels and {depth} blocks, so {size.num_heads} heads"
            return {}, {"dit.size": Assumption(name, why)}
    heads = Assumption(max(1, hidden // HEAD), f"of {HEAD} channels each, as in the paper")
    return (
        {"dit.size": "custom", "dit.hidden_size": hidden, "dit.depth": depth},
        {"dit.num_heads": heads},
    )


def _shape(tensors: Mapping[str, np.ndarray], name: str, length: int) -> tuple[int, ...]:
    found = np.shape(tensors[name])
    if len(found) != length or 0 in found:
        raise UsageError(f"{name} has shape {found}, unlike that of a DiT.")
    return found


def _check_first_stage(container: Container, request: Request) -> None:
    if not request.fields.get("first_stage.ckpt"):
        raise UsageError(
            f"{container.path} is a DiT over latents, and the autoencoder is not in it: make a run "
            "of Stable Diffusion's by `ddpm-jax import-first-stage --config vae_imagenet256 "
            "--weights FILE --out DIR`, and name that directory as the field first_stage.ckpt."
        )


def _released(
    fields: Mapping[str, Any],
    assumed: Mapping[str, Assumption],
    pixels: int,
    container: Container,
    request: Request,
) -> str:
    """Return the released model that it has the architecture of, in words; "" if of none.

    Raises:
      UsageError: an unknown preset, or one of another architecture.
    """
    size = assumed.get("dit.size", Assumption("", "")).value
    is_one = (
        (size, fields["dit.patch_size"], fields["condition.num_classes"]) == ("XL", 2, 1000)
        and pixels in PRESETS.values()
        and fields.get("diffusion.variance") == "learned_range"
    )
    name = f"DiT-XL/2 on ImageNet at {pixels}x{pixels}" if is_one else ""
    if request.preset is not None and (
        choose("preset", request.preset, PRESETS) != pixels or not is_one
    ):
        raise UsageError(
            f"{container.path} is not the released model {request.preset}: it has patches of "
            f"{fields['dit.patch_size']}, {fields['condition.num_classes']} classes, images of "
            f"{pixels}x{pixels} and the size {size or 'custom'}."
        )
    return name


def _write(side: int, params: Mapping[str, Any], dit: Any) -> dict[str, np.ndarray]:
    return dit_params_to_authors(params, dit, side)
