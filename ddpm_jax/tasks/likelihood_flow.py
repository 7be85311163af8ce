"""Flags -> the likelihood by the probability-flow ODE over a split."""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.cli.command import Parser
from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation.bound import check_has_bound
from ddpm_jax.evaluation.flow_density import Solver
from ddpm_jax.evaluation.likelihood_ode import make_bits_per_dim
from ddpm_jax.evaluation.ode_bits import Bits, Evaluate, no_bits, stream_bits
from ddpm_jax.evaluation.traces import TRACES
from ddpm_jax.experiments.identity import versions
from ddpm_jax.experiments.loading import TrainedModel
from ddpm_jax.monitoring import results
from ddpm_jax.tasks.evaluated_split import go_on, image_by_image, open_split, result_path
from ddpm_jax.training.conditioning import condition_of

START = 0.0  # the first t that a network is trained on
TOLERANCE = "1e-4"
MAX_PROBES = 10_000
_SMALL = {"valid": lambda value: 0 < value <= 1, "wanted": "above 0 and at most 1"}


class OdeOf(NamedTuple):
    """The likelihood of a checkpoint's flow of images."""

    bits: Bits
    settings: dict[str, Any]  # what the numbers follow from, beside the checkpoint
    suffix: str  # of files about it
    what: str  # in words


def define_flags(parser: Parser) -> None:
    """Adds the flags of this file to those of evaluate.py."""
    parser.string(
        "trace", "rademacher", f"bpd_ode: the divergence, by {', '.join(TRACES)}.", metavar="NAME"
    )
    parser.integer(
        "probes",
        1,
        "bpd_ode: random vectors for the divergence of each draw.",
        lower=1,
        upper=MAX_PROBES,
    )
    parser.number("rtol", TOLERANCE, "bpd_ode: relative error of a step of the solver.", **_SMALL)
    parser.number("atol", TOLERANCE, "bpd_ode: absolute error of a step of the solver.", **_SMALL)


def ode_of(trained: TrainedModel, flags: Any) -> OdeOf:
    """Computes the bits/dim of each image, or reads what an earlier command with the same settings
    has computed.

    Raises:
      UsageError: an unknown trace; a split or number of images that is not there; images of another
        shape than the model's; a model whose flow has no density; results made otherwise in the
        same place.
      FailureError: an image whose ODE cannot be solved; a file that is damaged or cannot be
        written.
    """
    if flags.trace == "exact" and flags.probes > 1:
        raise UsageError(f"--probes {flags.probes} has no part in --trace exact: leave it out.")
    check_has_bound(trained.model.schedule)
    evaluate = _evaluate(trained, flags)  # refuses what it cannot do; it compiles when it is called
    split = open_split(trained, flags)
    settings = split.settings | {
        "trace": flags.trace,
        "probes": math.prod(trained.model.image_shape) if flags.trace == "exact" else flags.probes,
        "rtol": flags.rtol,
        "atol": flags.atol,
        "start": START,
        "clip_denoised": False,
        "versions": versions("diffrax"),
    }
    trace = f"{flags.trace}{'' if flags.trace == 'exact' else flags.probes}"
    suffix = f"{split.suffix}_{trace}_rtol{flags.rtol:g}_atol{flags.atol:g}_draws{flags.draws}_seed{flags.seed}"
    stream = functools.partial(stream_bits, evaluate, trained.weights)
    bits = go_on(
        result_path("bits_ode", trained, flags, f"{suffix}.npz"),
        no_bits(flags.draws),
        split.num_images,
        lambda bits, span: image_by_image(stream, bits, span, split, flags, merge=_joined),
        merge=_joined,
        made_with=settings | results.machine(),
    )
    probes = (
        "exact trace"
        if flags.trace == "exact"
        else f"{flags.probes} {flags.trace} probe{_s(flags.probes)}"
    )
    return OdeOf(
        bits, settings, suffix, f"{split.what}, {probes}, {flags.draws} draw{_s(flags.draws)}"
    )


def _s(count: int) -> str:
    return "s" if count > 1 else ""


def _evaluate(trained: TrainedModel, flags: Any) -> Evaluate:
    model = trained.model
    continuous = model.continuous()
    return make_bits_per_dim(
        lambda params, condition: model.eps(params, continuous, condition),
        continuous,
        trace=flags.trace,
        num_probes=flags.probes,
        num_draws=flags.draws,
        start=START,
        solver=Solver(rtol=flags.rtol, atol=flags.atol),
        make_condition=functools.partial(condition_of, model.conditioning),
    )


def _joined(first: Bits, second: Bits) -> Bits:
    return Bits(*(np.concatenate(pair) for pair in zip(first, second, strict=True)))
