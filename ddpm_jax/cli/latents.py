"""sample.py's commands that draw a picture of their own instead of samples: their flags, what is
refused, the files.

`--interpolate A B`, `--shared_latents`, `--interpolate_seeds`, `--reconstruct`; what each draws is
`cli.latent_pictures`, samples are `cli.sample`. A picture has a JSON record beside it, and is never
replaced by one that was made otherwise.
"""

from collections.abc import Sequence
from typing import Any

from ddpm_jax.cli.command import BETWEEN, Parser
from ddpm_jax.errors import UsageError, say
from ddpm_jax.experiments.datasets import check_places
from ddpm_jax.experiments.identity import versions
from ddpm_jax.experiments.loading import TrainedModel
from ddpm_jax.files import as_path, check_place, reporting
from ddpm_jax.limits import MAX_SEED, MAX_TIMESTEPS
from ddpm_jax.monitoring.results import check_record, write_record
from ddpm_jax.plotting import grids as pictures
from ddpm_jax.tasks.interpolation import DRAWINGS
from ddpm_jax.tasks.sampling import Recipe

WIDE_ENOUGH = 88  # pixels of an image, for a label of two words above it
MAX_ON_THE_WAY = 1000  # images of one picture, all made at a time
MAX_CORRECTIONS = 100  # of a step; they converge within a few
_ANCESTRAL = ("interpolate", "shared_latents")
_BELONG = {  # flag -> the commands of which it is
    "interpolate_t": ("interpolate",),
    "interpolate_steps": ("interpolate", "interpolate_seeds"),
    "corrections": ("reconstruct",),
}
_IDLE = {  # command -> flags of samples that would do nothing
    "interpolate": ("chain",),
    "shared_latents": ("chain",),
    "interpolate_seeds": ("chain", "num_samples", "batch_size"),
    "reconstruct": ("chain", "num_samples", "batch_size", "seed", "sampler_options"),
}


def define_flags(parser: Parser) -> None:
    """Adds the flags of this file to those of sample.py."""
    parser.path(
        "interpolate", None, "Two image files: draw the way from A to B through x_t.", metavar="A B"
    )
    parser.integer(
        "interpolate_t",
        None,
        "Which t, 0 (least noise) to steps - 1; by default half of it.",
        lower=0,
        upper=MAX_TIMESTEPS - 1,
    )
    parser.integers(
        "interpolate_seeds",
        None,
        "Two seeds: draw the images on the arc between their x_T of image 0, by any sampler; what "
        "noise it adds is that of --seed for all of them.",
        metavar="I,J",
        lower=0,
        upper=MAX_SEED,
        count=2,
    )
    parser.integer(
        "interpolate_steps",
        None,
        "With --interpolate or --interpolate_seeds: how many images, both ends included (default: "
        "11).",
        lower=2,
        upper=MAX_ON_THE_WAY,
    )
    parser.path(
        "reconstruct",
        None,
        "Picture to turn into its own x_T and back: DDIM inversion and DDIM over the same times, "
        "nothing clipped.",
        metavar="FILE",
    )
    parser.integer(
        "corrections",
        None,
        "With --reconstruct: how often each step up is corrected, each at the price of one more "
        "evaluation (default: 0).",
        lower=0,
        upper=MAX_CORRECTIONS,
    )
    parser.boolean(
        "shared_latents",
        "Draw samples that share the x_t of one chain, at four t: shared_latents.png.",
    )


def join_pair(argv: Sequence[str]) -> list[str]:
    """Makes one argument of `--interpolate A B`, which absl, where a flag takes one value, would
    find one too many."""
    argv = [str(argument) for argument in argv]
    for i, argument in enumerate(argv):
        if argument.lstrip("-") == "interpolate" and argument.startswith("-"):
            pair = argv[i + 1 : i + 3]
            if len(pair) < 2 or any(path.startswith("--") or not path.strip() for path in pair):
                raise UsageError(
                    "--interpolate needs two image files, as in --interpolate a.png b.png."
                )
            return [*argv[:i], f"--interpolate={BETWEEN.join(pair)}", *argv[i + 3 :]]
    return argv


