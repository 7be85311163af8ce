"""What evaluate.py can compute of a first stage: functions (trained, flags) -> `Result`."""

import functools
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.evaluation.first_stage_scores import (
    Scores,
    check_has_elbo,
    joined,
    no_scores,
    stream_scores,
)
from ddpm_jax.evaluation.tally import Estimate, estimate
from ddpm_jax.experiments.identity import versions
from ddpm_jax.experiments.loading import TrainedModel
from ddpm_jax.monitoring import results
from ddpm_jax.tasks.evaluated_split import go_on, image_by_image, open_split, result_path
from ddpm_jax.tasks.metrics import Metric, Result
from ddpm_jax.variational.observation import FAMILIES
from ddpm_jax.variational.quantization import perplexity

PEAK = 255.0  # of a pixel


class _ScoresOf(NamedTuple):
    """The scores of a checkpoint over images."""

    scores: Scores
    settings: dict[str, Any]  # what the numbers follow from, beside the checkpoint
    suffix: str  # of files about them
    what: str  # in words


def elbo(trained: TrainedModel, flags: Any) -> Result:
    """The evidence lower bound with its two terms, and the importance-weighted bound."""
    stage = trained.model.stage
    check_has_elbo(stage)
    of = _scores_of(trained, flags)
    scores = of.scores
    numbers = {
        "bits_per_dim": estimate(scores.elbo),
        "reconstruction": estimate(scores.reconstruction),
        "kl": _over_images(scores.kl),
        "kl_nats_per_image": _over_images(scores.kl_per_channel.sum(axis=1)),
        "kl_nats_per_channel": scores.kl_per_channel.mean(axis=0),
    }
    lines = [
        f"bits/dim at most     {_number(numbers['bits_per_dim'])}",
        f"  -log p(x|z)        {_number(numbers['reconstruction'])}",
        f"  KL                 {_number(numbers['kl'])}, {numbers['kl_nats_per_image'].mean:.2f} "
        "nats an image",
    ]
    if stage.kind == "vae":
        numbers["importance_weighted"] = _over_images(scores.importance_weighted)
        lines.append(
            f"importance-weighted  {_number(numbers['importance_weighted'])}, {flags.draws} "
            "sample(s)"
        )
    family = trained.model.config.first_stage.family
    lines += [f"{of.what}, {FAMILIES[family].meaning}; ± one standard error over images"]
    return Result(of.settings | numbers, "\n".join(lines), of.suffix)


def reconstruction(trained: TrainedModel, flags: Any) -> Result:
    """How far reconstructions are from the images, and of a VQ-VAE how its codes are used."""
    of = _scores_of(trained, flags)
    mse = _over_images(of.scores.mse)
    psnr = _over_images(
        10 * np.log10(PEAK**2 / np.maximum(of.scores.mse, np.finfo(np.float64).tiny))
    )
    numbers: dict[str, Any] = {"rmse": float(np.sqrt(mse.mean)), "mse": mse, "psnr": psnr}
    lines = [f"RMSE        {numbers['rmse']:.3f} on 0..255", f"PSNR        {_number(psnr)} dB"]
    codes = of.scores.codes
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
    return Result(of.settings | numbers, "\n".join([*lines, of.what]), of.suffix)


def _scores_of(trained: TrainedModel, flags: Any) -> _ScoresOf:
    """Computes the scores, or reads what an earlier command with the same settings has computed of
    them.

    Raises:
      UsageError: a split or number of images that is not there; images of another shape than the
        model's; results made otherwise in the same place.
      FailureError: a score that is not finite; a file that is damaged or cannot be written.
    """
    stage, config = trained.model.stage, trained.model.config.first_stage
    split = open_split(trained, flags)
    suffix = f"{split.suffix}_draws{flags.draws}_seed{flags.seed}"
    stream = functools.partial(stream_scores, stage, trained.params, num_draws=flags.draws)
    scores = go_on(
        result_path("scores", trained, flags, f"{suffix}.npz"),
        no_scores(flags.draws, config.latent_channels, stage.num_codes),
        split.num_images,
        lambda scores, span: image_by_image(stream, scores, span, split, flags, merge=joined),
        merge=joined,
        made_with=split.settings | results.machine() | {"versions": versions()},
    )
    what = f"{split.what}, {flags.draws} draw{'s' if flags.draws > 1 else ''}"
    return _ScoresOf(scores, split.settings, suffix, what)


def _over_images(values: np.ndarray) -> Estimate:
    return estimate(values[:, None])


def _number(estimate: Estimate) -> str:
    return f"{estimate.mean:.4f} ± {estimate.standard_error:.4f}"


FIRST_STAGE_METRICS: dict[str, Metric] = {"elbo": elbo, "reconstruction": reconstruction}
