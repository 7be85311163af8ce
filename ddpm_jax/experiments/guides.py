"""The second model of guidance, read from its run: a classifier, or a weaker model."""

import pathlib

import numpy as np

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.identity import is_of_one_kind
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.experiments.trained_model import TrainedModel


def load_classifier(
    workdir: str | pathlib.Path,
    guided: TrainedModel,
    *,
    step: int | None = None,
    raw_weights: bool = False,
) -> TrainedModel:
    """Read a classifier of noisy images that can guide the model `guided`.

    Raises:
      UsageError: as `load_trained`, or it is no classifier, or it was trained on other images or
        another chain.
    """
    classifier = load_trained(workdir, "classifier", step=step, raw_weights=raw_weights)
    ours, theirs = classifier.model, guided.model
    if ours.image_shape != theirs.image_shape:
        raise UsageError(
            f"The classifier of {workdir} reads images of {_size(ours.image_shape)}, but the model "
            f"makes images of {_size(theirs.image_shape)}: train the one for the other."
        )
    if not is_of_one_kind(classifier, guided):
        here, there = (t.model.codec.describe(t.weights.frozen) for t in (classifier, guided))
        raise UsageError(
            f"The classifier of {workdir} is of {here}, the model of {there}: train it with the "
            "model's first_stage.ckpt and latent_scale."
        )
    if not _have_one_chain(classifier, guided):
        raise UsageError(
            f"The classifier of {workdir} was trained on another schedule or number of timesteps "
            "than the model: train it with the model's diffusion.schedule, beta_start, beta_end, "
            "num_timesteps and rescale_timesteps."
        )
    return classifier


def load_weaker(
    workdir: str | pathlib.Path,
    guided: TrainedModel,
    *,
    step: int | None = None,
    raw_weights: bool = False,
) -> TrainedModel:
    """Read a weaker model of the same task, away from which the model `guided` can be guided.

    Raises:
      UsageError: as `load_trained`, or it makes other images, or has another chain or other
        conditions.
    """
    weaker = load_trained(workdir, step=step, raw_weights=raw_weights)
    ours, theirs = guided.model, weaker.model
    for what, mine, other in (
        ("image shape", ours.image_shape, theirs.image_shape),
        ("latents", True, is_of_one_kind(guided, weaker)),
        ("noise levels", ours.chain.betas.tolist(), theirs.chain.betas.tolist()),
        ("scale of times", _last_times(ours.chain), _last_times(theirs.chain)),
        ("conditions", ours.conditioning.names, theirs.conditioning.names),
        ("number of classes", ours.conditioning.num_classes, theirs.conditioning.num_classes),
    ):
        if mine != other:
            raise UsageError(
                f"weaker: the model of {workdir} differs from this one in its {what}: give a "
                "less trained or smaller model of the same kind."
            )
    return weaker


def _have_one_chain(one: TrainedModel, other: TrainedModel) -> bool:
    ours, theirs = one.model.chain, other.model.chain
    return np.array_equal(ours.betas, theirs.betas) and _last_times(ours) == _last_times(theirs)


def _last_times(chain: Chain) -> list[float]:
    """Return what a network is given at the ends of a chain."""
    return chain.network_times(np.array([0, chain.num_timesteps - 1])).tolist()


def _size(image_shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, image_shape))
