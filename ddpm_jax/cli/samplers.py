"""`python -m ddpm_jax.cli.samplers`: every sampler's error against network evaluations, as a table,
PNG and JSON.

    python -m ddpm_jax.cli.samplers                        on Gaussians in the plane, with the exact denoiser
    python -m ddpm_jax.cli.samplers --ckpt runs/digits     and on a trained model, with the time an image takes

On the mixture: the root mean square distance to where the probability flow leads from the same
noise, for samplers without noise of their own; and the energy distance to the data's distribution,
for all. On a model: the Frechet distance of pixels to the training images. Samplers that evaluate
the network twice a step take half the steps.
"""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.cli import settings_flags
from ddpm_jax.cli.command import Parser, prepare_jax, run
from ddpm_jax.data.dataset_info import holds_out
from ddpm_jax.data.in_memory import in_memory
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.errors import UsageError, choose, say
from ddpm_jax.evaluation.pixel_frechet import check_pixel_sets, pixel_frechet_distance
from ddpm_jax.evaluation.plane_problem import PlaneProblem, sampler_within
from ddpm_jax.experiments.datasets import check_places, load_evaluated, load_split
from ddpm_jax.experiments.identity import identity, versions
from ddpm_jax.experiments.loading import TrainedModel, load_trained
from ddpm_jax.files import as_path, reporting
from ddpm_jax.limits import MAX_BATCH, MAX_IMAGES, MAX_SEED, MAX_STEP, MAX_TIMESTEPS
from ddpm_jax.monitoring.progress import counted
from ddpm_jax.monitoring.results import check_record, format_table, machine, write_record
from ddpm_jax.plotting.sampler_errors import Measure, error_against_evaluations
from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.loop import Sampler
from ddpm_jax.samplers.registry import SAMPLERS, find
from ddpm_jax.samplers.spacing import SPACINGS
from ddpm_jax.tasks.sampling import generator_with
from ddpm_jax.tasks.sampling_settings import Conditions

