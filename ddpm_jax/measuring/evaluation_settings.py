"""Settings of evaluations: which images, and how likelihoods and samples are measured.

The records are the same for flags and for Python calls. What needs the model or the data to be
checked is checked where a record is used.
"""

import dataclasses

from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation.traces import TRACES
from ddpm_jax.limits import MAX_BATCH, MAX_IMAGES, MAX_SEED, MAX_TIMESTEPS
from ddpm_jax.settings import Settings, setting
from ddpm_jax.tasks.sampling_settings import Sampling

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
        "Likelihoods: only the first so many of the split; all by default.",
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
        "frechet_pixels: only so many of the training images, spread evenly over them; all by "
        "default.",
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
