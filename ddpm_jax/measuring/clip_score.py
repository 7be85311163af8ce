"""The metric clip_score: how well CLIP finds that samples fit their prompts."""

import pathlib
from typing import Any

import numpy as np

from ddpm_jax.data.in_memory import in_memory
from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation.tally import estimate
from ddpm_jax.experiments.clip import load_clip
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.measuring.evaluation_settings import ClipScore, EvaluatedImages
from ddpm_jax.measuring.measured_samples import MeasuredSamples, draw_samples, open_samples
from ddpm_jax.measuring.measurement import Measurement, with_error


def clip_score(
    trained: TrainedModel,
    images: EvaluatedImages,
    settings: ClipScore,
    directory: pathlib.Path | None = None,
) -> Measurement:
    """Measure the cosine similarity, times 100, of samples and their prompts in CLIP's features.

    Hessel et al. 2021, without their factor of 2.5 and without clipping at 0. `any_prompt` is the
    mean over all pairs of a sample and a prompt; `held_out`, of captions of a split, that of its
    own pictures and the same captions.

    Raises:
      UsageError: a model without texts; no CLIP; what `load_clip` and `open_samples` raise.
      FailureError: the hub cannot be reached.
    """
    if not trained.model.conditioning.has_text:
        raise UsageError(
            "clip_score: this model was trained without texts, so there is nothing to compare its "
            "samples with."
        )
    if settings.clip_model is None:
        raise UsageError(
            "clip_score compares pictures with texts by CLIP: say by clip_model where it is, a "
            "directory of transformers or a name on the hub."
        )
    clip = load_clip(settings.clip_model)
    decides = {"clip_model": {"name": settings.clip_model, "sha256": clip.sha256}}
    mark = f"_clip{clip.sha256[:8]}"
    found = open_samples(
        "clip_score", trained, images, settings, directory, decides=decides, mark=mark
    )
    texts = _texts(found, settings)
    samples = draw_samples(found.generator, settings)
    words = clip.of_texts(texts)
    numbers = _scores(clip.of_images(samples), words)
    text = [
        f"CLIP score            {with_error(numbers['score'])}",
        f"of any of the prompts {numbers['any_prompt']:.4f}",
    ]
    if found.drawn is not None:
        rows, of_sample = np.unique(found.drawn.rows, return_inverse=True)
        pictures = clip.of_images(in_memory(found.held_out).images[rows])[of_sample]
        numbers["held_out"] = _scores(pictures, words)
        text.append(f"of held-out pictures  {with_error(numbers['held_out']['score'])}")
    text.append(f"{len(samples)} samples; ± one standard error over images")
    return Measurement(found.record | numbers, "\n".join(text), found.suffix)


def _texts(found: MeasuredSamples, settings: ClipScore) -> list[str]:
    """Return what each sample is to show."""
    texts = found.drawn.texts if found.drawn is not None else settings.sampling.prompt
    return [texts[i % len(texts)] for i in range(settings.num_samples)]


def _scores(pictures: np.ndarray, words: np.ndarray) -> dict[str, Any]:
    """Return the score of pictures and words, features of length 1, float [n, P] each."""
    pictures, words = pictures.astype(np.float64), words.astype(np.float64)
    cosines = np.sum(pictures * words, axis=1)
    return {
        "score": estimate(100 * cosines[:, None]),
        "any_prompt": 100 * float(pictures.mean(0) @ words.mean(0)),
    }
