"""Settings of evaluations: which images, and how likelihoods and samples are measured.

The records are the same for flags and for Python calls. What needs the model or the data to be
checked is checked where a record is used.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_jax.data.resizing import RESIZERS, ROUNDINGS
from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation.traces import TRACES
from ddpm_jax.limits import MAX_BATCH, MAX_IMAGES, MAX_SEED, MAX_TIMESTEPS
from ddpm_jax.measuring.feature_networks import FEATURES
from ddpm_jax.settings import Settings, setting
from ddpm_jax.tasks.sampling_settings import MAX_SIDE, Sampling

MAX_DRAWS = 10_000
MAX_PROBES = 10_000
_TOLERANCE = {"valid": lambda value: 0 < value <= 1, "wanted": "above 0 and at most 1"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluatedImages(Settings):
    """Which images a model is evaluated on."""

    split: str | None = setting(
        None,
        "Of which images; by default those of the config's test split. Give train where nothing is "
        "held out.",
    )
    num_images: int | None = setting(
        None,
        "Likelihoods, and the set of --images: only the first so many; all by default.",
        lower=1,
        upper=MAX_IMAGES,
    )
    data_dir: str | None = setting(
        None,
        "Where the data is, if not where the training run found it.",
        path=True,
        metavar="DIR",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(Settings):
    """Settings of every evaluation."""

    batch_size: int = setting(
        100,
        "Images at a time, over all devices of all processes.",
        lower=1,
        upper=MAX_BATCH,
    )
    seed: int = setting(
        0,
        "Of the samples, or of the noise that images are diffused with.",
        lower=0,
        upper=MAX_SEED,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Likelihood(Evaluation):
    """How a likelihood of images is estimated; for a first stage this is all."""

    draws: int = setting(
        1, "Likelihoods: draws of the noise, for the bound at each t.", lower=1, upper=MAX_DRAWS
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariationalBound(Likelihood):
    """How the variational bound is estimated."""

    timestep_stride: int = setting(
        1,
        "bpd, rate_distortion: one random t of every so many, 1 for all.",
        lower=1,
        upper=MAX_TIMESTEPS,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowLikelihood(Likelihood):
    """How the likelihood by the probability-flow ODE is estimated."""

    trace: str = setting(
        "rademacher", f"bpd_ode: the divergence, by {', '.join(TRACES)}.", choices=TRACES
    )
    probes: int = setting(
        1, "bpd_ode: random vectors for the divergence of each draw.", lower=1, upper=MAX_PROBES
    )
    rtol: float = setting(1e-4, "bpd_ode: relative error of a step of the solver.", **_TOLERANCE)
    atol: float = setting(1e-4, "bpd_ode: absolute error of a step of the solver.", **_TOLERANCE)

    def __post_init__(self) -> None:
        """Check every field, and that the exact trace is given no probes."""
        super().__post_init__()
        if self.trace == "exact" and self.probes > 1:
            raise UsageError(f"probes {self.probes} has no part in trace exact: leave it out.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleQuality(Evaluation):
    """How samples are compared with the data."""

    num_samples: int = setting(
        300, "How many images to make, where samples are.", lower=2, upper=MAX_IMAGES
    )
    num_reference: int | None = setting(
        None,
        "frechet_pixels and metrics of features: only so many of the images to compare with, "
        "spread evenly over them; all by default.",
        lower=2,
        upper=MAX_IMAGES,
    )
    sampling: Sampling = dataclasses.field(default=Sampling())


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipScore(SampleQuality):
    """How samples are compared with their prompts."""

    clip_model: str | None = setting(
        None,
        "clip_score: the CLIP that compares, a directory of transformers' CLIPModel or its name "
        "on the Hugging Face hub.",
        metavar="PATH",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features(Settings):
    """In whose features sets of images are compared: fid and its kin"""

    features: str | Callable[[np.ndarray], Any] = setting(
        "inception",
        f"Whose features: {', '.join(FEATURES)}, or a function of yours as module:function.",
    )
    feature_weights: str | None = setting(
        None,
        "File or directory of the network's weights, for inception, dinov2 and clip.",
        path=True,
    )
    resize: str | None = setting(
        None,
        "How images are brought to the network's size; by default as the network's numbers are "
        f"made: {', '.join(RESIZERS)}.",
        choices=RESIZERS,
    )
    rounding: str | None = setting(
        None,
        f"How resized images are rounded; by default likewise: {', '.join(ROUNDINGS)}.",
        choices=ROUNDINGS,
    )
    feature_batch_size: int = setting(
        32, "Images that the network takes at a time.", lower=1, upper=MAX_BATCH
    )
    feature_cache: str | None = setting(
        None,
        'Where features of sets that are compared with are kept, "none" for nowhere; by default '
        "features in $DDPM_JAX_CACHE, else ddpm_jax/features in the user's cache directory.",
        metavar="DIR",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureQuality(SampleQuality):
    """How samples are compared with the data in features."""

    reference: str | None = setting(
        None,
        "Images to compare with: a folder, an NPZ file of images (arr_0) or of published "
        "statistics (mu, sigma), shards of sample.py, or a split as in cifar10:train. By default "
        "those of --split, here the training images.",
        metavar="IMAGES",
    )
    compared: Features = dataclasses.field(default=Features())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memorization(SampleQuality):
    """How samples are compared with training images and with held-out ones."""

    distances: str = setting(
        "pixels",
        "memorization: distances of pixels, or of the features that --features names.",
        choices=("pixels", "features"),
    )
    compared: Features = dataclasses.field(default=Features())


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageComparison(Settings):
    """How two sets of images are compared."""

    num_images: int | None = setting(
        None, "Only the first so many of the images; all by default.", lower=2, upper=MAX_IMAGES
    )
    num_reference: int | None = setting(
        None,
        "Only so many of the images to compare with, spread evenly over them; all by default.",
        lower=2,
        upper=MAX_IMAGES,
    )
    image_size: int | None = setting(
        None,
        "Shrink the images of both sets to this size, cropped at the centre; by default they are "
        "taken as they are.",
        lower=1,
        upper=MAX_SIDE,
    )
    data_dir: str | None = setting(None, "Where TFDS keeps its datasets.", path=True, metavar="DIR")
    compared: Features = dataclasses.field(default=Features())
