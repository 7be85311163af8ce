"""Guidance of a model: classifier-free, by a classifier, by a weaker model, or none.

The mathematics is in `samplers.guidance`; here a `Guidance` record and a model become a `Guide`,
and settings that do not fit the model are refused.
"""

import dataclasses
from typing import Any

import numpy as np

from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.guides import load_classifier, load_weaker
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.models.condition import Condition, uninformed
from ddpm_jax.samplers import guidance as formulas
from ddpm_jax.tasks.sampling_settings import Guidance


@dataclasses.dataclass(frozen=True)
class Guide:
    """A kind of guidance, its numbers, and the second model that it needs."""

    trained: TrainedModel  # the model that is guided
    kind: str = "none"  # "classifier-free", "classifier", "weaker"
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)  # scale, interval, rescale
    second: TrainedModel | None = None  # the classifier, or the weaker model
    record: dict[str, Any] = dataclasses.field(default_factory=dict)  # for results

    @property
    def params(self) -> dict[str, Any]:
        """Return the arrays of `guided`, arguments of a compiled program."""
        second = {} if self.second is None else {"second": self.second.weights}
        return {"numbers": self.numbers, **second}

    @property
    def settings(self) -> dict[str, Any]:
        """Return what decides the program of `guided`: the record without its numbers."""
        named = {name: value for name, value in self.record.items() if name not in self.numbers}
        return named | {"kind": self.kind}

    @property
    def labelled(self) -> TrainedModel:
        """Return the model that takes the labels: the classifier, if there is one."""
        return self.second if self.kind == "classifier" else self.trained

    def guided(
        self,
        denoiser: Denoiser,
        params: dict[str, Any],
        condition: Condition | None,
        label: Any,
        avoided: Any = None,
    ) -> Denoiser:
        """Return the denoiser with its condition, guided; nothing is clipped.

        Args:
          denoiser: of the model, before `Denoiser.given`.
          params: `Guide.params`, perhaps traced.
          condition: of each image; None for a model without conditions.
          label: int32 [B], the class of each image for a classifier.
          avoided: float [B, L, D], features of the text in place of which classifier-free guidance
            puts the prompt: of "", or of a negative prompt.
        """
        numbers = params["numbers"]
        if self.kind == "classifier-free":
            null = uninformed(condition, self.trained.model.conditioning.num_classes, avoided)
            return formulas.classifier_free(denoiser, condition, null, **numbers)
        conditional = denoiser.given(condition)
        if self.kind == "classifier":
            log_prob = self.second.model.class_log_prob(params["second"])
            return formulas.classifier_guidance(conditional, log_prob, label, **numbers)
        if self.kind == "weaker":
            other = self.second.model.conditional_denoiser(params["second"], denoiser.schedule)
            return formulas.autoguidance(conditional, other.given(condition), **numbers)
        return conditional


def make_guide(trained: TrainedModel, guidance: Guidance) -> Guide:
    """Return the guide of a model that the settings describe.

    Raises:
      UsageError: guidance that this model cannot have, or a second model that does not fit it.
      FailureError: a checkpoint of the second model is damaged.
    """
    if guidance.scale is None and trained.model.conditioning.has_text:
        guidance = dataclasses.replace(guidance, scale=trained.model.config.text.guidance)
    if guidance.scale is None:
        return Guide(trained)
    numbers, record = _numbers(trained, guidance)
    raw = trained.raw_is_chosen
    if guidance.classifier:
        classifier = load_classifier(guidance.classifier, trained, raw_weights=raw)
        _check_classes(trained, classifier, guidance.classifier)
        formulas.check_has_signal(trained.model.schedule)
        named = _named_run("classifier", guidance.classifier, classifier)
        return Guide(
            trained, "classifier", numbers, classifier, {"kind": "classifier"} | named | record
        )
    if guidance.weaker:
        weaker = load_weaker(guidance.weaker, trained, step=guidance.weaker_step, raw_weights=raw)
        named = _named_run("weaker", guidance.weaker, weaker)
        return Guide(trained, "weaker", numbers, weaker, {"kind": "weaker"} | named | record)
    _check_knows_no_class(trained)
    numbers["rescale"] = np.float32(guidance.rescale or 0.0)
    formulas.check_rescale(numbers["rescale"])
    rescale = {} if guidance.rescale is None else {"rescale": float(numbers["rescale"])}
    record = {"kind": "classifier-free"} | record | rescale
    if trained.model.conditioning.has_text and guidance.scale == 1:
        return Guide(trained, record=record)  # the same images in half the time
    return Guide(trained, "classifier-free", numbers, None, record)


def _numbers(trained: TrainedModel, guidance: Guidance) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (scale and interval as arrays, the same for the record)."""
    formulas.check_scale(guidance.scale)
    low, high = (0.0, 1.0) if guidance.interval is None else guidance.interval
    interval = formulas.interval_from_fractions(trained.model.chain, low, high)
    numbers = {"scale": np.float32(guidance.scale), "interval": interval}
    given = {} if guidance.interval is None else {"interval": [low, high]}
    return numbers, {"scale": guidance.scale} | given


def _named_run(role: str, directory: str, second: TrainedModel) -> dict[str, Any]:
    """Return the entries of a record about a second model."""
    return {role: str(directory), f"{role}_step": second.step, f"{role}_sha256": second.sha256}


def _check_classes(trained: TrainedModel, classifier: TrainedModel, directory: str) -> None:
    ours = trained.model.conditioning.num_classes
    theirs = classifier.model.conditioning.num_classes
    if ours not in (0, theirs):
        raise UsageError(
            f"The model has {ours} classes, but the classifier of {directory} {theirs}."
        )


def _check_knows_no_class(trained: TrainedModel) -> None:
    """Refuse classifier-free guidance of a model that was not trained with and without labels."""
    conditioning = trained.model.conditioning
    if not (conditioning.num_classes or conditioning.has_text):
        raise UsageError(
            "guidance_scale: this model was trained without labels, so it has no class to be "
            "guided to: choose a run with condition.num_classes, or give classifier or weaker."
        )
    if conditioning.num_classes and not conditioning.null_class:
        raise UsageError(
            "guidance_scale: the network of this model has no null class (condition.null_class is "
            "false), so it does not know images without their class: leave it out, or give "
            "classifier or weaker."
        )
    if conditioning.num_classes and not conditioning.label_dropout:
        raise UsageError(
            "guidance_scale: this model was trained with condition.label_dropout = 0, so it does "
            "not know images without their class: choose one that had some dropped, or give "
            "classifier or weaker."
        )
