"""Samples as files: shards with a manifest, a grid of the first ones, and some chains."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ddpm_jax import memory
from ddpm_jax.data.dataset_info import abbreviated
from ddpm_jax.errors import plural, say, visible
from ddpm_jax.experiments.identity import versions
from ddpm_jax.files import reporting
from ddpm_jax.generation import generating, shards, storing
from ddpm_jax.limits import MAX_BATCH, MAX_IMAGES, MAX_SEED, MAX_TIMESTEPS
from ddpm_jax.monitoring.progress import Counter
from ddpm_jax.plotting import grids as pictures
from ddpm_jax.randomness import base_key
from ddpm_jax.settings import Settings, setting
from ddpm_jax.tasks import names
from ddpm_jax.tasks.image_generator import ImageGenerator
from ddpm_jax.tasks.sample_formats import FORMATS

DEFAULT_SAMPLES = 64  # without a prompt
IN_GRID = 64  # images in grid.png
GRID_COLUMNS = 8  # about, in a grid whose columns are classes
IN_CHAIN = 8  # chains in chain.png and chain.gif
CHAIN_ROWS = ("x_t", "x_0")  # the second is predicted from the first
FRAMES = 60  # moments of a chain in chain.gif
FPS = 12
SHARD = 1000  # images in an NPZ file, rounded up to whole batches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples(Settings):
    """How many, and where to"""

    num_samples: int | None = setting(
        None,
        f"How many images; by default one for each prompt, or {DEFAULT_SAMPLES} without.",
        lower=1,
        upper=MAX_IMAGES,
    )
    batch_size: int = setting(
        64, "Images made at a time, over all devices of all processes.", lower=1, upper=MAX_BATCH
    )
    seed: int = setting(0, "Image i is a function of the seed and i.", lower=0, upper=MAX_SEED)
    out: str | None = setting(
        None,
        "Directory for the results; by default one under the run, named by what was asked for; for "
        "Stable Diffusion under generated/NAME here.",
        path=True,
        metavar="DIR",
    )
    format: str = setting(
        "npz",
        "Of the images: npz, shards as described above; png, also a file for each in the folder "
        "png; openai, also one NPZ with arr_0, as OpenAI's evaluator reads it.",
        choices=FORMATS,
    )
    chain: bool = setting(
        False,
        "Also draw the chains of the first images, x_t and the x_0 predicted from it (progressive "
        "generation): chain.png and chain.gif.",
    )
    save_every: int | None = setting(
        None,
        "Also draw what the first images are predicted to be after every so many steps: "
        "on_the_way/step_0010.png, ...; the steps are cut into even parts of about that size.",
        lower=1,
        upper=MAX_TIMESTEPS,
    )

    def for_prompts(self, prompts: Sequence[str] | None) -> "Samples":
        """Return the same with a number of images: that given, or the default."""
        if self.num_samples is not None:
            return self
        count = DEFAULT_SAMPLES if prompts is None else len(prompts)
        return dataclasses.replace(self, num_samples=count)


def folder_name(generator: ImageGenerator, samples: Samples) -> str:
    """Return the name of the folder for such samples, whose number is known."""
    trained, record = generator.trained, generator.record
    model = f"step{trained.step}_{trained.average}_seed{samples.seed}"
    return names.joined(names.what(record), model, names.how(record), f"n{samples.num_samples}")


def write_samples(
    generator: ImageGenerator,
    directory: os.PathLike,
    made_by: Mapping[str, Any],
    samples: Samples,
) -> None:
    """Make samples and write them as shards.

    `made_by` are the manifest's entries about the model.

    Raises:
      UsageError, FailureError, Stopped: as `storing.write_shards`.
    """
    num_images, seed = samples.num_samples, samples.seed
    batch_size = min(samples.batch_size, num_images)
    manifest = {**made_by, "seed": seed, **generator.record, "versions": versions()}
    shard_size = -(-SHARD // batch_size) * batch_size
    mine = storing.share(num_images, shard_size)
    with (
        memory.explained(f"making {batch_size} images at a time", "lower --batch_size"),
        Counter("sampling", mine, unit="image") as counter,
    ):
        storing.write_shards(
            directory,
            lambda indices: generator.batches(
                indices,
                seed=seed,
                batch_size=-(-batch_size // jax.process_count()),
                on_rows=counter.within,
            ),
            num_images=num_images,
            shard_size=shard_size,
            manifest=manifest,
            on_images=counter.reach,
        )


def draw_grid(generator: ImageGenerator, directory: os.PathLike, *, num_samples: int) -> None:
    """Draw the first samples of a directory as grid.png, and print the paths."""
    columns = _columns(generator)
    shown = min(IN_GRID // (columns or 1) * (columns or 1), num_samples)
    with reporting(directory / "grid.png"):
        grid = pictures.grid(shards.read_shards(directory, shown), columns)
        grid = pictures.with_labels(grid, columns=_column_labels(generator, columns, shown))
        if generator.originals:
            title = _title(generator.record)
            grid = pictures.next_to_originals(generator.originals, grid, title=title)
        pictures.save_png(directory / "grid.png", grid)
    trained, record = generator.trained, generator.record
    say(
        f"{plural(num_samples, 'image')} of step {trained.step} ({trained.average} weights), "
        f"{record['sampler']}, {record['steps']} steps, {generator.sampler.evaluations} "
        f"network evaluations\n  {directory}/grid.png"
    )
    say(f"  {directory}/samples-*.npz")
    if classes := _classes(generator):
        say(
            f"  image i is of class {abbreviated(classes)} in turn"
            if len(classes) > 1
            else f"  all of class {classes[0]}"
        )


def draw_chain(generator: ImageGenerator, directory: os.PathLike, samples: Samples) -> None:
    """Draw the chains of the first images as chain.png and chain.gif, and print the paths."""
    num_rows = generator.sampler.num_rows
    chain, done = _chains(generator, samples, min(FRAMES, num_rows + 1))
    num_chains = chain.frames_x_t.shape[1]
    with reporting(directory / "chain.png"):
        moments = [f"{rows}/{num_rows}" for rows in done]
        picture = pictures.chain_pairs(
            chain.frames_x_t, chain.frames_x_0, moments=moments, rows=CHAIN_ROWS
        )
        pictures.save_png(directory / "chain.png", picture)
    both = zip(chain.frames_x_t, chain.frames_x_0, strict=True)
    grids = [pictures.grid(np.concatenate([x_t, x_0]), columns=num_chains) for x_t, x_0 in both]
    frames = [pictures.with_labels(grid, rows=CHAIN_ROWS) for grid in grids]
    with reporting(directory / "chain.gif"):
        pictures.save_gif(directory / "chain.gif", np.stack(frames), fps=FPS)
    say(f"  {directory}/chain.png\n  {directory}/chain.gif")


def draw_on_the_way(generator: ImageGenerator, directory: os.PathLike, samples: Samples) -> None:
    """Draw the x_0 predicted after every `save_every` steps, and print the paths."""
    num_rows, folder = generator.sampler.num_rows, directory / "on_the_way"
    num_frames = max(2, round(num_rows / samples.save_every) + 1)
    chain, done = _chains(generator, samples, min(num_frames, num_rows + 1))
    with reporting(folder):
        folder.mkdir(exist_ok=True)
    for rows, images in zip(done[1:], chain.frames_x_0[1:], strict=True):
        path = folder / f"step_{rows:04d}.png"
        with reporting(path):
            pictures.save_png(path, pictures.grid(images))
    say(f"  {folder}/step_*.png")


def _chains(
    generator: ImageGenerator, samples: Samples, num_frames: int
) -> tuple[generating.Generated, np.ndarray]:
    """Return the chains of the first images, and the rows that were done at each frame."""
    indices = np.arange(min(IN_CHAIN, samples.num_samples))
    generate = generator.compiled(num_frames=num_frames)
    inputs = generator.inputs(indices)
    made = generate(generator.params, base_key(samples.seed), indices, inputs=inputs)
    return made, np.round(np.linspace(0, generator.sampler.num_rows, num_frames)).astype(int)


def _columns(generator: ImageGenerator) -> int | None:
    """Return about eight columns such that each has one class; None, a square, without classes."""
    labels = generator.record.get("labels", ())
    return len(labels) * max(1, GRID_COLUMNS // len(labels)) if 1 < len(labels) <= IN_GRID else None


def _classes(generator: ImageGenerator) -> list[str]:
    """Return the classes that the images take in turn, by name if known."""
    names = dict(enumerate(generator.class_names))
    return [visible(names.get(label, str(label))) for label in generator.record.get("labels", ())]


def _column_labels(generator: ImageGenerator, columns: int | None, shown: int) -> list[str]:
    """Return the classes of the grid's columns, "" over empty ones; [] without classes."""
    classes = _classes(generator)
    if not (columns and classes):
        return []
    return [classes[i % len(classes)] if i < shown else "" for i in range(columns)]


def _title(record: dict[str, Any]) -> str:
    """Return the title of the grid, which says how the picture was used."""
    if "init_image" in record:
        return f"made from it, strength {record['strength']:g}"
    return "painted" if "inpaint" in record else "enlarged"
