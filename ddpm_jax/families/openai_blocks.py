"""The networks of OpenAI's code: what the names and shapes of their tensors say, and what not.

Shared by the U-Nets (`openai_unet`) and the noisy classifiers (`openai_classifier`). Names and
layouts are in `interop.openai`, the models that were released in `openai_released`.
"""

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.families.foreign import Assumption, Request, Tensors
from ddpm_jax.interop.containers import Container

Shapes = Mapping[str, tuple[int, ...]]
# what tells these networks from those of Stable Diffusion, which have transformers in between
SIGNS = (
    "time_embed.0.weight",
    "input_blocks.0.0.weight",
    "input_blocks.1.0.in_layers.2.weight",
    "middle_block.1.qkv.weight",
)
UP = "output_blocks.0.0.in_layers.2.weight"  # a classifier has no way up
_IN_BLOCK = r"in_layers\.[02]|emb_layers\.1|out_layers\.[03]|skip_connection|norm|qkv|proj_out"
_KNOWN = re.compile(
    r"(time_embed\.[02]|out\.\d|out\.2\.(qkv|c)_proj|input_blocks\.0\.0)\.(weight|bias)"
    r"|label_emb\.weight|out\.2\.positional_embedding"
    rf"|((in|out)put_blocks\.\d{{1,4}}|middle_block)\.\d\.({_IN_BLOCK}|op|conv)\.(weight|bias)"
)
SIZES = {  # multiples of ch -> the image size for which the scripts choose them
    (1, 2, 2, 2): 32,
    (1, 2, 3, 4): 64,
    (1, 1, 2, 3, 4): 128,
    (1, 1, 2, 2, 4, 4): 256,
    (1, 2, 2, 4, 4, 8, 8): 512,
}
LOWEST = 8  # height of the lowest level in most of these networks
OF_HEADS = ("model.num_heads", "model.head_channels")  # two ways to say one thing
_INPUT = re.compile(r"input_blocks\.(\d{1,4})\.")
HEADS, HEAD_CHANNELS = 4, 64  # default of the scripts; of guided-diffusion's models


class Architecture(NamedTuple):
    """A network, as far as its tensors tell."""

    in_channels: int
    out_channels: int  # of a classifier: its classes
    ch: int
    ch_mult: tuple[float, ...]  # whole numbers are int
    num_res_blocks: int
    attends: tuple[int, ...]  # the levels with attention, from 0
    scale_shift_norm: bool
    resampling: str  # as in our U-Net
    num_classes: int = 0  # that a U-Net is given
    time_channels: int = 0  # as in our U-Net
    pool: str = ""  # of a classifier, as in ours; "": a U-Net
    positions: int = 0  # height and width of what a classifier attends to; 0: none are learned

    @property
    def widths(self) -> set[int]:
        """The channels of the layers of attention."""
        levels = (*self.attends, len(self.ch_mult) - 1)
        return {round(self.ch * self.ch_mult[i]) for i in levels}


def networks_in(container: Container, *, classifiers: bool) -> dict[str, Tensors]:
    """Return the networks of a container by the kind of their weights, "raw" or "ema".

    Files of training are named after the kind: `ema_0.9999_100000.pt` and `model100000.pt`. The
    kind of others is not known, and called raw.

    Raises:
      UsageError: there are several of a kind.
    """
    weights: dict[str, Tensors] = {}
    for key, tensors in container.groups.items():
        if not all(sign in tensors for sign in SIGNS) or (UP in tensors) == classifiers:
            continue
        is_average = re.search(r"(^|[._-])ema", (key or container.path.name).lower())
        kind = "ema" if is_average else "raw"
        if kind in weights:
            raise UsageError(
                f"{container.path} has several networks of OpenAI's code: give a file of one."
            )
        weights[kind] = tensors
    return weights


