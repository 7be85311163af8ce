"""Flags -> the bound over a split: opens the data, goes on where an earlier run stopped, keeps what is done on disk."""

import pathlib
import re
import sys
from typing import Any, NamedTuple

import tqdm

from ddpm_jax.cli.data import load_split
from ddpm_jax.cli.load import Loaded, versions
from ddpm_jax.evaluation import results, tally
from ddpm_jax.evaluation.bound import Strata, check_has_bound, check_images, make_bound, make_strata, stream_terms


class BoundOf(NamedTuple):
    """The bound of a checkpoint over images."""

    summary: tally.Summary
    settings: dict[str, Any]  # what the numbers follow from, beside the checkpoint
    suffix: str  # of files about it
    what: str  # in words


def bound_of(loaded: Loaded, flags: Any) -> BoundOf:
    """Computes the bound, or reads what an earlier command with the same settings has computed of it.

    Raises:
      UsageError: a split, number of images or stride that is not there; images of another shape than the model's; a
        model without a likelihood; results made otherwise in the same place.
      FailureError: a term that is not finite; a file that is damaged or cannot be written.
    """
    experiment = loaded.experiment
    check_has_bound(experiment.schedule)
    strata = make_strata(experiment.schedule.num_timesteps, flags.timestep_stride)
    split = flags.split or experiment.config.data.test_split
    source = load_split(experiment.config.data, split, data_dir=flags.data_dir)
    num_images = check_images(source, experiment.image_shape, split=split, num_images=flags.num_images)
    settings = {
        "weights_sha256": results.weights_digest(loaded.params),
        "split": split,
        "data": source.fingerprint,
        "num_images": num_images,
        "seed": flags.seed,
        "draws": flags.draws,
        "timestep_stride": flags.timestep_stride,
        "num_timesteps": experiment.schedule.num_timesteps,
        "dtype": str(experiment.config.model.dtype),
        "clip_denoised": True,
    }
    stem = re.sub(r"[^\w.-]+", "-", split).strip("-")
    suffix = f"_{stem}_n{num_images}_stride{flags.timestep_stride}_draws{flags.draws}_seed{flags.seed}"
    path = evaluation_dir(flags) / f"bound_step{loaded.step}_{loaded.weights}{suffix}.npz"
    summed = _tally(loaded, flags, strata, source, path, settings)
    every = "every t" if flags.timestep_stride == 1 else f"one t of every {flags.timestep_stride} at most"
    what = f"{num_images} images of {split}, {every}, {flags.draws} draw{'s' if flags.draws > 1 else ''}"
    return BoundOf(tally.summarize(summed, strata), settings, suffix, what)


def evaluation_dir(flags: Any) -> pathlib.Path:
    """Where results go: --out, or the folder `evaluation` of the run."""
    return pathlib.Path(flags.out or pathlib.Path(flags.ckpt) / "evaluation")


def _tally(
    loaded: Loaded, flags: Any, strata: Strata, source: Any, path: pathlib.Path, settings: dict[str, Any]
) -> tally.Tally:
    """Goes on with the tally at `path`, writing it after every batch."""
    experiment, num_images = loaded.experiment, settings["num_images"]
    made_with = settings | results.machine() | {"versions": versions()}
    summed = results.load_tally(path, made_with)
    if summed is None:
        summed = tally.empty(experiment.schedule.num_timesteps, flags.draws)
    if summed.num_images == num_images:
        return summed
    bound = make_bound(lambda params: experiment.denoiser(params, experiment.schedule), experiment.schedule, strata)
    per_image = flags.draws * len(strata.first)
    with tqdm.tqdm(
        total=num_images * per_image,
        initial=summed.num_images * per_image,
        unit="evaluation",
        unit_scale=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        batches = stream_terms(
            bound,
            loaded.params,
            source,
            seed=flags.seed,
            num_images=num_images,
            draws=flags.draws,
            batch_size=flags.batch_size,
            done=summed.num_images,
            on_evaluations=bar.update,
        )
        for terms in batches:
            summed = tally.add(summed, strata, terms)
            results.save_tally(path, summed, made_with)
    return summed
