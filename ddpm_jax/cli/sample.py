"""`python sample.py --ckpt DIR`: images from a training run's newest checkpoint, as a PNG grid and
NPZ files.

    python sample.py --ckpt runs/digits                                   64 images
    python sample.py --ckpt runs/digits --steps 100 --chain               in 100 steps, drawing the chain
    python sample.py --ckpt runs/digits --sampler dpmpp_2m --steps 20 --spacing karras
    python sample.py --ckpt runs/digits_cond --labels 3,5 --guidance_scale 3 --guidance_interval
    0.2,0.8 python sample.py --ckpt runs/cifar10 --num_samples 50000 --batch_size 500 python
    sample.py --ckpt runs/cifar10 --init_image photo.png --strength 0.6 python sample.py --ckpt
    runs/cifar10 --inpaint photo.png --mask mask.png python sample.py --ckpt runs/digits_sr
    --low_res small.png
    python sample.py --ckpt runs/cifar10 --interpolate a.png b.png        from one picture to another
    python sample.py --ckpt runs/cifar10 --shared_latents                 samples that share an x_t
    python sample.py --ckpt runs/cifar10 --interpolate_seeds 1,2 --sampler ddim
    python sample.py --ckpt runs/cifar10 --reconstruct photo.png --corrections 3

Image i depends on --seed and on i only. Ctrl-C, SIGTERM and --max_seconds stop the command within a
second or two, with exit code 130, 143 or 75, and whole batches kept: given again, it goes on where
it stopped. The last four commands make their own pictures instead of the samples. Several processes
(--distributed) share out the NPZ files, up to a thousand images each, in a directory that all of
them see; the first draws the grid.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ddpm_jax import memory
from ddpm_jax.cli import latents
from ddpm_jax.cli.command import (
    Parser,
    check_names_a_run,
    common_flags,
    define_checkpoint_flags,
    define_limit,
    define_process_flags,
    prepare_jax,
    run,
    stop_of,
)
from ddpm_jax.data.dataset_info import abbreviated
from ddpm_jax.distributed import hosts, interrupt
from ddpm_jax.errors import UsageError, say, visible
from ddpm_jax.experiments.datasets import check_places
from ddpm_jax.experiments.identity import identity, versions
from ddpm_jax.experiments.loading import TrainedModel, load_trained
from ddpm_jax.files import as_path, check_place, reporting
from ddpm_jax.generation import generating
from ddpm_jax.limits import MAX_BATCH, MAX_IMAGES, MAX_SEED
from ddpm_jax.monitoring.progress import Counter
from ddpm_jax.plotting import grids as pictures
from ddpm_jax.randomness import base_key
from ddpm_jax.tasks import editing, names, sampling
from ddpm_jax.tasks.sampling import Recipe

IN_GRID = 64  # images in grid.png
GRID_COLUMNS = 8  # of a grid whose columns are classes, about
IN_CHAIN = 8  # chains in chain.png and chain.gif
CHAIN_ROWS = ("x_t", "x_0")  # the second is predicted from the first
FRAMES = 60  # moments of a chain in chain.gif
FPS = 12
SHARD = 1000  # images in an NPZ file, rounded up to whole batches


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code; see `command.run` for the errors."""
    parser = Parser(__doc__)
    define_checkpoint_flags(parser)
    parser.integer("num_samples", 64, "How many images.", lower=1, upper=MAX_IMAGES)
    parser.integer(
        "batch_size",
        64,
        "Images made at a time, over all devices of all processes.",
        lower=1,
        upper=MAX_BATCH,
    )
    parser.integer("seed", 0, "Image i is a function of the seed and i.", lower=0, upper=MAX_SEED)
    parser.path(
        "out",
        None,
        "Directory for the results; by default one under the run, named by what was asked for.",
        metavar="DIR",
    )
    parser.boolean(
        "chain",
        "Also draw the chains of the first images, x_t and the x_0 predicted from it (progressive "
        "generation): chain.png and chain.gif.",
    )
    sampling.define_flags(parser)
    editing.define_flags(parser)
    latents.define_flags(parser)
    define_limit(parser)
    define_process_flags(parser)
    flags = parser.parse(latents.join_pair(argv))
    check_names_a_run(flags)
    stop = stop_of(flags)
    drawings = latents.asked(flags)
    if drawings and flags.distributed:
        raise UsageError(
            f"--{drawings[0]} draws one picture, on one process: leave out --distributed."
        )
    prepare_jax(flags)
    trained = load_trained(flags.ckpt, step=flags.ckpt_step, raw_weights=flags.raw_weights)
    made_of = identity(trained)
    hosts.check_equal(common_flags(flags) | {"the step of the checkpoint": trained.step} | made_of)
    recipe = editing.edited(trained, flags)
    if drawings:
        with stop, _keeping("nothing is kept of the picture; the same command begins it again."):
            return latents.run(trained, made_of, recipe, flags, drawings)
    out = as_path(flags.out or _default_out(trained, recipe, flags))
    check_place(out, flag="--out", writing=True)
    check_places(trained.model.config.data, out=flags.out)

    batch_size = min(flags.batch_size, flags.num_samples)
    made_by = {
        "checkpoint": str(flags.ckpt),
        "checkpoint_step": trained.step,
        "weights": trained.average,
        **made_of,
    }
    with stop, memory.explained(f"making {batch_size} images at a time", "lower --batch_size"):
        _write_samples(
            trained,
            recipe,
            out,
            made_by,
            seed=flags.seed,
            num_samples=flags.num_samples,
            batch_size=batch_size,
        )
        if hosts.is_primary():
            with _keeping("the images are kept; the same command draws them."):
                _draw(trained, recipe, out, flags)
    hosts.wait_for_all("the pictures are drawn")
    return 0


