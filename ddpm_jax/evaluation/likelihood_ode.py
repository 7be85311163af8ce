"""The likelihood of images by the probability flow, in bits/dim, on all local devices.

The density is in `flow_density`, the step from a density to images in `dequantization`. The caller
chooses images and model.

**The start.** p_start is a normalised density over images for any start, so the bits/dim are valid:
they are those of the model "decode noise down to t = start". At the default, t = 0, this is data
with the noise of the first step, of standard deviation √(1-ᾱ_0) = 0.01 in Ho et al.'s schedule, the
smallest that a network was trained on. A direction in which the data has variance s² costs (r - 1 -
log r) / (2 log 2) bits for that on average, r = s² / (ᾱ_0 s² + 1-ᾱ_0): 0.14 bits at s = 0.01, 5e-4
at s = 0.05; a test measures it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data.transforms import to_model_range
from ddpm_jax.diffusion.flow import ContinuousSchedule, EpsFunction, Flow, probability_flow
from ddpm_jax.errors import FailureError, UsageError, choose
from ddpm_jax.evaluation import flow_density
from ddpm_jax.evaluation.batch_program import BatchProgram, MakeCondition, given
from ddpm_jax.evaluation.dequantization import bits_from_nats, dequantize
from ddpm_jax.evaluation.flow_density import SOLVER, Solver
from ddpm_jax.evaluation.ode_bits import Bits, Evaluate
from ddpm_jax.evaluation.traces import TRACES, Probes
from ddpm_jax.randomness import DEQUANTIZATION, LIKELIHOOD_ODE, PROBES, fold_in_each, row_keys


def make_bits_per_dim(
    make_eps: Callable[..., EpsFunction],
    continuous: ContinuousSchedule,
    *,
    start: float = 0.0,
    **options: Any,
) -> Evaluate:
    """Return `make_flow_bits` of the flow of ε over a chain that is continued to real t.

    Args:
      make_eps: params -> ε at real t, or (params, condition) -> ε with `make_condition`; traced.
      continuous: its schedule.
      start: see `probability_flow`.
      **options: see `make_flow_bits`.

    Raises:
      UsageError: as `make_flow_bits`, or a start outside the chain.
    """
    # refuses a wrong start before anything is traced
    probability_flow(lambda x, t: x, continuous, start=start)

    def make_flow(params: Any, *condition: Any) -> Flow:
        return probability_flow(make_eps(params, *condition), continuous, start=start)

    return make_flow_bits(make_flow, **options)


def make_flow_bits(
    make_flow: Callable[..., Flow],
    *,
    trace: str = "rademacher",
    num_probes: int = 1,
    num_draws: int = 1,
    solver: Solver = SOLVER,
    make_condition: MakeCondition | None = None,
    strict: bool = True,
) -> Evaluate:
    """Return evaluate(params, key, images, index, labels=None) -> `Bits`, on all local devices.

    For a conditional model they are bits of -log p(x_0 | condition), not of -log p(x_0).

    A batch is solved in dispatches of about half a second, or one step of the solver where that
    takes longer, between which signals are checked; see `dispatch.walk`.

    `key` is that of the seed, `index` the positions of the images in the data: the draws of an
    image depend on these two alone. B is a multiple of the local devices; every B is compiled once
    (`ode_bits.stream_bits` has only one).

    Args:
      make_flow: params -> `Flow`, or (params, condition) -> `Flow` with `make_condition`; traced.
      trace: a key of `TRACES`. `exact` takes D backward passes per evaluation: for small images.
      num_probes: P for each draw; not used by `exact`. An evaluation is a forward pass and P
        backward passes to the input.
      num_draws: independent pairs of dequantisation noise and probes, each a solve of its own; 2 or
        more give errors.
      solver: tolerances.
      make_condition: its input is the 8-bit image on [-1, 1], without the noise of dequantisation,
        which the bits account for.
      strict: whether to refuse an image whose ODE is not solved; otherwise its draws are NaN.

    Raises:
      UsageError: an unknown trace, a count below 1, or a tolerance that is not positive.

    Evaluate raises:
      FailureError: the solver did not reach the end for an image, or reached a number that is not
        finite.
    """
    probe = choose("trace", trace, TRACES)
    _check_counts(num_probes=num_probes, num_draws=num_draws, max_steps=solver.max_steps)
    _check_tolerances(solver)
    program = BatchProgram(_ImageFlow(make_flow, probe, num_probes, solver, make_condition))

    def evaluate(params, key, images, index, labels=None):
        examples = program.to_devices(images, index, labels)
        draws = [program.run(params, key, draw, examples) for draw in range(num_draws)]
        bits, num_evaluations, solved = (
            np.stack(parts, axis=1) for parts in zip(*draws, strict=True)
        )
        if strict:
            _check_solved(solved.all(axis=1), index, solver)
        return Bits(np.where(solved, bits, np.float32(np.nan)), num_evaluations)

    return evaluate


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UsageError(f"{name} is {count}: choose at least 1.")


def _check_tolerances(solver: Solver) -> None:
    for name, tolerance in (("rtol", solver.rtol), ("atol", solver.atol)):
        if not tolerance > 0:
            raise UsageError(f"{name} is {tolerance}: a tolerance is positive, 1e-5, say.")


@dataclasses.dataclass(frozen=True)
class _ImageFlow:
    """The ODEs of a batch on one device, one row per solver step; see `batch_program.Parts`."""

    make_flow: Callable[..., Flow]
    probe: Probes
    num_probes: int
    solver: Solver
    make_condition: MakeCondition | None

    @property
    def total(self) -> int:
        return self.solver.max_steps

    def begin(self, shared: Any, examples: Any) -> flow_density.Path:
        conditions, x, probes = self._inputs(shared, examples)
        return jax.vmap(
            lambda condition, x, probes: flow_density.begin(
                self._flow(shared[0], condition), x, probes, self.solver
            )
        )(conditions, x, probes)

    def advance(
        self, shared: Any, examples: Any, paths: flow_density.Path, first: Any, last: Any
    ) -> tuple[flow_density.Path, chex.Array]:
        conditions, _, probes = self._inputs(shared, examples)

        def advance_one(condition, path, probes):
            flow = self._flow(shared[0], condition)
            path = flow_density.advance(flow, path, probes, self.solver, last - first)
            return path, flow_density.is_under_way(flow, path, self.solver)

        paths, under_way = jax.vmap(advance_one)(conditions, paths, probes)
        return paths, ~jnp.any(under_way)

    def finish(self, shared: Any, examples_and_paths: Any) -> tuple[chex.Array, ...]:
        examples, paths = examples_and_paths
        conditions, x, _ = self._inputs(shared, examples)
        found = jax.vmap(
            lambda condition, path: flow_density.finish(self._flow(shared[0], condition), path)
        )(conditions, paths)
        bits = bits_from_nats(found.log_prob, math.prod(x.shape[1:]))
        return bits, found.num_evaluations, found.solved

    def _flow(self, params: Any, condition: Any) -> Flow:
        """Return the flow of one image under its condition."""
        condition = jax.tree.map(lambda leaf: leaf[None], condition)
        return self.make_flow(params, *condition)

    def _inputs(self, shared: Any, examples: Any) -> tuple[Any, chex.Array, chex.Array]:
        """Return the conditions, the dequantised images and the probes for a draw."""
        _, key, draw = shared
        images, index, labels = examples
        conditions = given(self.make_condition, to_model_range(images), labels)
        keys = row_keys(fold_in_each(jax.random.fold_in(key, LIKELIHOOD_ODE), index), draw)
        u = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:]))(
            row_keys(keys, DEQUANTIZATION)
        )
        probes = self.probe(row_keys(keys, PROBES), self.num_probes, images.shape[1:])
        return conditions, dequantize(images, u), probes


def _check_solved(solved: np.ndarray, index: np.ndarray, solver: Solver) -> None:
    if not solved.all():
        raise FailureError(
            f"The ODE of image {index[np.argmin(solved)]} did not reach its end in "
            f"{solver.max_steps} steps or came to a number that is not finite: loosen rtol "
            f"({solver.rtol:g}) and atol ({solver.atol:g}), or use an earlier checkpoint if the "
            "weights have diverged."
        )
