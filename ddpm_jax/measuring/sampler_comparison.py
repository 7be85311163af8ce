"""Samplers compared by their error at equal numbers of network evaluations.

They are compared on a mixture in the plane, where the denoiser is exact
(`evaluation.plane_problem`), and on a trained model by the Frechet distance of pixels to its
training images.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.evaluation.plane_problem import PlaneProblem, sampler_within
from ddpm_jax.limits import MAX_SEED, MAX_TIMESTEPS
from ddpm_jax.measuring.compared_model import ComparedModel
from ddpm_jax.monitoring.progress import counted
from ddpm_jax.samplers.loop import Sampler
from ddpm_jax.samplers.registry import SAMPLERS, find
from ddpm_jax.samplers.spacing import SPACINGS
from ddpm_jax.settings import Settings, setting

PLANE_SAMPLES = 2000
PLANE_CHAIN = 1000  # T of the mixture's process, with DDPM's linear schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison(Settings):
    """Which samplers are compared, at which numbers of evaluations."""

    samplers: tuple[str, ...] = setting(
        (),
        f"Which samplers, of {', '.join(SAMPLERS)}; by default all.",
        metavar="NAME,...",
    )
    evaluations: tuple[int, ...] = setting(
        (5, 10, 20, 50, 100),
        "Network evaluations that a sampler may spend on an image.",
        metavar="N,...",
        lower=1,
        upper=MAX_TIMESTEPS,
    )
    spacing: str = setting("trailing", f"The noise levels: {', '.join(SPACINGS)}.")
    seed: int = setting(0, "Of all noise.", lower=0, upper=MAX_SEED)

    def __post_init__(self) -> None:
        """Check every field, and the names of samplers and spacing."""
        super().__post_init__()
        for name in self.samplers:
            find(name)
        choose("spacing", self.spacing, SPACINGS)

    @property
    def names(self) -> list[str]:
        """Return the samplers that are compared."""
        return list(self.samplers or SAMPLERS)

    @property
    def budgets(self) -> list[int]:
        """Return the numbers of evaluations, increasing."""
        return sorted(set(self.evaluations))


class Case(NamedTuple):
    """A sampler at a number of steps."""

    name: str
    steps: int
    sampler: Sampler


class Compared(NamedTuple):
    """The errors of samplers."""

    rows: list[dict[str, Any]]  # a sampler at a number of steps each
    floors: dict[str, float]  # measure -> what chance alone leaves


def compare_samplers(settings: Comparison, model: ComparedModel | None = None) -> Compared:
    """Measure the error of every sampler at every number of evaluations.

    Raises:
      UsageError: no sampler works with so few evaluations.
    """
    chain = Chain(make_betas("linear", PLANE_CHAIN)) if model is None else model.chain
    cases = make_cases(settings, chain)
    plane = PlaneProblem(chain, num_samples=PLANE_SAMPLES, seed=settings.seed)
    rows = [
        _row(case, plane, model) for case in counted(cases, "comparing", len(cases), unit="sampler")
    ]
    floors = {"mixture_energy": plane.floor()} | (model.floors if model else {})
    return Compared(rows, floors)


def make_cases(settings: Comparison, chain: Chain) -> Sequence[Case]:
    """Return every sampler at every budget that allows more steps than the one before.

    Raises:
      UsageError: there are none.
    """
    cases = []
    for name in settings.names:
        most = 0
        for budget in settings.budgets:
            found = sampler_within(name, chain, evaluations=budget, spacing=settings.spacing)
            if found is not None and found[0] > most:
                most = found[0]
                cases.append(Case(name, *found))
    if not cases:
        raise UsageError(
            f"evaluations: {settings.budgets[-1]} are too few for any of these samplers: give more."
        )
    return cases


def _row(case: Case, plane: PlaneProblem, model: ComparedModel | None) -> dict[str, Any]:
    errors = plane.errors(case.sampler)
    row = {
        "sampler": case.name,
        "steps": case.steps,
        "evaluations": case.sampler.evaluations,
        "mixture_flow": np.nan if errors.flow is None else errors.flow,
        "mixture_energy": errors.energy,
    }
    return row | (model.measure(case.sampler) if model else {})