@contextlib.contextmanager
def _keeping(what: str) -> Iterator[None]:
    """Says what is kept where its body is stopped and does not say so itself."""
    try:
        yield
    except interrupt.Stopped as stopped:
        raise interrupt.Stopped(stopped.wish, what) from None


def _draw(trained: TrainedModel, recipe: Recipe, out: os.PathLike, flags: Any) -> None:
    """Draws the grid and the chain, and says where everything is."""
    columns = _columns(recipe)
    shown = min(IN_GRID // (columns or 1) * (columns or 1), flags.num_samples)
    with reporting(out / "grid.png"):
        grid = pictures.grid(generating.read_shards(out, shown), columns)
        grid = pictures.with_labels(grid, columns=_column_labels(recipe, columns, shown))
        if recipe.originals:
            grid = pictures.next_to_originals(recipe.originals, grid, title=_title(recipe.record))
        pictures.save_png(out / "grid.png", grid)
    say(
        f"{flags.num_samples} images of step {trained.step} ({trained.average} weights), "
        f"{recipe.record['sampler']}, {recipe.record['steps']} steps, {recipe.sampler.evaluations} "
        f"network evaluations\n  {out}/grid.png"
    )
    say(f"  {out}/samples-*.npz")
    if classes := _classes(recipe):
        say(
            f"  image i is of class {abbreviated(classes)} in turn"
            if len(classes) > 1
            else f"  all of class {classes[0]}"
        )
    if flags.chain:
        _write_chain(
            trained, recipe, out, seed=flags.seed, num_chains=min(IN_CHAIN, flags.num_samples)
        )
        say(f"  {out}/chain.png\n  {out}/chain.gif")


def _default_out(trained: TrainedModel, recipe: Recipe, flags: Any) -> os.PathLike:
    of_model = f"step{trained.step}_{trained.average}_seed{flags.seed}"
    what, how = names.what(recipe.record), names.how(recipe.record)
    name = names.joined(what, of_model, how, f"n{flags.num_samples}")
    return as_path(flags.ckpt) / "generated" / name


def _columns(recipe: Recipe) -> int | None:
    """Of the grid: as many as make every column one class, about eight; None, a square, where there
    are no classes."""
    labels = recipe.record.get("labels", ())
    return len(labels) * max(1, GRID_COLUMNS // len(labels)) if 1 < len(labels) <= IN_GRID else None


def _classes(recipe: Recipe) -> list[str]:
    """The classes that the images go round, by name where the names are known."""
    names = dict(enumerate(recipe.class_names))
    return [visible(names.get(label, str(label))) for label in recipe.record.get("labels", ())]


def _column_labels(recipe: Recipe, columns: int | None, shown: int) -> list[str]:
    """The classes of the grid's columns, "" over empty ones; none where a column is of several."""
    classes = _classes(recipe)
    if not (columns and classes):
        return []
    return [classes[i % len(classes)] if i < shown else "" for i in range(columns)]


def _title(record: dict[str, Any]) -> str:
    """What was done to a picture, for the head of the grid."""
    if "init_image" in record:
        return f"made from it, strength {record['strength']:g}"
    return "painted" if "inpaint" in record else "enlarged"


def _write_samples(
    trained: TrainedModel,
    recipe: Recipe,
    out: os.PathLike,
    made_by: dict[str, Any],
    *,
    seed: int,
    num_samples: int,
    batch_size: int,
) -> None:
    manifest = {**made_by, "seed": seed, **recipe.record, "versions": versions()}
    shard_size = -(-SHARD // batch_size) * batch_size
    generate = recipe.generator(trained.model.shape)
    with Counter("sampling", generating.share(num_samples, shard_size), unit="image") as counter:
        generating.write_shards(
            out,
            lambda indices: generating.generate_batches(
                generate,
                recipe.params,
                seed=seed,
                indices=indices,
                batch_size=-(-batch_size // jax.process_count()),
                inputs_of=recipe.inputs_of,
                on_rows=counter.within,
            ),
            num_images=num_samples,
            shard_size=shard_size,
            manifest=manifest,
            on_images=counter.reach,
        )


def _write_chain(
    trained: TrainedModel, recipe: Recipe, out: os.PathLike, *, seed: int, num_chains: int
) -> None:
    num_frames = min(FRAMES, recipe.sampler.num_rows + 1)
    generate = recipe.generator(trained.model.shape, num_frames=num_frames)
    done = np.round(np.linspace(0, recipe.sampler.num_rows, num_frames)).astype(int)
    moments = [f"{rows}/{recipe.sampler.num_rows}" for rows in done]
    indices = np.arange(num_chains)
    chain = generate(recipe.params, base_key(seed), indices, inputs=recipe.inputs_of(indices))
    with reporting(out / "chain.png"):
        picture = pictures.chain_pairs(
            chain.frames_x_t, chain.frames_x_0, moments=moments, rows=CHAIN_ROWS
        )
        pictures.save_png(out / "chain.png", picture)
    both = zip(chain.frames_x_t, chain.frames_x_0, strict=True)
    grids = [pictures.grid(np.concatenate([x_t, x_0]), columns=num_chains) for x_t, x_0 in both]
    frames = [pictures.with_labels(grid, rows=CHAIN_ROWS) for grid in grids]
    with reporting(out / "chain.gif"):
        pictures.save_gif(out / "chain.gif", np.stack(frames), fps=FPS)


if __name__ == "__main__":
    sys.exit(run(main))