def asked(flags: Any) -> list[str]:
    """The names of the commands of this file that the flags ask for; of --reconstruct, sets the
    flags it decides.

    Raises:
      UsageError: two commands that do not go together, or a flag that would do nothing.
    """
    commands = [name for name in DRAWINGS if getattr(flags, name) not in (None, False)]
    for name, owners in _BELONG.items():
        if getattr(flags, name) is not None and not set(owners) & set(commands):
            raise UsageError(
                f"--{name} belongs to {' and '.join(f'--{o}' for o in owners)}: give it with that "
                "only."
            )
    if not commands:
        return commands
    if len(commands) > 1 and not set(commands) <= set(_ANCESTRAL):
        raise UsageError(
            f"--{commands[0]} and --{commands[1]} each draw a picture of their own: give one of "
            "them."
        )
    named = " and ".join(f"--{name}" for name in commands)
    for name in ("init_image", "inpaint"):
        if getattr(flags, name):
            raise UsageError(f"{named} can edit no picture: leave out --{name}.")
    for command in commands:
        for name in _IDLE[command]:
            if flags[name].present:
                raise UsageError(f"--{name} does nothing for --{command}: leave it out.")
    if flags.labels and "," in flags.labels:
        raise UsageError(
            f"--labels {flags.labels}: all images of {named} are of one class, so give one."
        )
    if commands[0] in _ANCESTRAL and flags.sampler not in (None, "ancestral"):
        raise UsageError(
            f"{named} can only walk the ancestral chain: leave out --sampler {flags.sampler}."
        )
    if "reconstruct" in commands:
        _decide(flags)
    return commands


def _decide(flags: Any) -> None:
    if flags.sampler not in (None, "ddim"):
        raise UsageError(
            f"--reconstruct walks up and down by DDIM: leave out --sampler {flags.sampler}."
        )
    if flags["clip"].present and flags.clip != "none":
        raise UsageError(
            "--reconstruct clips nothing, since what is clipped has no way back: leave out --clip "
            f"{flags.clip}."
        )
    flags.sampler, flags.clip = "ddim", "none"


def run(
    trained: TrainedModel,
    identity: dict[str, Any],
    recipe: Recipe,
    flags: Any,
    commands: Sequence[str],
) -> int:
    """Draws what was asked for and prints where it is; returns the exit code. `identity` is that of
    `loaded`.

    Every image has the condition of image 0: of a model with classes, --labels, by default the
    first.

    Raises:
      UsageError: a file, seed or t that cannot be used, or the place is taken by a picture that was
        made otherwise.
      FailureError: an image that is not finite, or files that cannot be written.
    """
    out = as_path(flags.out or as_path(flags.ckpt) / "generated")
    check_place(out, flag="--out", writing=True)
    check_places(trained.model.config.data, out=flags.out)
    for command in commands:
        drawing = DRAWINGS[command](trained, recipe, flags)
        seed = {} if command == "reconstruct" else {"seed": flags.seed}  # nothing is drawn there
        parts = [
            drawing.name,
            f"step{trained.step}",
            trained.average,
            *(f"seed{value}" for value in seed.values()),
        ]
        path = out / ("_".join([*parts, recipe.name()]) + ".png")
        made_by = {
            "checkpoint": str(flags.ckpt),
            "checkpoint_step": trained.step,
            "weights": trained.average,
        }
        settings = {
            **made_by,
            **identity,
            **seed,
            **recipe.record,
            **drawing.settings,
            "versions": versions(),
        }
        record = path.with_suffix(".json")
        check_record(record, settings)
        drawn = drawing.draw()
        # The record first: a picture without one could be replaced unnoticed.
        write_record(record, settings | drawn.results)
        with reporting(path):
            grid = pictures.grid(drawn.images, columns=drawn.columns, min_pixels=WIDE_ENOUGH)
            pictures.save_png(
                path, pictures.with_labels(grid, columns=drawn.over, rows=drawn.before)
            )
        say(f"{drawn.said}\n  {path}")
    return 0
