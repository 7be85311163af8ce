"""Bits per dimension of the caller's images, by the bound or by the flow, without files."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.data.sources import Source
from ddpm_jax.errors import choose
from ddpm_jax.evaluation.tally import Estimate, estimate
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.measuring.evaluated_split import in_memory
from ddpm_jax.measuring.evaluation_settings import FlowLikelihood, VariationalBound
from ddpm_jax.measuring.likelihood_bound import bound_computation, bound_strata, model_bound
from ddpm_jax.measuring.resuming import complete
from ddpm_jax.randomness import check_settings
from ddpm_jax.settings import check_names, field_names


class BitsPerDim(NamedTuple):
    """Bits per dimension of N images: estimates of upper bounds on -log2 p(image) / D."""

    values: np.ndarray  # float64 [N], mean over the draws; NaN where an ODE was not solved
    standard_errors: np.ndarray  # float64 [N], of these as estimates; NaN for a single draw
    total: Estimate  # mean over the images, and its standard errors
    num_evaluations: np.ndarray  # int64 [N], of the network, in all draws
    solved: np.ndarray  # bool [N]: whether the solver reached the end in every draw


def bits_per_dim(
    trained: TrainedModel,
    images: np.ndarray,
    method: str = "bound",
    *,
    labels: Sequence[int | str] | int | str | None = None,
    captions: Sequence[str] | str | None = None,
    **settings: Any,
) -> BitsPerDim:
    """Return the bits per dimension of images, given their conditions if the model has any.

    Args:
      trained: a diffusion model over pixels.
      images: uint8 [N, H, W, C]. The draws of image i follow from the seed and i.
      method: "bound", the variational bound, or "ode", the likelihood by the probability flow.
      labels: classes by number or name, one for each image, if the model has classes.
      captions: a text for each image, or one for all, if the model reads texts; "" is none.
      settings: fields of `VariationalBound` or of `FlowLikelihood`: draws, timestep_stride, rtol.

    Raises:
      UsageError: images, labels or captions that the model cannot have; a setting out of its range;
        a model without a likelihood.
      FailureError: a term of the bound that is not finite.
    """
    measure, record = choose("method", method, METHODS)
    check_settings()
    check_names(field_names(record), settings, f"The method {method!r} has no setting")
    if isinstance(labels, int | str):
        labels = [labels] * len(images)
    if isinstance(captions, str):
        captions = [captions] * len(images)
    return measure(trained, in_memory(trained, images, labels, captions), record(**settings))


def _bound(trained: TrainedModel, source: Source, settings: VariationalBound) -> BitsPerDim:
    strata = bound_strata(trained.model, settings)
    key = ["bound", settings.timestep_stride]
    bound = trained.programs.get(key, lambda: model_bound(trained.model, strata))
    computation = bound_computation(trained, source, settings, strata, bound)
    draws = complete(computation, len(source)).total
    return _summarize(draws, np.full(draws.shape, len(strata.first)))


def _flow(trained: TrainedModel, source: Source, settings: FlowLikelihood) -> BitsPerDim:
    # the solver takes more than a second to import, which nothing else of `ddpm_jax.load` needs
    from ddpm_jax.measuring.likelihood_flow import flow_computation, flow_evaluation

    of_computation = settings.trace, settings.probes, settings.draws, settings.rtol, settings.atol
    evaluate = trained.programs.get(
        ["ode", *of_computation], lambda: flow_evaluation(trained.model, settings, strict=False)
    )
    bits = complete(flow_computation(trained, source, settings, evaluate), len(source))
    return _summarize(bits.draws.astype(np.float64), bits.num_evaluations)


METHODS = {"bound": (_bound, VariationalBound), "ode": (_flow, FlowLikelihood)}


def _summarize(draws: np.ndarray, num_evaluations: np.ndarray) -> BitsPerDim:
    """Summarise bits/dim of draws, float64 [N, draws]."""
    count = draws.shape[1]
    errors = draws.std(axis=1, ddof=1) / math.sqrt(count) if count > 1 else None
    return BitsPerDim(
        draws.mean(axis=1),
        np.full(len(draws), np.nan) if errors is None else errors,
        estimate(draws),
        num_evaluations.sum(axis=1, dtype=np.int64),
        np.isfinite(draws).all(axis=1),
    )
