"""The metrics caption_accuracy and retrieval: whether samples show what their caption says.

Samples are drawn from the captions of a split whose images have classes. A sample is right if its
class, as a classifier or its nearest training picture has it, is that of the caption's image.
"""

import pathlib
from typing import Any

import numpy as np

from ddpm_jax.data.captions import Captions
from ddpm_jax.data.in_memory import ArraySource, captions_of, in_memory
from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation.classification import CLASSIFIER, check_labelled_sets, fit_classifier
from ddpm_jax.evaluation.retrieval import chance_of_match, check_retrieval, nearest_images
from ddpm_jax.evaluation.tally import Estimate, estimate
from ddpm_jax.experiments.identity import versions
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.measuring.evaluation_settings import EvaluatedImages, SampleQuality
from ddpm_jax.measuring.measured_samples import MeasuredSamples, draw_samples, open_samples
from ddpm_jax.measuring.measurement import Measurement, with_error

NEIGHBOURS = 5  # of the measures that look at several


def caption_accuracy(
    trained: TrainedModel,
    images: EvaluatedImages,
    settings: SampleQuality,
    directory: pathlib.Path | None = None,
) -> Measurement:
    """Measure how many samples a classifier of training images puts into their caption's class.

    Its share of the split's own images is measured too: samples need not be better than that.

    Raises:
      UsageError: a model without texts; captions without classes; a prompt; sets too large; what
        `open_samples` raises.
    """
    version = versions("scikit-learn")["scikit-learn"]
    decides = {"classifier": {"kind": CLASSIFIER, "scikit-learn": version}}
    found = _open("caption_accuracy", trained, images, settings, directory, decides)
    train, held_out = in_memory(found.train), in_memory(found.held_out)
    dims, sizes = int(np.prod(train.image_shape)), (len(train), len(held_out), settings.num_samples)
    check_labelled_sets(train.labels, max(sizes), dims, besides=dims * sum(sizes))
    wanted = held_out.labels[found.drawn.rows]
    samples = draw_samples(found.generator, settings)
    classify = fit_classifier(train.images, train.labels)
    right, real = classify(samples) == wanted, classify(held_out.images) == held_out.labels
    of_class = {c: right[wanted == c] for c in np.unique(wanted)}
    numbers = {
        "accuracy": _share(right),
        "held_out_accuracy": _share(real),
        "chance": _class_chance(wanted, train.labels, 1),
        "per_class": {
            found.class_name(c): {"right": int(part.sum()), "of": len(part)}
            for c, part in of_class.items()
        },
    }
    text = [
        f"right of {len(samples)} samples    {with_error(numbers['accuracy'])}",
        f"right of {len(held_out)} held out   {with_error(numbers['held_out_accuracy'])}",
        f"by chance               {numbers['chance']:.4f}",
        "± one standard error over images",
    ]
    return Measurement(found.record | numbers, "\n".join(text), found.suffix)


def retrieval(
    trained: TrainedModel,
    images: EvaluatedImages,
    settings: SampleQuality,
    directory: pathlib.Path | None = None,
) -> Measurement:
    """Measure whether the nearest pictures of samples are those that their captions ask for.

    `category`: the nearest training picture has the class of the caption's image, and so for the
    split's own images, and for a training picture taken at random. `category_of_5`: one of the five
    nearest has. `caption_of_5`: one of the five nearest pictures of the split has the caption.

    Raises:
      UsageError: as `caption_accuracy`.
    """
    decides = {"distance": "euclidean, pixels"}
    found = _open("retrieval", trained, images, settings, directory, decides)
    train, held_out = in_memory(found.train), in_memory(found.held_out)
    check_retrieval(
        max(settings.num_samples, len(held_out)),
        max(len(train), len(held_out)),
        int(np.prod(train.image_shape)),
    )
    samples = draw_samples(found.generator, settings)
    numbers = {
        **_categories(samples, held_out.labels[found.drawn.rows], train),
        "held_out": _categories(held_out.images, held_out.labels, train),
        **_captions(samples, found.drawn.texts, held_out, captions_of(found.held_out)),
    }
    shown = {
        "nearest of its category": (numbers["category"], numbers["category_chance"]),
        "one of 5 nearest": (numbers["category_of_5"], numbers["category_of_5_chance"]),
        "its caption in 5 nearest": (numbers["caption_of_5"], numbers["caption_of_5_chance"]),
        "held out: nearest": (
            numbers["held_out"]["category"],
            numbers["held_out"]["category_chance"],
        ),
    }
    text = [
        f"{name:25} {with_error(share)}, by chance {chance:.4f}"
        for name, (share, chance) in shown.items()
    ]
    text.append(f"{len(samples)} samples; ± one standard error over images")
    return Measurement(found.record | numbers, "\n".join(text), found.suffix)


def _open(
    name: str,
    trained: TrainedModel,
    images: EvaluatedImages,
    settings: SampleQuality,
    directory: pathlib.Path | None,
    decides: dict[str, Any],
) -> MeasuredSamples:
    """Open samples of a split's captions, whose images have classes.

    Raises:
      UsageError: as `caption_accuracy`.
    """
    if not trained.model.conditioning.has_text:
        raise UsageError(
            f"{name}: this model was trained without texts, so no caption says what its samples "
            "show."
        )
    if settings.sampling.prompt is not None:
        raise UsageError(
            f"{name} draws the captions of a split, whose classes are known: leave prompt out."
        )
    return open_samples(
        name, trained, images, settings, directory, needs_classes=True, decides=decides
    )


def _categories(images: np.ndarray, wanted: np.ndarray, train: ArraySource) -> dict[str, Any]:
    """Return the shares of images whose neighbours in training have the class that is wanted."""
    count = min(NEIGHBOURS, len(train))
    hits = train.labels[nearest_images(images, train.images, count)] == wanted[:, None]
    return {
        "category": _share(hits[:, 0]),
        "category_chance": _class_chance(wanted, train.labels, 1),
        "category_of_5": _share(hits.any(axis=1)),
        "category_of_5_chance": _class_chance(wanted, train.labels, count),
    }


def _captions(
    samples: np.ndarray, texts: tuple[str, ...], held_out: ArraySource, captions: Captions
) -> dict[str, Any]:
    """Return the share of samples that have a picture with their text among the nearest."""
    count = min(NEIGHBOURS, len(held_out))
    with_text: dict[str, set[int]] = {}
    for row in range(len(held_out)):
        for text in captions[row]:
            with_text.setdefault(text, set()).add(row)
    nearest = nearest_images(samples, held_out.images, count)
    hits = [not with_text[text].isdisjoint(rows) for text, rows in zip(texts, nearest, strict=True)]
    matches = np.array([len(with_text[text]) for text in texts])
    return {
        "caption_of_5": _share(np.array(hits)),
        "caption_of_5_chance": chance_of_match(matches, len(held_out), count),
    }


def _class_chance(wanted: np.ndarray, labels: np.ndarray, count: int) -> float:
    """Return how often one of `count` images taken at random has the class that is wanted."""
    sizes = np.bincount(labels, minlength=int(wanted.max()) + 1)
    return chance_of_match(sizes[wanted], len(labels), count)


def _share(hits: np.ndarray) -> Estimate:
    """Return the share of hits, bool [n], with the standard error of a binomial share."""
    return estimate(hits.astype(np.float64)[:, None])
