"""Flags -> the denoiser that images are made with: the model, guided if asked for, its x_0 clipped.
Labels too."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.cli.command import Parser
from ddpm_jax.data.dataset_info import ambiguous_labels, parse_labels
from ddpm_jax.data.transforms import to_model_range, to_uint8, upsample
from ddpm_jax.diffusion.clipping import CLIPPINGS
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import UsageError, choose, say
from ddpm_jax.experiments.guides import load_classifier
from ddpm_jax.experiments.identity import is_of_one_kind
from ddpm_jax.experiments.loading import TrainedModel, load_trained
from ddpm_jax.experiments.models import Model
from ddpm_jax.limits import MAX_STEP
from ddpm_jax.models.condition import Condition, check_labels, without_label
from ddpm_jax.samplers import guidance
from ddpm_jax.tasks.photos import named_file, read_photo

MAX_SCALE = 1_000_000  # of guidance
_SHARE = {"valid": lambda value: 0 <= value <= 1, "wanted": "in 0..1"}


class Told(NamedTuple):
    """What is said of every image: to the model, and to the classifier that guides it."""

    condition: Condition | None = None  # None for a model that is told nothing
    label: np.ndarray | None = None  # int32 [n], for a classifier


class Guided(NamedTuple):
    """A model as it is to be used."""

    make_denoiser: Callable[[Any, Schedule, Told], Denoiser]
    params: Any  # of make_denoiser: weights, and the numbers of the guidance
    told_of: Callable[[np.ndarray], Told]  # indices of images, int [n] -> leaves [n]
    record: dict[str, Any]
    # (params, x_0 [n, ...]) -> the images uint8 [n, H, W, C] it stands for
    show: Callable[[Any, jax.Array], jax.Array]
    class_names: tuple[str, ...]  # name i is of label i; () where they are not known
    # uint8 [H, W, C]: the low-resolution image as the network sees it, if any
    originals: dict[str, np.ndarray]


def define_flags(parser: Parser) -> None:
    """Adds the flags of this file to those of a command."""
    parser.string(
        "labels",
        None,
        "Classes by number or name, as in 3,5 or cat,dog: image i is of the i-th, over and over; "
        "by default all in turn.",
        metavar="K",
    )
    parser.path(
        "low_res",
        None,
        "Picture to enlarge, by a model of super-resolution; read at the low resolution, resized "
        "and cropped.",
        metavar="FILE",
    )
    parser.number(
        "guidance_scale",
        None,
        "How far to push towards the class (or away from --weaker): 1 is not at all, 0 is without "
        "the class.",
        valid=lambda value: 0 <= value <= MAX_SCALE,
        wanted=f"in 0..{MAX_SCALE}",
    )
    parser.numbers(
        "guidance_interval",
        None,
        "Only at these noise levels, as fractions of the chain from least to most noise: 0.2,0.8.",
        metavar="LO,HI",
        **_SHARE,
        count=2,
    )
    parser.number(
        "guidance_rescale",
        None,
        "Bring the guided images' contrast back by this share, 0 to 1.",
        **_SHARE,
    )
    parser.path(
        "classifier",
        None,
        "Guide by this classifier, a run of configs/digits_classifier.py or its like.",
        metavar="DIR",
    )
    parser.path(
        "weaker", None, "Guide away from this run's model: less trained, or smaller.", metavar="DIR"
    )
    parser.integer(
        "weaker_step",
        None,
        "Which of its checkpoints; the newest by default.",
        lower=0,
        upper=MAX_STEP,
    )
    parser.string(
        "clip",
        None,
        "What is done to a predicted x_0 outside [-1, 1]: static (clipped, the noise follows), "
        "dynamic (scaled by a percentile), keep_eps (clipped, the noise stays), none; by default "
        "static for pixels, none for latents.",
        metavar="NAME",
    )


def guided(trained: TrainedModel, flags: Any) -> Guided:
    """The denoiser that the flags ask for.

    With --classifier or --weaker the scale is that of this guidance, otherwise of classifier-free
    guidance.

    Raises:
      UsageError: an unknown label or clipping; a scale, interval or share out of range; guidance
        that this model cannot have; two kinds of guidance at once; a flag that would do nothing.
    """
    model = trained.model
    clipping = _clipping(model, flags.clip)
    clip = choose("clipping", clipping, CLIPPINGS)
    force = _force(trained, flags)
    labels = _labels(force.num_classes, flags.labels, force.class_names)
    record: dict[str, Any] = {} if clipping == _ordinary_clipping(model) else {"clip": clipping}
    record |= {"guidance": force.record} if force.record else {}
    record |= {} if labels is None else {"labels": labels.tolist()}
    low_res = _low_res(model, flags.low_res)
    record |= {} if flags.low_res is None else named_file("low_res", flags.low_res)

    def make_denoiser(params: Any, schedule: Schedule, told: Told) -> Denoiser:
        conditional = model.conditional_denoiser(params["model"], schedule)
        return clip(force.apply(conditional, params["force"], told))

    def told_of(indices: np.ndarray) -> Told:
        label = None if labels is None else labels[np.asarray(indices) % len(labels)]
        condition = Condition(
            label=label if model.conditioning.num_classes else None,
            low_res=None if low_res is None else np.repeat(low_res[None], len(indices), axis=0),
        )
        return Told(condition if model.conditioning.names else None, label)

    def show(params: Any, x: jax.Array) -> jax.Array:
        return model.decode(params["model"], x)

    params = {"model": trained.weights, "force": force.params}
    originals = {} if low_res is None else {"low-res": np.asarray(to_uint8(low_res))}
    return Guided(make_denoiser, params, told_of, record, show, force.class_names, originals)


def _ordinary_clipping(model: Model) -> str:
    return model.codec.clipping


def _clipping(model: Model, asked: str | None) -> str:
    if model.codec.clipping == "none" and asked not in (None, "none"):
        raise UsageError(
            f"--clip {asked}: the x_0 of this model is a latent, which has no range: leave --clip "
            "out."
        )
    return _ordinary_clipping(model) if asked is None else asked


class _Force(NamedTuple):
    """What acts on the model."""

    # (conditional denoiser, params, what is told) -> Denoiser, nothing clipped
    apply: Callable[[Denoiser, Any, Told], Denoiser]
    params: dict[str, Any]
    record: dict[str, Any]
    num_classes: int  # of whoever is told labels, 0 for nobody
    class_names: tuple[str, ...]  # () where they are not known


def _force(trained: TrainedModel, flags: Any) -> _Force:
    """Chooses the kind of guidance, and reads its numbers."""
    model = trained.model
    num_classes = model.config.condition.num_classes
    if flags.classifier and flags.weaker:
        raise UsageError("--classifier and --weaker are two kinds of guidance: give one of them.")
    if flags.weaker_step is not None and not flags.weaker:
        raise UsageError(
            "--weaker_step says which checkpoint of --weaker: give that too, or leave it out."
        )
    numbers, record = _numbers(model, flags)
    if not numbers:
        return _Force(_unguided, {}, {}, num_classes, trained.class_names)
    if flags.guidance_rescale is not None and (flags.classifier or flags.weaker):
        raise UsageError(
            "--guidance_rescale belongs to classifier-free guidance: leave it out here."
        )
    if flags.classifier:
        return _by_classifier(trained, flags, numbers, record)
    if flags.weaker:
        return _away_from_weaker(trained, flags, numbers, record)
    if not num_classes:
        raise UsageError(
            "--guidance_scale: this model was trained without labels, so it has no class to be "
            "guided to: choose a run with condition.num_classes, or give --classifier or --weaker."
        )
    if not model.config.condition.label_dropout:
        raise UsageError(
            "--guidance_scale: this model was trained with condition.label_dropout = 0, so it does "
            "not know images without their class: choose one that had some dropped, or give "
            "--classifier or --weaker."
        )

    def apply(conditional: Denoiser, params: Any, told: Told) -> Denoiser:
        null = without_label(told.condition, num_classes)
        return guidance.classifier_free(conditional, told.condition, null, **params)

    numbers["rescale"] = np.float32(flags.guidance_rescale or 0.0)
    guidance.check_rescale(numbers["rescale"])
    record |= {} if flags.guidance_rescale is None else {"rescale": float(numbers["rescale"])}
    return _Force(
        apply, numbers, {"kind": "classifier-free"} | record, num_classes, trained.class_names
    )


def _unguided(conditional: Denoiser, params: Any, told: Told) -> Denoiser:
    return conditional.given(told.condition)


def _by_classifier(
    trained: TrainedModel, flags: Any, numbers: dict[str, Any], record: dict[str, Any]
) -> _Force:
    model = trained.model
    classifier = load_classifier(flags.classifier, trained, raw_weights=flags.raw_weights)
    num_classes = classifier.model.config.condition.num_classes
    ours = model.config.condition.num_classes
    if ours not in (0, num_classes):
        raise UsageError(
            f"The model has {ours} classes, but the classifier of {flags.classifier} {num_classes}."
        )
    guidance.check_has_signal(model.schedule)

    def apply(conditional: Denoiser, params: Any, told: Told) -> Denoiser:
        log_prob = classifier.model.class_log_prob(params["classifier"])
        denoiser = _unguided(conditional, params, told)
        return guidance.classifier_guidance(denoiser, log_prob, told.label, **params["numbers"])

    params = {"classifier": classifier.weights, "numbers": numbers}
    said = {"kind": "classifier", **_named_run("classifier", flags.classifier, classifier)}
    return _Force(apply, params, said | record, num_classes, classifier.class_names)


def _away_from_weaker(
    trained: TrainedModel, flags: Any, numbers: dict[str, Any], record: dict[str, Any]
) -> _Force:
    weaker = load_trained(flags.weaker, step=flags.weaker_step, raw_weights=flags.raw_weights)
    _check_same_task(trained, weaker, flags.weaker)

    def apply(conditional: Denoiser, params: Any, told: Told) -> Denoiser:
        other = weaker.model.conditional_denoiser(params["weaker"], conditional.schedule)
        pair = (_unguided(model, params, told) for model in (conditional, other))
        return guidance.autoguidance(*pair, **params["numbers"])

    params = {"weaker": weaker.weights, "numbers": numbers}
    said = {"kind": "weaker", **_named_run("weaker", flags.weaker, weaker)}
    num_classes = trained.model.config.condition.num_classes
    return _Force(apply, params, said | record, num_classes, trained.class_names)


def _named_run(flag: str, directory: str, trained: TrainedModel) -> dict[str, Any]:
    """What a record says of a second model."""
    return {flag: str(directory), f"{flag}_step": trained.step, f"{flag}_sha256": trained.sha256}


def _check_same_task(model: TrainedModel, weaker: TrainedModel, directory: str) -> None:
    ours, theirs = model.model, weaker.model
    for what, mine, other in (
        ("image shape", ours.image_shape, theirs.image_shape),
        ("latents", True, is_of_one_kind(model, weaker)),
        ("noise levels", ours.chain.betas.tolist(), theirs.chain.betas.tolist()),
        ("scale of times", ours.chain.time_scale, theirs.chain.time_scale),
        ("conditions", ours.conditioning.names, theirs.conditioning.names),
        ("number of classes", ours.conditioning.num_classes, theirs.conditioning.num_classes),
    ):
        if mine != other:
            raise UsageError(
                f"--weaker: the model of {directory} differs from this one in its {what}: give a "
                "less trained or smaller model of the same kind."
            )


def _numbers(model: Model, flags: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(scale and interval as arrays, the same for the record); both empty where no guidance is
    asked for."""
    asked = flags.guidance_scale is not None
    if not asked:
        for name in ("classifier", "weaker", "guidance_interval", "guidance_rescale"):
            if getattr(flags, name) is not None:
                raise UsageError(
                    f"--{name} needs --guidance_scale, which says how strong the guidance is, as "
                    "in 2."
                )
        return {}, {}
    scale = flags.guidance_scale
    guidance.check_scale(scale)
    low, high = (0.0, 1.0) if flags.guidance_interval is None else flags.guidance_interval
    numbers = {
        "scale": np.float32(scale),
        "interval": guidance.interval_of(model.chain, low, high),
    }
    return numbers, {"scale": scale} | (
        {} if flags.guidance_interval is None else {"interval": [low, high]}
    )


