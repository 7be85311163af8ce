"""Flags -> how images are to be made: sampler, noise levels, labels. Guidance and editing add to the same `Recipe`."""

import hashlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.cli.command import Parser
from ddpm_jax.cli.experiment import Experiment
from ddpm_jax.cli.load import Loaded
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation import generation
from ddpm_jax.models.condition import Condition, check_labels
from ddpm_jax.samplers.loop import Sampler
from ddpm_jax.samplers.registry import SAMPLERS, make_sampler, options_of
from ddpm_jax.samplers.spacing import SPACINGS

DEFAULT_STEPS = 50  # of every sampler but the ancestral, which by default takes all T


class Inputs(NamedTuple):
    """What an image is made of beside noise; NumPy leaves [n, ...], None where there is no such thing."""

    condition: Condition | None = None  # what the model is told
    image: Any = None  # float32 [n, H, W, C] in [-1, 1]: the picture that is edited
    mask: Any = None  # float32 [n, H, W, 1]: 1 where it is painted anew


class Recipe(NamedTuple):
    """All that decides how image i comes out, but its noise: arguments of `generation.make_generate` and its inputs."""

    sampler: Sampler
    make_denoiser: Callable[[Any, Schedule, Inputs], Denoiser]
    params: Any  # of make_denoiser
    inputs_of: Callable[[np.ndarray], Inputs]  # indices of images, int [n] -> leaves [n, ...]
    record: dict[str, Any]  # how to make the same images again
    start: Callable[..., Any] = generation.from_noise
    edit: Callable[..., Any] = generation.as_it_is

    def generator(self, image_shape: tuple[int, int, int], **options: Any) -> generation.Generate:
        """Makes the images; options are those of `generation.make_generate`."""
        return generation.make_generate(
            self.make_denoiser, self.sampler, image_shape, start=self.start, edit=self.edit, **options
        )

    def name(self) -> str:
        """Of a folder of such images: steps, sampler, and a digest of the rest, where they are not the default."""
        own = {name: value for name, value in self.record.items() if name not in ("sampler", "steps")}
        parts = [f"steps{self.record['steps']}"]
        if self.record["sampler"] != "ancestral":
            parts.append(self.record["sampler"])
        if own:
            parts.append(hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8])
        return "_".join(parts)


def define_flags(parser: Parser) -> None:
    """Adds the flags of this file to those of a command."""
    parser.string("sampler", "ancestral", f"How the chain is walked: {', '.join(SAMPLERS)}.", metavar="NAME")
    parser.integer(
        "steps",
        None,
        f"Steps of the chain, 1 to T; by default T for ancestral and {DEFAULT_STEPS} for others.",
        lower=1,
    )
    parser.string(
        "spacing",
        None,
        f"Which of the T noise levels: {', '.join(SPACINGS)}, or the timesteps themselves, as in 999,500,0; by default "
        "linspace for ancestral and trailing for others.",
        metavar="NAME",
    )
    parser.string("sampler_options", None, "Options of the sampler, as in eta=0.5.", metavar="NAME=X")
    parser.string(
        "labels",
        None,
        "Classes, as in 3,5: image i is of the i-th, over and over; by default all in turn.",
        metavar="K",
    )


def recipe_of(loaded: Loaded, flags: Any) -> Recipe:
    """The sampler, its noise levels and the labels that the flags ask for, of an unguided model.

    Raises:
      UsageError: an unknown sampler, spacing, option or label, or a number of steps that the chain does not have.
    """
    experiment = loaded.experiment
    ordinary = "linspace" if flags.sampler == "ancestral" else "trailing"
    spacing = ordinary if flags.spacing is None else spacing_of(flags.spacing)
    options = _options(flags.sampler, flags.sampler_options)
    steps = flags.steps or _default_steps(experiment, flags.sampler, spacing)
    sampler = make_sampler(flags.sampler, experiment.chain, steps=steps, spacing=spacing, options=options)
    record = {"sampler": flags.sampler, "steps": steps}
    record |= {} if spacing == ordinary else {"spacing": spacing}
    record |= {"sampler_options": options} if options else {}
    return make_recipe(loaded, sampler, _labels(experiment, flags.labels), record)


def make_recipe(loaded: Loaded, sampler: Sampler, labels: np.ndarray | None, record: dict[str, Any]) -> Recipe:
    """The recipe of a sampler, unguided, x_0 clipped.

    Args:
      loaded: the model.
      sampler: how the chain is walked.
      labels: int32 [n], taken in turn; None for a model that is told none.
      record: what made the sampler; the labels are added.

    Raises:
      UsageError: the model is told more than labels.
    """
    experiment = loaded.experiment
    if experiment.conditioning.low_res_factor:
        raise UsageError("This model enlarges low-resolution images: give one with --low_res.")
    if labels is not None:
        record = record | {"labels": labels.tolist()}

    def inputs_of(indices: np.ndarray) -> Inputs:
        if labels is None:
            return Inputs()
        return Inputs(Condition(label=labels[np.asarray(indices) % len(labels)]))

    return Recipe(
        sampler,
        lambda params, schedule, inputs: experiment.denoiser(params, schedule, inputs.condition),
        loaded.params,
        inputs_of,
        record,
    )


def spacing_of(text: str) -> str | list[float]:
    """The value of --spacing: a name, or a list of timesteps.

    Raises:
      UsageError: a list that holds something else.
    """
    if not text.replace(",", "").replace(".", "").strip().isdigit():
        return text
    try:
        return [float(part) if "." in part else int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--spacing {text} is no list of timesteps: give them as in 999,500,0.") from None


def _default_steps(experiment: Experiment, sampler: str, spacing: str | list[float]) -> int:
    if not isinstance(spacing, str):
        return len(spacing)
    num_timesteps = experiment.chain.num_timesteps
    return num_timesteps if sampler == "ancestral" else min(DEFAULT_STEPS, num_timesteps)


def _options(sampler: str, text: str | None) -> dict[str, Any]:
    """`eta=0.5,order=3` as numbers and names of the types that the sampler's defaults have."""
    known, options = options_of(sampler), {}
    for part in text.split(",") if text else []:
        name, _, value = part.partition("=")
        if not (name and value):
            raise UsageError(f"--sampler_options {text}: give each option as NAME=X, as in eta=0.5.")
        kind = type(known.get(name, ""))
        try:
            options[name] = kind(value)
        except ValueError:
            number = "a whole number" if kind is int else "a number"
            raise UsageError(f"The option {name} of the sampler {sampler} is {value!r}: it must be {number}.") from None
    return options


def all_labels(experiment: Experiment) -> np.ndarray | None:
    """Every class once, int32 [K]; None for a model that is told none."""
    num_classes = experiment.config.condition.num_classes
    return np.arange(num_classes, dtype=np.int32) if num_classes else None


def _labels(experiment: Experiment, text: str | None) -> np.ndarray | None:
    """The labels to go round, int32, None for a model that is told none."""
    num_classes = experiment.config.condition.num_classes
    if text is None:
        return all_labels(experiment)
    if not num_classes:
        raise UsageError("--labels: this model was trained without labels, so leave them out.")
    try:
        labels = np.array([int(part) for part in text.split(",")], np.int32)
    except ValueError:
        raise UsageError(f"--labels {text}: give class numbers separated by commas, as in 3,5.") from None
    check_labels(labels, num_classes)
    return labels
