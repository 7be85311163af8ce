"""`python evaluate.py --ckpt DIR`: how good a trained model is, as a table, a PNG and JSON.

    python evaluate.py --ckpt runs/digits        300 samples against the training images
    python evaluate.py --ckpt runs/digits --metric bpd
    python evaluate.py --ckpt runs/digits --metric bpd_ode --draws 2
    python evaluate.py --ckpt runs/cifar10 --metric fid,kid,is,prdc --num_samples 50000 \\
        --sampler ddim --steps 100 --feature_weights pt_inception-2015-12-05-6726825d.pth
    python evaluate.py --ckpt runs/digits --metric fid --features digits
    python evaluate.py --ckpt runs/digits --metric memorization
    python evaluate.py --images A --reference B --metric fid,kid
    python evaluate.py --ckpt runs/cifar10 --metric bpd,rate_distortion --num_images 1000 \\
        --timestep_stride 10

Metrics, several separated by commas:
  frechet_pixels   the Frechet distance between Gaussians fitted to the pixels, scaled to [0, 1], of
                   the samples and of the training images; next to it that of as many held-out
                   images as samples (or all there are), because the distance of a small set is
                   larger; --sampler and the flags after it say how they are made. With --split
                   train, where nothing is held out, the distance of the samples alone. The memory
                   it takes for large images grows with --num_samples times --num_reference
  classification_accuracy
                   of a model with classes, or with captions of images that have classes: how many
                   held-out images a classifier knows that was fitted to samples only, and one that
                   was fitted to the training images
  bpd              the variational bound on -log p(image), its terms and its table over t
  bpd_ode          bits per dimension of the density that the probability-flow ODE gives to
                   dequantised images
  caption_accuracy of a model that reads texts, if the images of its captions have classes: how
                   many samples a classifier of the training images puts into the class of their
                   caption, and how many of the held-out images into their own
  retrieval        of the same models: how many samples have as their nearest training picture, in
                   pixels, one of the class of their caption, and what chance gives
  clip_score       of a model that reads texts: the mean cosine, times 100, of samples and their
                   prompts in the features of the CLIP that --clip_model names
  fid, kid, is, prdc, cmmd
                   distances of samples and images in the features of a network, and shares of each
                   within the other: --features and the flags after it; of one set of samples, each
                   looked at once. fid is the Frechet distance, FD-DINOv2 with --features dinov2;
                   kid the kernel distance; is the Inception Score; prdc precision, recall, density
                   and coverage; cmmd CLIP's. By default against the training images; --reference
                   takes others. Samples are kept in evaluation/samples and a stopped command goes
                   on with them
  memorization     whether samples are copies of training images: each one's distance to the
                   nearest training image over that to the nearest held-out one, against the same of
                   training images; how many are nearest to a training image, against chance; the
                   bits/dim of training and held-out images; with p-values, and a picture of the
                   nearest pairs. Distances are of pixels, or with --distances features of the
                   features that --features names
  distillation     of a model that the command distill has made: how far it leads from the end of
                   its teacher's flow, by noise level, and Frechet distances of pixels against
                   network evaluations, of both
  rate_distortion  the bound as progressive coding: bits received against the error of the image
                   predicted from them

Without a model, --images and --reference name two sets: a folder of pictures, an NPZ file (arr_0,
or published statistics mu and sigma), shards of sample.py, or a split as in cifar10:train.

A model that reads texts draws the captions of the held-out images for metrics of samples, unless
--prompt is given; its likelihoods are those of images given their first caption.

Metrics of first stages (configs with objective = "first_stage"):
  reconstruction   the error of reconstructions on 0..255, of the posterior's mean; of a VQ-VAE how
                   many codes are used
  elbo             the evidence lower bound and its terms, and the importance-weighted bound of
                   --draws samples

The bound takes one network evaluation for each image, draw and timestep. --num_images and
--timestep_stride make it cheaper and stay unbiased; the standard error says what that costs. The
ODE is solved once for each image and draw, with as many network evaluations as --rtol and --atol
take, each with a pass back for every probe; --trace exact takes a pass for every number in an
image. For the digits 1e-4 instead of 1e-6 moves an image's bits/dim by 0.002 (rms; 0.007 at most of
48) and their mean by less than 1e-4, in 270 evaluations instead of 1,270. Ctrl-C, SIGTERM and
--max_seconds stop the command within a second or two, with exit code 130, 143 or 75, and of
likelihoods whole batches kept: given again, it resumes where it stopped. Samples of memorization,
of fid and of the other metrics of features are kept likewise, those of other metrics are not.
Several processes (--distributed) share out the images; they must see the same directories, and the
first writes.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence

from ddpm_jax import memory
from ddpm_jax.cli.arguments import Flags, Parser
from ddpm_jax.cli.command import run
from ddpm_jax.cli.image_sets_command import compare_given
from ddpm_jax.cli.shared_flags import (
    Checkpoint,
    Limit,
    LowRank,
    Processes,
    check_names_a_run,
    common_flags,
    make_interrupt,
    prepare,
    reading,
    updating,
)
from ddpm_jax.distributed import hosts, interrupt
from ddpm_jax.errors import UsageError, choose, say
from ddpm_jax.experiments.datasets import check_places
from ddpm_jax.experiments.identity import identity
from ddpm_jax.experiments.loading import load_first_stage, load_trained
from ddpm_jax.experiments.model_files import results_of
from ddpm_jax.files import as_path, check_place
from ddpm_jax.measuring.evaluation_settings import (
    ClipScore,
    EvaluatedImages,
    FeatureQuality,
    FlowLikelihood,
    Memorization,
    VariationalBound,
)
from ddpm_jax.measuring.feature_metrics import FEATURE_METRICS
from ddpm_jax.measuring.measurement import Measurement, Metric, write_measurement
from ddpm_jax.measuring.metrics import FIRST_STAGE_METRICS, METRICS
from ddpm_jax.measuring.sample_features import measure_samples
from ddpm_jax.settings import Settings, setting
from ddpm_jax.tasks.sampling_settings import MAX_SIDE


@dataclasses.dataclass(frozen=True)
class Command(Settings):
    """What to measure"""

    metric: str = setting(
        "frechet_pixels", f"What to compute: {', '.join(METRICS | FIRST_STAGE_METRICS)}."
    )
    out: str | None = setting(
        None,
        "Directory for the results; by default evaluation in the run's.",
        path=True,
        metavar="DIR",
    )
    images: str | None = setting(
        None,
        "Compare these images with --reference, without a model: a folder, an NPZ file, shards of "
        "sample.py, or a split as in digits:test. Results go to --out, by default evaluation here.",
        metavar="IMAGES",
    )
    image_size: int | None = setting(
        None,
        "With --images: shrink the images of both sets to this size, cropped at the centre.",
        lower=1,
        upper=MAX_SIDE,
    )


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code; see `command.run` for the errors."""
    of_samples = ClipScore, FeatureQuality, Memorization
    records = EvaluatedImages, *of_samples, VariationalBound, FlowLikelihood
    flags = Parser(__doc__, Checkpoint, LowRank, Command, *records, Limit, Processes).parse(argv)
    if flags.images is not None:
        _check_need_no_model(flags)
        return compare_given(flags)
    if flags.reference is not None and not flags.ckpt:
        raise UsageError(
            f"--reference is {flags.reference}, and what is compared with it is missing: name a "
            "model by --ckpt, or a set of images by --images."
        )
    check_names_a_run(flags)
    if flags.image_size is not None:
        raise UsageError("--image_size is for --images: a model has the size of its own.")
    metrics = _metrics(flags.metric)
    settings = {name: flags.make(metric.settings) for name, metric in metrics.items()}
    stop = make_interrupt(flags)
    prepare(flags)
    of_first_stage, given = FIRST_STAGE_METRICS.keys() & metrics.keys(), updating(flags)
    if of_first_stage and flags.lora:
        raise UsageError(
            f"--metric {min(of_first_stage)} is of a first stage, and --lora updates a U-Net: "
            "leave one of them out."
        )
    if of_first_stage:
        trained = load_first_stage(flags.ckpt, **reading(flags))
    else:
        trained = load_trained(flags.ckpt, **reading(flags), **given)
    hosts.check_equal(
        common_flags(flags) | {"the step of the checkpoint": trained.step} | identity(trained)
    )
    directory = as_path(flags.out or results_of(flags.ckpt, "evaluation"))
    check_place(directory, flag="--out", writing=True)
    check_places(trained.model.config.data, data_dir=flags.data_dir, out=flags.out)
    images = flags.make(EvaluatedImages)
    of_features = [name for name in metrics if name in FEATURE_METRICS]
    done: dict[str, Measurement] = {}  # metrics of features are all of the same samples
    with stop:
        for name, metric in metrics.items():
            with _explained(name, flags.batch_size):
                if name in of_features and name not in done:
                    done = measure_samples(of_features, trained, images, settings[name], directory)
                found = done.get(name) or metric.measure(trained, images, settings[name], directory)
            if hosts.is_primary():
                say(f"{name} of step {trained.step} ({trained.average} weights)\n{found.text}")
                for path in write_measurement(
                    name, found, trained, seed=flags.seed, directory=directory
                ):
                    say(path)
    hosts.wait_for_all("the results are written")
    return 0


