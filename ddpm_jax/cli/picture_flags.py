"""Flags for pictures of the latent space, their checks, and drawing them."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from ddpm_jax.cli.arguments import Flags
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.limits import MAX_SEED
from ddpm_jax.settings import Settings, setting
from ddpm_jax.tasks import interpolation, reconstruction
from ddpm_jax.tasks.editing_settings import Interpolation, Reconstruction
from ddpm_jax.tasks.picture_files import write_drawing
from ddpm_jax.tasks.sampling import make_generator
from ddpm_jax.tasks.sampling_settings import Sampling

PICTURES = ("interpolate", "shared_latents", "interpolate_seeds", "reconstruct")
_ANCESTRAL = ("interpolate", "shared_latents")
_IDLE = {  # picture -> flags of samples that would do nothing
    "interpolate": ("chain",),
    "shared_latents": ("chain",),
    "interpolate_seeds": ("chain", "num_samples", "batch_size"),
    "reconstruct": ("chain", "num_samples", "batch_size", "seed", "sampler_options"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedLatents(Settings):
    """Samples that share an x_t"""

    shared_latents: bool = setting(
        False, "Draw samples that share the x_t of one chain, at four t: shared_latents.png."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place(Settings):
    """Where to"""

    out: str | None = setting(
        None,
        "Directory for the picture; by default generated in the run's.",
        path=True,
        metavar="DIR",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seed(Settings):
    """Randomness"""

    seed: int = setting(0, "Of the noise.", lower=0, upper=MAX_SEED)


def requested_pictures(flags: Flags) -> list[str]:
    """Return the names of the requested pictures; refuse flags that do not fit them."""
    for record in (Interpolation, Reconstruction):
        flags.make(record)
    pictures = [name for name in PICTURES if getattr(flags, name, None) not in (None, False)]
    if not pictures:
        return pictures
    if len(pictures) > 1 and not set(pictures) <= set(_ANCESTRAL):
        raise UsageError(
            f"--{pictures[0]} and --{pictures[1]} each draw a picture of their own: give one of "
            "them."
        )
    named = " and ".join(f"--{name}" for name in pictures)
    for name in ("init_image", "inpaint"):
        if name in flags.given:
            raise UsageError(f"{named} can edit no picture: leave out --{name}.")
    for picture in pictures:
        for name in _IDLE[picture]:
            if name in flags.given:
                raise UsageError(f"--{name} does nothing for --{picture}: leave it out.")
    if flags.labels and len(flags.labels) > 1:
        raise UsageError(
            f"--labels {','.join(map(str, flags.labels))}: all images of {named} are of one class, "
            "so give one."
        )
    if pictures[0] in _ANCESTRAL and flags.sampler not in (None, "ancestral"):
        raise UsageError(
            f"{named} can only walk the ancestral chain: leave out --sampler {flags.sampler}."
        )
    if getattr(flags, "distributed", False):
        raise UsageError(
            f"--{pictures[0]} draws one picture, on one process: leave out --distributed."
        )
    return pictures


def draw_pictures(
    trained: TrainedModel,
    made_by: dict[str, Any],
    flags: Flags,
    pictures: Sequence[str],
    out: os.PathLike,
) -> None:
    """Draw pictures; every image has the condition of image 0: --labels, or the first class."""
    sampling, seed = flags.make(Sampling), getattr(flags, "seed", 0)
    if "reconstruct" in pictures:
        sampling, seed = reconstruction.decided(sampling), None  # nothing is drawn at random
    generator, between = make_generator(trained, sampling), flags.make(Interpolation)
    make = {
        "interpolate": lambda: interpolation.interpolate(generator, between, seed=seed),
        "interpolate_seeds": lambda: interpolation.interpolate_seeds(generator, between, seed=seed),
        "shared_latents": lambda: interpolation.share_latents(generator, seed=seed),
        "reconstruct": lambda: reconstruction.draw_reconstruction(
            generator, sampling, flags.make(Reconstruction)
        ),
    }
    for picture in pictures:
        write_drawing(make[picture](), generator, out, made_by, seed=seed)
