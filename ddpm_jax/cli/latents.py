"""sample.py's commands that draw a picture of their own instead of samples: what is refused, the
files.

`--interpolate A B`, `--shared_latents`, `--interpolate_seeds`, `--reconstruct`; what each draws is
`tasks.interpolation` and `tasks.reconstruction`, samples are `cli.sample`. A picture has a JSON
record of the same name, and is never replaced by one that was made otherwise.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ddpm_jax.cli.arguments import Flags
from ddpm_jax.errors import UsageError, say
from ddpm_jax.experiments.identity import versions
from ddpm_jax.experiments.loading import TrainedModel
from ddpm_jax.files import reporting
from ddpm_jax.monitoring.results import check_record, write_record
from ddpm_jax.plotting import grids as pictures
from ddpm_jax.settings import Settings, setting
from ddpm_jax.tasks import interpolation, reconstruction
from ddpm_jax.tasks.editing_settings import Interpolation, Reconstruction
from ddpm_jax.tasks.image_generator import ImageGenerator
from ddpm_jax.tasks.sampling import make_generator
from ddpm_jax.tasks.sampling_settings import Sampling

WIDE_ENOUGH = 88  # pixels of an image, for a label of two words above it
COMMANDS = ("interpolate", "shared_latents", "interpolate_seeds", "reconstruct")
_ANCESTRAL = ("interpolate", "shared_latents")
_IDLE = {  # command -> flags of samples that would do nothing
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


def asked(flags: Flags) -> list[str]:
    """Return the names of the commands of this file that the flags ask for.

    Raises:
      UsageError: settings or two commands that do not go together, or a flag that would do
        nothing.
    """
    for record in (Interpolation, Reconstruction):
        flags.make(record)
    commands = [name for name in COMMANDS if getattr(flags, name) not in (None, False)]
    if not commands:
        return commands
    if len(commands) > 1 and not set(commands) <= set(_ANCESTRAL):
        raise UsageError(
            f"--{commands[0]} and --{commands[1]} each draw a picture of their own: give one of "
            "them."
        )
    named = " and ".join(f"--{name}" for name in commands)
    for name in ("init_image", "inpaint"):
        if name in flags.given:
            raise UsageError(f"{named} can edit no picture: leave out --{name}.")
    for command in commands:
        for name in _IDLE[command]:
            if name in flags.given:
                raise UsageError(f"--{name} does nothing for --{command}: leave it out.")
    if flags.labels and len(flags.labels) > 1:
        raise UsageError(
            f"--labels {','.join(map(str, flags.labels))}: all images of {named} are of one class, "
            "so give one."
        )
    if commands[0] in _ANCESTRAL and flags.sampler not in (None, "ancestral"):
        raise UsageError(
            f"{named} can only walk the ancestral chain: leave out --sampler {flags.sampler}."
        )
    if flags.distributed:
        raise UsageError(
            f"--{commands[0]} draws one picture, on one process: leave out --distributed."
        )
    return commands


def draw(
    trained: TrainedModel,
    made_by: Mapping[str, Any],
    flags: Flags,
    commands: Sequence[str],
    directory: os.PathLike,
) -> None:
    """Draw what was asked for and say where it is; `made_by` says of which model.

    Every image has the condition of image 0: of a model with classes, --labels, by default the
    first.

    Raises:
      UsageError: a file, seed or t that cannot be used, or the place is taken by a picture that was
        made otherwise.
      FailureError: an image that is not finite, or files that cannot be written.
    """
    sampling = flags.make(Sampling)
    if "reconstruct" in commands:
        sampling = reconstruction.decided(sampling)
    generator = make_generator(trained, sampling)
    for command in commands:
        drawing = _drawing(command, generator, sampling, flags)
        seed = {} if command == "reconstruct" else {"seed": flags.seed}  # nothing is drawn there
        settings = {
            **made_by,
            **seed,
            **generator.record,
            **drawing.settings,
            "versions": versions(),
        }
        _write(drawing, settings, directory / f"{_name(drawing, generator, seed)}.png")


def _drawing(
    command: str, generator: ImageGenerator, sampling: Sampling, flags: Flags
) -> interpolation.Drawing:
    if command == "reconstruct":
        return reconstruction.draw_reconstruction(generator, sampling, flags.make(Reconstruction))
    if command == "shared_latents":
        return interpolation.share_latents(generator, seed=flags.seed)
    go = {
        "interpolate": interpolation.interpolate,
        "interpolate_seeds": interpolation.interpolate_seeds,
    }
    return go[command](generator, flags.make(Interpolation), seed=flags.seed)


def _name(
    drawing: interpolation.Drawing, generator: ImageGenerator, seed: Mapping[str, int]
) -> str:
    trained = generator.trained
    seeds = [f"seed{value}" for value in seed.values()]
    model = [f"step{trained.step}", trained.average]
    return "_".join([drawing.name, *model, *seeds, generator.name()])


def _write(drawing: interpolation.Drawing, settings: Mapping[str, Any], path: os.PathLike) -> None:
    record = path.with_suffix(".json")
    check_record(record, settings)
    drawn = drawing.draw()
    # The record first: a picture without one could be replaced unnoticed.
    write_record(record, settings | drawn.results)
    with reporting(path):
        grid = pictures.grid(drawn.images, columns=drawn.columns, min_pixels=WIDE_ENOUGH)
        pictures.save_png(path, pictures.with_labels(grid, columns=drawn.over, rows=drawn.before))
    say(f"{drawn.said}\n  {path}")