def _low_res(model: Model, path: str | None) -> np.ndarray | None:
    """The picture to enlarge, as the network is told it: float32 [H, W, C]; None for a model that
    enlarges none."""
    factor = model.conditioning.low_res_factor
    if not factor:
        if path is not None:
            raise UsageError(
                "--low_res: this model does not enlarge images: choose a run with low_res_factor."
            )
        return None
    if path is None:
        raise UsageError("This model enlarges low-resolution images: give one with --low_res.")
    size, _, channels = model.image_shape
    photo = read_photo("--low_res", path, (size // factor, size // factor, channels))
    return np.asarray(upsample(to_model_range(photo[None]), factor)[0])


def _labels(num_classes: int, text: str | None, class_names: Sequence[str]) -> np.ndarray | None:
    """The labels to go round, int32, None where nobody is told any."""
    if text is None:
        return np.arange(num_classes, dtype=np.int32) if num_classes else None
    if not num_classes:
        raise UsageError("--labels: this model was trained without labels, so leave them out.")
    try:
        labels = np.array(parse_labels(text.split(","), class_names), np.int32)
    except UsageError as error:
        raise UsageError(f"--labels {text}: {error}") from None
    for note in ambiguous_labels(text.split(","), class_names):
        say(f"warning: --labels: {note}.", file=sys.stderr)
    check_labels(labels, num_classes)
    return labels