def read_architecture(tensors: Tensors, request: Request, path: pathlib.Path) -> Architecture:
    """Return the architecture of a network with `SIGNS`.

    Args:
      tensors: only their names and shapes are read.
      request: its `model.num_res_blocks` decides where the tensors allow several numbers.
      path: of the files, for messages.

    Raises:
      UsageError: it is none of ours; the first tensor that does not fit is named.
    """
    shapes = {name: np.shape(tensors[name]) for name in tensors}
    unknown = next((name for name in shapes if not _KNOWN.fullmatch(name)), None)
    if unknown is not None:
        raise UsageError(
            f"{path} has {unknown[:200]}, which no network of OpenAI's code has that is known here."
        )
    ch, in_channels, *_ = _shape(shapes, "input_blocks.0.0.weight", 4, path)
    temb, sinusoids = _shape(shapes, "time_embed.0.weight", 2, path)
    if temb != 4 * sinusoids:
        raise UsageError(
            f"time_embed.0.weight of {path} maps {sinusoids} sines and cosines to {temb} features: "
            f"{4 * sinusoids} are expected."
        )
    resampling, per_level = _levels(shapes, request, path)
    count = _count(shapes, "input_blocks")
    starts = range(1, count, per_level)  # of each level, after the first convolution
    widths = [_shape(shapes, f"input_blocks.{n}.0.out_layers.3.weight", 4, path)[0] for n in starts]
    if widths[0] != ch:
        raise UsageError(
            f"input_blocks.0.0.weight of {path} gives {ch} channels: the {widths[0]} of the first "
            "level are expected."
        )
    embedded, _ = _shape(shapes, "input_blocks.1.0.emb_layers.1.weight", 2, path)
    if embedded not in (widths[0], 2 * widths[0]):
        raise UsageError(
            f"input_blocks.1.0.emb_layers.1.weight of {path} gives {embedded} features: "
            f"{widths[0]} are expected, or {2 * widths[0]} that scale and shift."
        )
    out = _classifier_out(shapes, path) if UP not in shapes else _unet_out(shapes, path)
    return Architecture(
        in_channels=in_channels,
        ch=ch,
        ch_mult=tuple(width / ch if width % ch else width // ch for width in widths),
        num_res_blocks=per_level - 1,
        attends=tuple(
            i for i, n in enumerate(starts) if f"input_blocks.{n}.1.qkv.weight" in shapes
        ),
        scale_shift_norm=embedded == 2 * widths[0],
        resampling=resampling,
        time_channels=0 if sinusoids == ch else sinusoids,
        **out,
    )


def _shape(shapes: Shapes, name: str, dimensions: int, path: pathlib.Path) -> tuple[int, ...]:
    """Return the shape of a tensor that must be there, with so many dimensions."""
    if name not in shapes:
        raise UsageError(f"{path} lacks {name}, which every network of OpenAI's code has.")
    if len(shapes[name]) != dimensions or 0 in shapes[name]:
        raise UsageError(
            f"{name} of {path} has the shape {list(shapes[name])}: {dimensions} dimensions are "
            "expected."
        )
    return shapes[name]


def _unet_out(shapes: Shapes, path: pathlib.Path) -> dict[str, Any]:
    out_channels, *_ = _shape(shapes, "out.2.weight", 4, path)
    classes = 0
    if "label_emb.weight" in shapes:
        classes, _ = _shape(shapes, "label_emb.weight", 2, path)
    return {"out_channels": out_channels, "num_classes": classes}


def _classifier_out(shapes: Shapes, path: pathlib.Path) -> dict[str, Any]:
    if "out.2.positional_embedding" in shapes:
        classes, *_ = _shape(shapes, "out.2.c_proj.weight", 3, path)
        _, positions = _shape(shapes, "out.2.positional_embedding", 2, path)
        side = math.isqrt(positions - 1)
        if side**2 != positions - 1 or not side:
            raise UsageError(
                f"out.2.positional_embedding of {path} has {positions} positions: one more than "
                "the pixels of a square is expected."
            )
        return {"out_channels": classes, "pool": "attention", "positions": side}
    if "out.3.weight" not in shapes or len(shapes["out.3.weight"]) != 4:
        raise UsageError(
            f"{path} is a classifier that pools neither by attention nor by the mean, as the "
            "shape of its out.0.weight shows: spatial pools are not known here."
        )
    classes, *_ = shapes["out.3.weight"]
    return {"out_channels": classes, "pool": "mean"}


def _count(shapes: Shapes, section: str) -> int:
    indices = (re.match(rf"{section}\.(\d+)\.", name) for name in shapes)
    return 1 + max((int(found[1]) for found in indices if found), default=0)


def _levels(shapes: Shapes, request: Request, path: pathlib.Path) -> tuple[str, int]:
    """Return how levels are joined, and how many indices a level has: one more than its blocks."""
    count = _count(shapes, "input_blocks")
    present = {int(found[1]) for found in map(_INPUT.match, shapes) if found}
    downs = [n for n in range(1, count) if f"input_blocks.{n}.0.op.weight" in shapes]
    # without parameters between levels, an index is left out
    gaps = [n for n in range(1, count) if n not in present]
    ups = [
        n
        for n in range(_count(shapes, "output_blocks"))
        if any(f"output_blocks.{n}.{part}.in_layers.0.weight" in shapes for part in (1, 2))
    ]
    if downs:
        found = "conv", downs[0]
    elif gaps:
        found = "pool", gaps[0]
    elif ups:
        found = "block", ups[0] + 1
    elif UP in shapes:
        found = "conv", count  # one level
    else:
        found = _levels_of_classifier(shapes, count, request)
    if found[1] < 2 or count % found[1]:
        raise UsageError(
            f"{path} has {count} input_blocks, and the first level ends at number {found[1]}: "
            "levels of equally many blocks are expected."
        )
    return found


def _levels_of_classifier(shapes: Shapes, count: int, request: Request) -> tuple[str, int]:
    """Return the same for a way down of residual blocks, which do not say which of them halve.

    Those that halve keep the channels, and no attention follows them. Where several numbers of
    blocks fit, the user's is taken, or the smallest.
    """

    def block(n: int) -> tuple[Any, bool]:
        weight = shapes.get(f"input_blocks.{n}.0.out_layers.3.weight")
        return weight and weight[0], f"input_blocks.{n}.1.qkv.weight" in shapes

    def fits(per_level: int) -> bool:
        for start in range(1, count, per_level):
            blocks = [block(n) for n in range(start, min(start + per_level, count))]
            halving = blocks[per_level - 1 :]
            same = len(set(blocks[: per_level - 1])) == 1
            if not same or halving not in ([], [(blocks[0][0], False)]):
                return False
        return True

    fitting = [n for n in range(2, count + 1) if count % n == 0 and fits(n)]
    wanted = request.fields.get("model.num_res_blocks")
    if wanted is not None and wanted + 1 in fitting:
        return "block", wanted + 1
    return "block", min(fitting, default=count)


def network_fields(architecture: Architecture, image_size: int) -> dict[str, Any]:
    """Return the fields of a config that both kinds of network have."""
    return {
        "model.name": "unet",
        "model.ch": architecture.ch,
        "model.ch_mult": architecture.ch_mult,
        "model.num_res_blocks": architecture.num_res_blocks,
        "model.attn_resolutions": tuple(image_size // 2**i for i in architecture.attends),
        "model.scale_shift_norm": architecture.scale_shift_norm,
        "model.resampling": architecture.resampling,
        "model.downsample_padding": "both",
        "model.time_embedding": "cos_sin",
        "model.time_channels": architecture.time_channels,
        "model.norm_eps": 1e-5,
    }


def image_size(assumed: Mapping[str, Assumption], request: Request) -> int:
    """Return the image size that the user says, or that is assumed."""
    said = request.fields.get("data.image_size")
    return said if isinstance(said, int) else assumed["data.image_size"].value


def guesses(architecture: Architecture, request: Request) -> dict[str, Assumption]:
    """Return what is assumed of a network of no released architecture, in both kinds."""
    levels = len(architecture.ch_mult)
    known = SIZES.get(architecture.ch_mult)
    side = Assumption(
        known or LOWEST * 2 ** (levels - 1),
        "the size for which OpenAI's scripts choose such channels"
        if known
        else f"the lowest level has {LOWEST}x{LOWEST} pixels then, as in most of these networks",
    )
    return {
        "data.image_size": side,
        **_heads(architecture),
        "model.qkv_order": Assumption("heads", "OpenAI's order, but for 64x64_diffusion"),
        "model.dropout": Assumption(0.0, "the default of OpenAI's scripts; of training only"),
        "diffusion.num_timesteps": Assumption(1000, "the default of OpenAI's scripts"),
        "diffusion.schedule": Assumption("linear", "the default of OpenAI's scripts"),
        **_of_other_lengths(architecture, request),
    }


def _of_other_lengths(architecture: Architecture, request: Request) -> dict[str, Assumption]:
    """Return what is assumed of a chain that is not of 1000 steps, for which it has no effect."""
    if request.fields.get("diffusion.num_timesteps", 1000) == 1000:
        return {}
    is_improved = architecture.resampling != "block"
    project = "improved" if is_improved else "guided"
    assumed = {
        "diffusion.rescale_timesteps": Assumption(
            is_improved, f"the default of the scripts of {project}-diffusion"
        )
    }
    if request.fields.get("diffusion.schedule", "linear") == "linear":
        assumed["diffusion.scale_betas"] = Assumption(True, "OpenAI's linear schedule")
    return assumed


def _heads(architecture: Architecture) -> dict[str, Assumption]:
    def divides(channels: int) -> bool:
        return all(width % channels == 0 for width in architecture.widths)

    if architecture.resampling == "block" and divides(HEAD_CHANNELS):
        return {"model.head_channels": Assumption(HEAD_CHANNELS, "as in most of guided-diffusion")}
    if divides(HEADS):
        return {"model.num_heads": Assumption(HEADS, "the default of OpenAI's scripts")}
    return {"model.num_heads": Assumption(1, f"{HEADS} would not divide the channels")}


def unsaid(assumed: Mapping[str, Assumption], request: Request) -> dict[str, Assumption]:
    """Return the assumptions about which the user says nothing."""
    said = set(request.fields)
    if said & set(OF_HEADS):
        said |= set(OF_HEADS)
    return {name: guess for name, guess in assumed.items() if name not in said}
