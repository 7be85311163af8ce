"""The metrics of first stages: elbo and reconstruction."""

import functools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.errors import plural
from ddpm_jax.evaluation.first_stage_scores import (
    Scores,
    check_has_elbo,
    merge,
    no_scores,
    stream_scores,
)
from ddpm_jax.evaluation.tally import Estimate, estimate
from ddpm_jax.experiments.identity import versions
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.measuring.evaluated_split import open_split
from ddpm_jax.measuring.evaluation_settings import EvaluatedImages, Likelihood
from ddpm_jax.measuring.measurement import Measurement, result_path, with_error
from ddpm_jax.measuring.resuming import image_by_image, resume
from ddpm_jax.monitoring import results
from ddpm_jax.variational.observation import FAMILIES
from ddpm_jax.variational.quantization import perplexity

PEAK = 255.0  # of a pixel


class MeasuredScores(NamedTuple):
    """The scores of a first stage over images."""

    scores: Scores
    record: dict[str, Any]  # the settings that the numbers depend on
    suffix: str  # of files about them
    description: str  # in words


def elbo(
    trained: TrainedModel,
    images: EvaluatedImages,
    settings: Likelihood,
    directory: pathlib.Path | None = None,
) -> Measurement:
    """Measure the evidence lower bound with its two terms, and the importance-weighted bound.

    Raises:
      UsageError: a plain autoencoder; what `measure_scores` raises.
    """
    stage = trained.model.stage
    check_has_elbo(stage)
    found = measure_scores(trained, images, settings, directory)
    scores = found.scores
    numbers = {
        "bits_per_dim": estimate(scores.elbo),
        "reconstruction": estimate(scores.reconstruction),
        "kl": _over_images(scores.kl),
        "kl_nats_per_image": _over_images(scores.kl_per_channel.sum(axis=1)),
        "kl_nats_per_channel": scores.kl_per_channel.mean(axis=0),
    }
    lines = [
        f"bits/dim at most     {with_error(numbers['bits_per_dim'])}",
        f"  -log p(x|z)        {with_error(numbers['reconstruction'])}",
        f"  KL                 {with_error(numbers['kl'])}, "
        f"{numbers['kl_nats_per_image'].mean:.2f} nats an image",
    ]
    if stage.kind == "vae":
        numbers["importance_weighted"] = _over_images(scores.importance_weighted)
        lines.append(
            f"importance-weighted  {with_error(numbers['importance_weighted'])}, "
            f"{settings.draws} sample(s)"
        )
    meaning = FAMILIES[trained.model.config.first_stage.family].meaning
    lines.append(f"{found.description}, {meaning}; ± one standard error over images")
    return Measurement(found.record | numbers, "\n".join(lines), found.suffix)


def reconstruction(
    trained: TrainedModel,
    images: EvaluatedImages,
    settings: Likelihood,
    directory: pathlib.Path | None = None,
) -> Measurement:
    """Measure the error of reconstructions, and for a VQ-VAE the use of its codes."""
    found = measure_scores(trained, images, settings, directory)
    mse = _over_images(found.scores.mse)
    tiny = np.finfo(np.float64).tiny
    psnr = _over_images(10 * np.log10(PEAK**2 / np.maximum(found.scores.mse, tiny)))
    numbers: dict[str, Any] = {"rmse": float(np.sqrt(mse.mean)), "mse": mse, "psnr": psnr}
    lines = [f"RMSE        {numbers['rmse']:.3f} on 0..255", f"PSNR        {with_error(psnr)} dB"]
    codes = found.scores.codes
    if len(codes):
        numbers |= {
            "perplexity": float(perplexity(codes)),
            "codes_used": int(np.count_nonzero(codes)),
            "codes": codes,
        }
        lines += [
            f"perplexity  {numbers['perplexity']:.1f} of {len(codes)} codes, "
            f"{numbers['codes_used']} of them used",
            f"            {np.log2(len(codes)):.3g} bits a code by the uniform prior",
        ]
    text = "\n".join([*lines, found.description])
    return Measurement(found.record | numbers, text, found.suffix)


def measure_scores(
    trained: TrainedModel,
    images: EvaluatedImages,
    settings: Likelihood,
    directory: pathlib.Path | None = None,
) -> MeasuredScores:
    """Compute the scores of each image, continuing results in `directory`.

    Raises:
      UsageError: a split or number of images that is not there; images of another shape than the
        model's; results made otherwise in the same place.
      FailureError: a score that is not finite; a file that is damaged or cannot be written.
    """
    stage, config = trained.model.stage, trained.model.config.first_stage
    split = open_split(trained, images, settings)
    suffix = f"{split.suffix}_draws{settings.draws}_seed{settings.seed}"
    stream = functools.partial(stream_scores, stage, trained.params, num_draws=settings.draws)
    empty = no_scores(settings.draws, config.latent_channels, stage.num_codes)
    computation = image_by_image(stream, split.source, settings, empty=empty, merge=merge)
    path = directory and result_path(directory, "scores", trained, f"{suffix}.npz")
    made_with = split.record | results.machine() | {"versions": versions()}
    scores = resume(path, computation, split.num_images, made_with)
    description = f"{split.description}, {plural(settings.draws, 'draw')}"
    return MeasuredScores(scores, split.record, suffix, description)


def _over_images(values: np.ndarray) -> Estimate:
    return estimate(values[:, None])
