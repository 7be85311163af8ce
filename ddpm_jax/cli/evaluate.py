"""`python evaluate.py --ckpt DIR`: how good a trained model is, as a table, a PNG and JSON beside
the checkpoint.

    python evaluate.py --ckpt runs/digits                                 300 samples against the training images
    python evaluate.py --ckpt runs/digits --metric bpd                    the variational bound, in bits per dimension
    python evaluate.py --ckpt runs/digits --metric bpd_ode --draws 2      the likelihood by the probability flow
    python evaluate.py --ckpt runs/cifar10 --metric bpd,rate_distortion --num_images 1000
    --timestep_stride 10

Metrics, several separated by commas:
  frechet_pixels   the Frechet distance between Gaussians fitted to the pixels, scaled to [0, 1], of the samples and of
                   the training images; beside it that of as many held-out images as samples (or all
                   there are), because the distance of a small set is larger; --sampler and the
                   flags after it say how they are made. With --split train, where nothing is held
                   out, the distance of the samples alone. The memory it takes for large images
                   grows with --num_samples times --num_reference
  classification_accuracy
                   of a model with classes: how many held-out images a classifier knows that was
                   fitted to samples only, and one that was fitted to the training images
  bpd              the variational bound on -log p(image), its terms and its table over t
  bpd_ode          bits per dimension of the density that the probability-flow ODE gives to dequantised images
  rate_distortion  the bound as progressive coding: bits received against the error of the image
  predicted from them

Metrics of first stages (configs with objective = "first_stage"):
  reconstruction   the error of reconstructions on 0..255, of the posterior's mean; of a VQ-VAE how many codes are used
  elbo             the evidence lower bound and its terms, and the importance-weighted bound of --draws samples

The bound takes one network evaluation for each image, draw and timestep. --num_images and
--timestep_stride make it cheaper and stay unbiased; the standard error says what that costs. The
ODE is solved once for each image and draw, with as many network evaluations as --rtol and --atol
take, each with a pass back for every probe; --trace exact takes a pass for every number in an
image. For the digits 1e-4 instead of 1e-6 moves an image's bits/dim by 0.002 (rms; 0.007 at most of
48) and their mean by less than 1e-4, in 270 evaluations instead of 1,270. Ctrl-C, SIGTERM and
--max_seconds stop the command within a second or two, with exit code 130, 143 or 75, and of
likelihoods whole batches kept: given again, it goes on where it stopped. Samples that a metric
makes for itself are not kept. Several processes (--distributed) share out the images; they must see
the same directories, and the first writes.
"""

import sys
from collections.abc import Sequence
from typing import Any

from ddpm_jax import memory
from ddpm_jax.cli import settings_flags
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
from ddpm_jax.distributed import hosts, interrupt
from ddpm_jax.errors import UsageError, choose, say
from ddpm_jax.experiments.datasets import check_places
from ddpm_jax.experiments.identity import identity, versions
from ddpm_jax.experiments.loading import TrainedModel, load_first_stage, load_trained
from ddpm_jax.files import check_place, reporting
from ddpm_jax.limits import MAX_BATCH, MAX_IMAGES, MAX_SEED, MAX_TIMESTEPS
from ddpm_jax.monitoring.results import machine, write_record
from ddpm_jax.tasks import likelihood_flow
from ddpm_jax.tasks.evaluated_split import result_path
from ddpm_jax.tasks.first_stage_metrics import FIRST_STAGE_METRICS
from ddpm_jax.tasks.metrics import METRICS, Metric, Result
from ddpm_jax.tasks.sampling_settings import Sampling

