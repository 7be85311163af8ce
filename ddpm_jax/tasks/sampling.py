"""An `ImageGenerator` from a trained model and `Sampling` settings."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpm_jax.data.dataset_info import ambiguous_labels, parse_labels
from ddpm_jax.data.transforms import to_model_range, to_uint8, upsample
from ddpm_jax.diffusion.interpolants import Method
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import UsageError, say
from ddpm_jax.experiments import sizes
from ddpm_jax.experiments.models import DiffusionModel
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.models.condition import check_labels
from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.loop import Sampler
from ddpm_jax.samplers.spacing import steps_in
from ddpm_jax.tasks.guide import Guide, make_guide
from ddpm_jax.tasks.image_generator import ImageGenerator
from ddpm_jax.tasks.photos import Picture, describe_picture, read_photo
from ddpm_jax.tasks.prompts import read_texts
from ddpm_jax.tasks.sampling_settings import DEFAULT_SAMPLER, Conditions, Sampling
from ddpm_jax.tasks.walks import sampler_over, walked_in


def make_generator(trained: TrainedModel, sampling: Sampling) -> ImageGenerator:
    """Return the generator of images that the settings describe.

    Raises:
      UsageError: labels, guidance, clipping or a picture to enlarge that this model cannot have, or
        a number of steps that the chain does not have.
      FailureError: a checkpoint of a second model is damaged.
    """
    trained, sampling = at_size(trained, sampling), with_defaults(trained.model, sampling)
    sampler, record = sampler_over(trained.model, sampling, *walked_in(trained.model, sampling))
    return generator_with(trained, sampling, sampler, record)


def with_defaults(model: DiffusionModel, sampling: Sampling) -> Sampling:
    """Return the settings with the sampler of the model, if none is named.

    It is LMS of a model that reads texts, and `Chain.method` of a process in continuous time, whose
    spacing is the default of every sampler but the ancestral one; of a model of few steps
    `few_steps.own_method`.

    Raises:
      UsageError: a number of steps that a model of few has not learned.
    """
    says_levels = sampling.spacing is not None or sampling.has_diffusers_levels
    steps = None if says_levels else sampling.steps
    if (method := model.method_for(sampling.sampler, steps)) is not None:
        return _with_method(method, sampling, most=model.chain.num_timesteps)
    if sampling.sampler is not None or not model.conditioning.has_text:
        return sampling
    spacing = sampling.spacing
    if spacing is None and not sampling.has_diffusers_levels:
        spacing = "linspace"
    return dataclasses.replace(sampling, sampler="lms", spacing=spacing)


def _with_method(method: Method, sampling: Sampling, *, most: int) -> Sampling:
    name = method.sampler if sampling.sampler is None else sampling.sampler
    spacing, steps = sampling.spacing, sampling.steps
    if spacing is None and not sampling.has_diffusers_levels and name != DEFAULT_SAMPLER:
        spacing = method.spacing
    listed = spacing is not None and steps_in(spacing) is not None
    if steps is None and sampling.sampler is None and not listed:
        steps = min(method.steps, most)
    return dataclasses.replace(sampling, sampler=name, spacing=spacing, steps=steps)


def at_size(trained: TrainedModel, sampling: Sampling) -> TrainedModel:
    """Return the model of images of the height, width and tiles in the settings, if any.

    Raises:
      UsageError: a size that the network or the first stage cannot have.
    """
    model, trained_on = trained.model, trained.model.image_shape[:2]
    height, width = (
        own if asked is None else asked
        for asked, own in zip((sampling.height, sampling.width), trained_on, strict=True)
    )
    if (height, width) != trained_on:
        model = sizes.at_size(model, height, width)
    if sampling.tile is not None:
        model = sizes.with_tiles(model, sampling.tile)
    return trained if model is trained.model else dataclasses.replace(trained, model=model)


def generator_with(
    trained: TrainedModel,
    conditions: Conditions,
    sampler: Sampler,
    record: dict[str, Any],
    *,
    painted: np.ndarray | None = None,
) -> ImageGenerator:
    """Return the generator of images by a given sampler, whose record is `record`.

    `painted` is what a network for inpainting is given: see `Conditioning.inpainting`.

    Raises:
      UsageError: as `make_generator`, except for the steps.
    """
    model = trained.model
    clip = _clipping(model, conditions.clip)
    guide = make_guide(trained, conditions.guidance)
    labels = _labels(guide, conditions.labels)
    low_res = _low_res(model, conditions.low_res) if painted is None else painted
    texts = read_texts(trained, conditions)
    record = dict(record) | _size(trained) | _texts(conditions)
    if clip != model.codec.clipping:
        record["clip"] = clip
    if guide.record:
        record["guidance"] = guide.record
    if labels is not None:
        record["labels"] = labels.tolist()
    if conditions.low_res is not None:
        record |= describe_picture("low_res", conditions.low_res)
    is_enlarged = low_res is not None and painted is None
    originals = {"low-res": np.asarray(to_uint8(low_res))} if is_enlarged else {}
    return ImageGenerator(
        trained, sampler, guide, clip, labels, low_res, record, originals, texts=texts
    )


def _size(trained: TrainedModel) -> dict[str, int]:
    """Return height, width and tiles for the record, where they are not those of the training."""
    height, width, _ = trained.model.image_shape
    own = getattr(trained.model, "config", None)
    is_own = own is None or (height, width) == (own.data.image_size,) * 2
    tile = getattr(trained.model.codec, "tile", None)
    size = {} if is_own else {"height": height, "width": width}
    return size if tile is None else size | {"tile": tile}


def _texts(conditions: Conditions) -> dict[str, list[str]]:
    given = {"prompt": conditions.prompt, "negative_prompt": conditions.negative_prompt}
    return {name: list(texts) for name, texts in given.items() if texts is not None}


def generator_on(
    trained: TrainedModel, conditions: Conditions, schedule: Schedule | None
) -> ImageGenerator:
    """Return a generator with the denoiser on a schedule; None is the whole chain.

    Raises:
      UsageError: as `generator_with`.
    """
    schedule = trained.model.schedule if schedule is None else schedule
    return generator_with(trained, conditions, ancestral(schedule), {})


def _clipping(model: DiffusionModel, asked: str | None) -> str:
    if model.codec.first_stage is not None and asked not in (None, "none"):
        raise UsageError(
            f"clip {asked}: the x_0 of this model is a latent, which has no range: leave clip out."
        )
    return model.codec.clipping if asked is None else asked


def _labels(guide: Guide, given: Sequence[int | str] | None) -> np.ndarray | None:
    """Return the labels that the images take in turn, int32; None if no model takes any."""
    num_classes = guide.labelled.model.conditioning.num_classes
    if given is None:
        return np.arange(num_classes, dtype=np.int32) if num_classes else None
    if not num_classes:
        raise UsageError("labels: this model was trained without labels, so leave them out.")
    texts, class_names = list(map(str, given)), guide.labelled.class_names
    try:
        labels = np.array(parse_labels(texts, class_names), np.int32)
    except UsageError as error:
        raise UsageError(f"labels {','.join(texts)}: {error}") from None
    for note in ambiguous_labels(texts, class_names):
        say(f"warning: labels: {note}.", file=sys.stderr)
    check_labels(labels, num_classes)
    return labels


def _low_res(model: DiffusionModel, picture: Picture | None) -> np.ndarray | None:
    """Return the picture to enlarge as the network takes it: float32 [H, W, C], or None."""
    factor = model.conditioning.low_res_factor
    if model.conditioning.inpainting:
        raise UsageError(
            "This model paints over a picture: give one by inpaint, and by mask where to paint."
        )
    if not factor:
        if picture is not None:
            raise UsageError(
                "low_res: this model does not enlarge images: choose a run with low_res_factor."
            )
        return None
    if picture is None:
        raise UsageError("This model enlarges low-resolution images: give one by low_res.")
    size, _, channels = model.image_shape
    photo = read_photo("low_res", picture, (size // factor, size // factor, channels))
    return np.asarray(upsample(to_model_range(photo[None]), factor)[0])
