"""sample.py's pictures of the latent space: `--interpolate A B` and `--shared_latents`. Samples are `cli.sample`."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpm_jax.cli import photos
from ddpm_jax.cli.command import Parser
from ddpm_jax.cli.load import Loaded, versions
from ddpm_jax.cli.sampling import Recipe
from ddpm_jax.diffusion.parameterization import Denoiser, Prediction
from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation import progressive
from ddpm_jax.evaluation.results import write_record
from ddpm_jax.plotting import images as pictures

LATENTS = 4  # rows of shared_latents.png; T = 1000 gives the t of Ho et al. 2020, figure 7
SHARING = 8  # samples in a row
_BETWEEN = "\0"  # no path holds it


def define_flags(parser: Parser) -> None:
    """Adds the flags of this file to those of sample.py."""
    parser.string("interpolate", None, "Two image files: draw the way from A to B through x_t.", metavar="A B")
    parser.integer("interpolate_t", None, "Which t, 0 (least noise) to steps - 1; by default half of it.", lower=0)
    parser.integer("interpolate_steps", 11, "How many λ from 0 to 1, both included.", lower=2)
    parser.boolean("shared_latents", "Draw samples that share the x_t of one chain, at four t: shared_latents.png.")


def join_pair(argv: Sequence[str]) -> list[str]:
    """Makes one argument of `--interpolate A B`, which absl, where a flag takes one value, would find one too many."""
    argv = [str(argument) for argument in argv]
    for i, argument in enumerate(argv):
        if argument.lstrip("-") == "interpolate" and argument.startswith("-"):
            pair = argv[i + 1 : i + 3]
            if len(pair) < 2 or any(path.startswith("--") for path in pair):
                raise UsageError("--interpolate needs two image files, as in --interpolate a.png b.png.")
            return [*argv[:i], f"--interpolate={_BETWEEN.join(pair)}", *argv[i + 3 :]]
    return argv


def run(loaded: Loaded, recipe: Recipe, flags: Any) -> int:
    """Draws what was asked for and prints where it is; returns the exit code.

    Every image has the condition of image 0: of a model with classes, the first of --labels.

    Raises:
      UsageError: another sampler than the ancestral, whose x_t are what is shown; or a picture to be edited as well.
    """
    if flags.init_image or flags.inpaint:
        raise UsageError("--interpolate and --shared_latents edit no picture: leave out --init_image and --inpaint.")
    if flags.sampler not in (None, "ancestral"):
        raise UsageError(
            f"--interpolate and --shared_latents walk the ancestral chain: leave out --sampler {flags.sampler}."
        )
    out = pathlib.Path(flags.out or pathlib.Path(flags.ckpt) / "generated")
    stem = f"step{loaded.step}_{loaded.weights}_seed{flags.seed}_{recipe.name()}"
    record = {
        "checkpoint": str(flags.ckpt),
        "checkpoint_step": loaded.step,
        "weights": loaded.weights,
        "seed": flags.seed,
        **recipe.record,
        "versions": versions(),
    }
    if flags.interpolate is not None:
        _interpolate(loaded, recipe, flags, out, stem, record)
    if flags.shared_latents:
        _shared_latents(loaded, recipe, flags, out, stem, record)
    return 0


def _denoiser(recipe: Recipe, params: Any) -> Denoiser:
    """The recipe's denoiser for batches of any size, all of them of image 0's condition."""

    def denoiser(x_t: Any, t: Any) -> Prediction:
        inputs = recipe.inputs_of(np.zeros(len(x_t), int))
        return recipe.make_denoiser(params, recipe.sampler.schedule, inputs)(x_t, t)

    return denoiser


def _interpolate(
    loaded: Loaded, recipe: Recipe, flags: Any, out: pathlib.Path, stem: str, record: dict[str, Any]
) -> None:
    paths, schedule = _paths(flags.interpolate), recipe.sampler.schedule
    t = schedule.num_timesteps // 2 if flags.interpolate_t is None else flags.interpolate_t
    progressive.from_timestep(schedule, t)
    pair = np.stack([photos.read_photo("--interpolate", path, loaded.experiment.image_shape) for path in paths])
    found = progressive.interpolate(
        functools.partial(_denoiser, recipe),
        schedule,
        recipe.params,
        pair,
        t=t,
        steps=flags.interpolate_steps,
        seed=flags.seed,
    )
    row = np.concatenate([pair[:1], found.images, pair[1:]])
    path = out / f"interpolate_{paths[0].stem}_{paths[1].stem}_t{t}_n{flags.interpolate_steps}_{stem}.png"
    pictures.save_png(path, pictures.grid(row, columns=len(row)))
    what = {"images": [str(path) for path in paths], "t": t, "lambdas": found.lambdas}
    write_record(path.with_suffix(".json"), record | what)
    print(f"{paths[0]}, {len(found.images)} images at t = {t} with λ from 0 to 1, {paths[1]}\n  {path}")


def _shared_latents(
    loaded: Loaded, recipe: Recipe, flags: Any, out: pathlib.Path, stem: str, record: dict[str, Any]
) -> None:
    schedule = recipe.sampler.schedule
    shared = progressive.samples_sharing_latents(
        functools.partial(_denoiser, recipe),
        schedule,
        recipe.params,
        loaded.experiment.image_shape,
        num_latents=min(LATENTS, schedule.num_timesteps),
        num_samples=SHARING,
        seed=flags.seed,
    )
    rows = np.concatenate([shared.latents[:, None], shared.images], axis=1)
    path = out / f"shared_latents_{stem}.png"
    pictures.save_png(path, pictures.grid(rows.reshape(-1, *rows.shape[2:]), columns=SHARING + 1))
    write_record(path.with_suffix(".json"), record | {"t": shared.t})
    listed = ", ".join(map(str, shared.t))
    print(f"x_t of one chain at t = {listed}, and {SHARING} samples that share it\n  {path}")


def _paths(value: str) -> list[pathlib.Path]:
    paths = value.split(_BETWEEN)
    if len(paths) != 2:  # --interpolate=A
        raise UsageError("--interpolate needs two image files, as in --interpolate a.png b.png.")
    return [pathlib.Path(path) for path in paths]
