"""Flags -> how images are to be made: sampler, noise levels, guided model, in one `Recipe`; editing
adds to it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.cli.command import Parser
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.loading import TrainedModel
from ddpm_jax.experiments.models import Model
from ddpm_jax.generation import generating
from ddpm_jax.limits import MAX_TIMESTEPS
from ddpm_jax.numerals import number, numbers, whole_number
from ddpm_jax.samplers.loop import Sampler
from ddpm_jax.samplers.registry import SAMPLERS, make_sampler, options_of
from ddpm_jax.samplers.spacing import SPACINGS, space
from ddpm_jax.tasks import guidance, names

DEFAULT_SAMPLER = "ancestral"
MAX_OPTION = 1000  # of an option that is a whole number: orders, and steps within a step
DEFAULT_STEPS = 50  # of every sampler but the ancestral, which by default takes all T


class Inputs(NamedTuple):
    """What an image is made of beside noise; NumPy leaves [n, ...], None where there is no such
    thing."""

    told: guidance.Told = guidance.Told()  # what the model is told
    image: np.ndarray | None = None  # float32 [n, h, w, c]: the picture that is edited, as x_0
    mask: np.ndarray | None = None  # bool [n, h, w, 1]: where it is painted anew
    # uint8 [n, H, W, C]: of a model over latents the picture to be painted on
    photo: np.ndarray | None = None
    photo_mask: np.ndarray | None = None  # bool [n, H, W, 1]: where


class Recipe(NamedTuple):
    """All that decides how image i comes out, but its noise: arguments of
    `generating.make_generate` and its inputs."""

    sampler: Sampler
    make_denoiser: Callable[[Any, Schedule, Inputs], Denoiser]
    params: Any  # of make_denoiser
    inputs_of: Callable[[np.ndarray], Inputs]  # indices of images, int [n] -> leaves [n, ...]
    record: dict[str, Any]  # how to make the same images again
    # uint8 [H, W, C] each: what every image is made from, for people to see
    originals: dict[str, np.ndarray]
    start: Callable[..., Any] = generating.from_noise
    edit: Callable[..., Any] = generating.as_it_is
    show: Callable[..., Any] = generating.pixels
    class_names: tuple[str, ...] = ()  # name i is of label i; () where they are not known

    def generator(self, shape: tuple[int, int, int], **options: Any) -> generating.Generate:
        """Makes the images, of `Experiment.shape`; options are those of
        `generating.make_generate`."""
        return generating.make_generate(
            self.make_denoiser,
            self.sampler,
            shape,
            show=self.show,
            start=self.start,
            edit=self.edit,
            **options,
        )

    def name(self) -> str:
        """Of files about such images: what they are made from, steps, sampler, a digest of what is
        not the default."""
        return names.joined(names.what(self.record), names.how(self.record))


def define_flags(parser: Parser) -> None:
    """Adds the flags of this file to those of a command."""
    parser.string(
        "sampler",
        None,
        f"How the chain is walked: {', '.join(SAMPLERS)} (default: {DEFAULT_SAMPLER}).",
        metavar="NAME",
    )
    parser.integer(
        "steps",
        None,
        f"Steps of the chain, 1 to T; by default T for ancestral and {DEFAULT_STEPS} for others.",
        lower=1,
        upper=MAX_TIMESTEPS,
    )
    parser.string(
        "spacing",
        None,
        f"Which of the T noise levels: {', '.join(SPACINGS)}, or the timesteps themselves, as in "
        "999,500,0; by default linspace for ancestral and trailing for others.",
        metavar="NAME",
    )
    parser.string(
        "sampler_options",
        None,
        f"Options of the sampler: {_options_in_words()}.",
        metavar="NAME=X,...",
    )
    guidance.define_flags(parser)


def _options_in_words() -> str:
    """Every sampler that has options, with these and their defaults."""
    options = {name: ",".join(f"{k}={v}" for k, v in options_of(name).items()) for name in SAMPLERS}
    return "; ".join(f"of {name} {values}" for name, values in options.items() if values)


def recipe_of(trained: TrainedModel, flags: Any) -> Recipe:
    """The sampler, its noise levels and the guidance that the flags ask for.

    Raises:
      UsageError: an unknown sampler, spacing or option, a number of steps that the chain does not
        have; what `guidance.guided` raises.
    """
    sampler, record = sampler_of(trained.model, flags, times_of(trained.model, flags))
    return make_recipe(sampler, guidance.guided(trained, flags), record)


def times_of(model: Model, flags: Any, *, steps: int | None = None) -> np.ndarray:
    """The times of the noise levels that --spacing and --steps ask for, [N], increasing.

    Raises:
      UsageError: an unknown sampler or spacing, a list that holds something else or another number
        of timesteps, or a number of steps that the chain does not have.
    """
    name = _sampler(flags)
    spacing = _ordinary_spacing(name) if flags.spacing is None else spacing_of(flags.spacing)
    return space(model.chain, spacing, steps or flags.steps or _default_steps(model, name, spacing))


def sampler_of(model: Model, flags: Any, times: np.ndarray) -> tuple[Sampler, dict[str, Any]]:
    """(the sampler that --sampler and --sampler_options ask for over these times, what made it).

    Raises:
      UsageError: an unknown sampler or option, or a value that it cannot take.
    """
    name = _sampler(flags)
    options = options_given(name, flags.sampler_options)
    sampler = make_sampler(name, model.chain, steps=len(times), spacing=times, options=options)
    record = {"sampler": name, "steps": len(times)}
    record |= (
        {}
        if flags.spacing in (None, _ordinary_spacing(name))
        else {"spacing": spacing_of(flags.spacing)}
    )
    return sampler, record | ({"sampler_options": options} if options else {})


def _sampler(flags: Any) -> str:
    return DEFAULT_SAMPLER if flags.sampler is None else flags.sampler


def _ordinary_spacing(sampler: str) -> str:
    return "linspace" if sampler == "ancestral" else "trailing"


def make_recipe(sampler: Sampler, model: guidance.Guided, record: dict[str, Any]) -> Recipe:
    """The recipe of a sampler and a model, guided or not; `record` says what made the sampler."""
    return Recipe(
        sampler,
        lambda params, schedule, inputs: model.make_denoiser(params, schedule, inputs.told),
        model.params,
        lambda indices: Inputs(model.told_of(indices)),
        record | model.record,
        show=lambda params, x, inputs=None: model.show(params, x),
        class_names=model.class_names,
        originals=model.originals,
    )


def spacing_of(text: str) -> str | list[float]:
    """The value of --spacing: a name, or a list of timesteps.

    Raises:
      UsageError: a list that holds something else.
    """
    try:
        times = numbers(text, valid=lambda time: 0 <= time <= MAX_TIMESTEPS)
    except ValueError:
        if any(character.isalpha() for character in text):
            return text
        raise UsageError(
            f"--spacing {text} is no list of timesteps: give them as in 999,500,0."
        ) from None
    return [
        time if "." in part else round(time)
        for time, part in zip(times, text.split(","), strict=True)
    ]


def _default_steps(model: Model, sampler: str, spacing: str | list[float]) -> int:
    if not isinstance(spacing, str):
        return len(spacing)
    num_timesteps = model.chain.num_timesteps
    return num_timesteps if sampler == "ancestral" else min(DEFAULT_STEPS, num_timesteps)


def options_given(sampler: str, text: str | None) -> dict[str, Any]:
    """`eta=0.5,order=3` as numbers and names of the types that the sampler's defaults have.

    Raises:
      UsageError: an unknown sampler, an option without a value, or a value of another type.
    """
    known, options = options_of(sampler), {}
    for part in text.split(",") if text else []:
        name, _, value = part.partition("=")
        if not (name and value):
            raise UsageError(
                f"--sampler_options {text}: give each option as NAME=X, as in eta=0.5."
            )
        try:
            options[name] = _option(value, known.get(name, ""))
        except ValueError as error:
            raise UsageError(
                f"The option {name} of the sampler {sampler} is {value!r}: {error}."
            ) from None
    return options


def _option(text: str, default: Any) -> Any:
    """The value of an option, of the type that its default has; infinity where that is it."""
    match default:
        case int():
            return whole_number(text, lower=0, upper=MAX_OPTION)
        case float():
            return default if text == str(default) else number(text)
    return text