def _check_need_no_model(flags: Flags) -> None:
    """Refuse metrics of a model in a comparison of two sets of images."""
    others = (METRICS | FIRST_STAGE_METRICS).keys() - FEATURE_METRICS.keys()
    for name in flags.metric.split(",") if "metric" in flags.given else ():
        if name in others:
            raise UsageError(
                f"--metric {name} is of a model: name one by --ckpt in place of --images, or "
                f"choose from {', '.join(FEATURE_METRICS)}."
            )


def _metrics(names: str) -> dict[str, Metric]:
    """Return the metrics asked for, all of a first stage or none of them."""
    metrics = {
        name: choose("metric", name, METRICS | FIRST_STAGE_METRICS) for name in names.split(",")
    }
    of_first_stage = [name for name in metrics if name in FIRST_STAGE_METRICS]
    if 0 < len(of_first_stage) < len(metrics):
        raise UsageError(
            f"--metric {names}: {of_first_stage[0]} is of a first stage, the others are not."
        )
    return metrics


@contextlib.contextmanager
def _explained(name: str, batch_size: int) -> Iterator[None]:
    """Say what to do if memory runs out, and what is kept if a metric is stopped."""
    try:
        with memory.explained(f"{name} of {batch_size} images at a time", "lower --batch_size"):
            yield
    except interrupt.Stopped as stopped:
        if stopped.kept:
            raise
        raise interrupt.Stopped(
            stopped.wish, f"{name} keeps nothing: the same command begins it again."
        ) from None


if __name__ == "__main__":
    sys.exit(run(main))