MAX_DRAWS = 10_000


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code; see `command.run` for the errors."""
    flags = _parser().parse(argv)
    check_names_a_run(flags)
    names = flags.metric.split(",")
    metrics = {name: choose("metric", name, METRICS | FIRST_STAGE_METRICS) for name in names}
    of_first_stage = [name for name in names if name in FIRST_STAGE_METRICS]
    if 0 < len(of_first_stage) < len(names):
        raise UsageError(
            f"--metric {flags.metric}: {of_first_stage[0]} is of a first stage, the others are not."
        )
    stop = stop_of(flags)
    prepare_jax(flags)
    read = load_first_stage if of_first_stage else load_trained
    trained = read(flags.ckpt, step=flags.ckpt_step, raw_weights=flags.raw_weights)
    hosts.check_equal(
        common_flags(flags) | {"the step of the checkpoint": trained.step} | identity(trained)
    )
    check_place(result_path("", trained, flags, "").parent, flag="--out", writing=True)
    check_places(trained.model.config.data, data_dir=flags.data_dir, out=flags.out)
    with stop:
        for name, metric in metrics.items():
            result = _computed(name, metric, trained, flags)
            if hosts.is_primary():
                _report(name, result, trained, flags)
    hosts.wait_for_all("the results are written")
    return 0


def _computed(name: str, metric: Metric, trained: TrainedModel, flags: Any) -> Result:
    try:
        with memory.explained(
            f"{name} of {flags.batch_size} images at a time", "lower --batch_size"
        ):
            return metric(trained, flags)
    except interrupt.Stopped as stopped:
        if stopped.kept:
            raise
        raise interrupt.Stopped(
            stopped.wish, f"{name} keeps nothing: the same command begins it again."
        ) from None


def _parser() -> Parser:
    parser = Parser(__doc__)
    define_checkpoint_flags(parser)
    every = ", ".join(METRICS | FIRST_STAGE_METRICS)
    parser.string("metric", "frechet_pixels", f"What to compute: {every}.", metavar="NAME")
    parser.integer(
        "batch_size",
        100,
        "Images at a time, over all devices of all processes.",
        lower=1,
        upper=MAX_BATCH,
    )
    parser.integer(
        "seed",
        0,
        "Of the samples, or of the noise that images are diffused with.",
        lower=0,
        upper=MAX_SEED,
    )
    parser.path(
        "data_dir",
        None,
        "Where the data is, if not where the training run found it.",
        metavar="DIR",
    )
    parser.path(
        "out", None, "Directory for the results; by default evaluation in the run's.", metavar="DIR"
    )
    parser.integer(
        "num_samples", 300, "How many images to make, where samples are.", lower=2, upper=MAX_IMAGES
    )
    parser.integer(
        "num_reference",
        None,
        "frechet_pixels: only so many of the training images, spread evenly over them; all by "
        "default.",
        lower=2,
        upper=MAX_IMAGES,
    )
    parser.string(
        "split",
        None,
        "Of which images; by default those of the config's test split. Give train where nothing is "
        "held out.",
        metavar="NAME",
    )
    parser.integer(
        "num_images",
        None,
        "Likelihoods: only the first so many of the split; all by default.",
        lower=1,
        upper=MAX_IMAGES,
    )
    parser.integer(
        "draws",
        1,
        "Likelihoods: draws of the noise, for the bound at each t.",
        lower=1,
        upper=MAX_DRAWS,
    )
    parser.integer(
        "timestep_stride",
        1,
        "bpd, rate_distortion: one random t of every so many, 1 for all.",
        lower=1,
        upper=MAX_TIMESTEPS,
    )
    likelihood_flow.define_flags(parser)
    settings_flags.define(parser, Sampling)
    define_limit(parser)
    define_process_flags(parser)
    return parser


def _report(name: str, result: Result, trained: TrainedModel, flags: Any) -> None:
    """Writes the record and the picture of a metric, and prints the table and where they are."""
    record = {
        "metric": name,
        "checkpoint": str(flags.ckpt),
        "checkpoint_step": trained.step,
        "weights": trained.average,
        **identity(trained),
        "seed": flags.seed,
        **machine(),
        "versions": versions(),
        **result.values,
    }
    path = result_path(name, trained, flags, f"{result.suffix}.json")
    write_record(path, record)
    say(f"{name} of step {trained.step} ({trained.average} weights)")
    say(result.text)
    say(path)
    if result.draw is not None:
        with reporting(path.with_suffix(".png")):
            result.draw(path.with_suffix(".png"))
        say(path.with_suffix(".png"))


if __name__ == "__main__":
    sys.exit(run(main))