EVALUATIONS = "5,10,20,50,100"
PLANE_SAMPLES = 2000
PLANE_CHAIN = 1000  # T of the mixture's process, with DDPM's linear schedule


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code; see `command.run` for the errors."""
    parser, of_a_model = _parser()
    flags = parser.parse(argv)
    names = [find(name) and name for name in _named(flags)]
    budgets = sorted(set(flags.evaluations))
    spacing = choose("spacing", flags.spacing, SPACINGS) and flags.spacing
    unused = [] if flags.ckpt else [name for name in of_a_model if flags[name].present]
    if unused:
        raise UsageError(f"--{unused[0]} is for a trained model: give --ckpt, or leave it out.")
    prepare_jax(flags)
    trained = (
        load_trained(flags.ckpt, step=flags.ckpt_step, raw_weights=flags.raw_weights)
        if flags.ckpt
        else None
    )
    chain = trained.model.chain if trained else Chain(make_betas("linear", PLANE_CHAIN))
    if trained:
        check_places(trained.model.config.data, data_dir=flags.data_dir, out=flags.out)
    cases = _cases(names, chain, budgets, spacing)
    plane = PlaneProblem(chain, num_samples=PLANE_SAMPLES, seed=flags.seed)
    model = _Model(trained, flags) if trained else None
    path, settings = _path(flags, model), _settings(flags, model)
    check_record(path, settings)
    rows = [
        _row(case, plane, model) for case in counted(cases, "comparing", len(cases), unit="sampler")
    ]
    _report(
        path, settings, rows, {"mixture_energy": plane.floor()} | (model.floors if model else {})
    )
    return 0


def _parser() -> tuple[Parser, list[str]]:
    """The flags, and the names of those that mean nothing without --ckpt."""
    parser = Parser(__doc__)
    parser.path(
        "ckpt", None, "Directory of a training run; without it, only the mixture.", metavar="DIR"
    )
    parser.string(
        "samplers",
        None,
        f"Which samplers, of {', '.join(SAMPLERS)}; by default all.",
        metavar="NAME,...",
    )
    parser.integers(
        "evaluations",
        EVALUATIONS,
        "Network evaluations that a sampler may spend on an image.",
        metavar="N,...",
        lower=1,
        upper=MAX_TIMESTEPS,
    )
    parser.string(
        "spacing", "trailing", f"The noise levels: {', '.join(SPACINGS)}.", metavar="NAME"
    )
    parser.integer("seed", 0, "Of all noise.", lower=0, upper=MAX_SEED)
    parser.path(
        "out",
        None,
        "Directory for the results; evaluation in the run's, or samplers.",
        metavar="DIR",
    )
    always = set(parser.values)
    parser.integer(
        "ckpt_step",
        None,
        "Which of its checkpoints; the newest by default.",
        lower=0,
        upper=MAX_STEP,
    )
    parser.boolean("raw_weights", "Use the weights as trained instead of their moving average.")
    parser.integer(
        "num_samples",
        300,
        "Images of the model for each sampler and number of evaluations.",
        lower=2,
        upper=MAX_IMAGES,
    )
    parser.integer(
        "num_reference",
        None,
        "Compare with only so many of the training images, spread evenly over them; all by "
        "default.",
        lower=2,
        upper=MAX_IMAGES,
    )
    parser.integer(
        "batch_size", 300, "Images made at a time, over all devices.", lower=1, upper=MAX_BATCH
    )
    parser.path(
        "data_dir",
        None,
        "Where the data is, if not where the training run found it.",
        metavar="DIR",
    )
    settings_flags.define(parser, Conditions)
    return parser, [name for name in parser.values if name not in always]


def _named(flags: Any) -> list[str]:
    return list(SAMPLERS) if flags.samplers is None else flags.samplers.split(",")


class _Case(NamedTuple):
    name: str
    steps: int
    sampler: Sampler


def _cases(names: Sequence[str], chain: Chain, budgets: Sequence[int], spacing: str) -> list[_Case]:
    """Every sampler at every budget that allows it another number of steps than the one before."""
    cases = []
    for name in names:
        most = 0
        for budget in budgets:
            found = sampler_within(name, chain, evaluations=budget, spacing=spacing)
            if found is not None and found[0] > most:
                most = found[0]
                cases.append(_Case(name, *found))
    return cases


class _Model:
    """The trained model, its training and held-out images, and how to make some from it."""

    def __init__(self, trained: TrainedModel, flags: Any):
        self.trained, self._flags = trained, flags
        whole = ancestral(trained.model.schedule)
        conditions = settings_flags.read(flags, Conditions)
        self.generator = generator_with(trained, conditions, whole, {})
        data = trained.model.config.data
        train, self.other_data = load_evaluated(trained, data.train_split, data_dir=flags.data_dir)
        none = data.test_split == "test" and not holds_out(train)
        held_out = None if none else load_split(data, data.test_split, data_dir=flags.data_dir)
        rows, held_out_rows = check_pixel_sets(
            train, held_out, num_samples=flags.num_samples, num_reference=flags.num_reference
        )
        self._train = in_memory(train, rows).images
        self.floors = {}  # of data with held-out images, what these are apart
        if held_out is not None:
            floor = pixel_frechet_distance(in_memory(held_out, held_out_rows).images, self._train)
            self.floors["frechet"] = floor

    def measure(self, case: _Case) -> dict[str, float]:
        """The Frechet distance, the seconds an image takes once compiled, and those of
        compiling."""
        flags = self._flags
        generator = dataclasses.replace(self.generator, sampler=case.sampler)

        def images() -> np.ndarray:
            batches = generator.batches(
                np.arange(flags.num_samples),
                seed=flags.seed,
                batch_size=min(flags.batch_size, flags.num_samples),
            )
            return np.concatenate([made for _, made in batches])

        start = time.perf_counter()
        made = images()
        first = time.perf_counter() - start
        start = time.perf_counter()
        images()
        again = time.perf_counter() - start
        return {
            "frechet": pixel_frechet_distance(made, self._train),
            "seconds_per_image": again / flags.num_samples,
            "seconds_compiling": max(first - again, 0.0),
        }


def _row(case: _Case, plane: PlaneProblem, model: _Model | None) -> dict[str, Any]:
    errors = plane.errors(case.sampler)
    row = {
        "sampler": case.name,
        "steps": case.steps,
        "evaluations": case.sampler.evaluations,
        "mixture_flow": np.nan if errors.flow is None else errors.flow,
        "mixture_energy": errors.energy,
    }
    return row | (model.measure(case) if model else {})


def _settings(flags: Any, model: _Model | None) -> dict[str, Any]:
    """What is needed to measure the same again."""
    settings = {
        "samplers": _named(flags),
        "evaluations": sorted(set(flags.evaluations)),
        "spacing": flags.spacing,
        "seed": flags.seed,
        "mixture_samples": PLANE_SAMPLES,
    }
    if model:
        settings |= {
            "checkpoint": str(flags.ckpt),
            "checkpoint_step": model.trained.step,
            "weights": model.trained.average,
            **identity(model.trained),
            "num_samples": flags.num_samples,
            "made_with": model.generator.record,
            **model.other_data,
        }
        if flags.num_reference:  # absent otherwise: results of before the flag go on
            settings["num_reference"] = flags.num_reference
    return settings | machine() | {"versions": versions()}


def _path(flags: Any, model: _Model | None) -> pathlib.Path:
    """Of the JSON file."""
    name = (
        f"_step{model.trained.step}_{model.trained.average}_n{flags.num_samples}" if model else ""
    )
    out = as_path(flags.out or (as_path(flags.ckpt) / "evaluation" if model else "samplers"))
    return out / f"samplers{name}_{flags.spacing}_seed{flags.seed}.json"


def _report(
    path: pathlib.Path,
    settings: dict[str, Any],
    rows: list[dict[str, Any]],
    floors: dict[str, float],
) -> None:
    write_record(path, settings | {"floors": floors, "rows": rows})
    with reporting(path.with_suffix(".png")):
        error_against_evaluations(path.with_suffix(".png"), _measures(rows, floors))
    say(format_table(list(rows[0]), [list(row.values()) for row in rows]))
    say(
        "what chance alone leaves: "
        f"{', '.join(f'{key} {value:.4g}' for key, value in floors.items())}"
    )
    say(f"{path}\n{path.with_suffix('.png')}")


def _measures(rows: list[dict[str, Any]], floors: dict[str, float]) -> list[Measure]:
    shown = {
        "mixture_flow": ("mixture: distance to the flow", "RMSE", None),
        "mixture_energy": ("mixture: distance to the data", "energy distance", "exact draws"),
        "frechet": (
            "model: distance to the training images",
            "Frechet distance of pixels",
            "held-out images",
        ),
    }
    measures = []
    for key, (title, ylabel, floor) in shown.items():
        if key not in rows[0]:
            continue
        lines = {}
        for name in dict.fromkeys(row["sampler"] for row in rows):
            of = [(row["evaluations"], row[key]) for row in rows if row["sampler"] == name]
            if not all(np.isnan(value) for _, value in of):
                lines[name] = tuple(np.array(column) for column in zip(*of, strict=True))
        measures.append(
            Measure(title, ylabel, lines, (floor, floors[key]) if key in floors else None)
        )
    return measures


if __name__ == "__main__":
    sys.exit(run(main))
