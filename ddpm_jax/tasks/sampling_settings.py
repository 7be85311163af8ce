"""Settings of images made from a model: sampler, conditions and guidance.

The records are the same for flags and for Python calls. Checks that need the model (whether it has
a class, say) are made where a record is used.
"""

import dataclasses
from typing import Any

import numpy as np

from ddpm_jax.diffusion.clipping import CLIPPINGS
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.limits import MAX_STEP, MAX_TIMESTEPS
from ddpm_jax.samplers.registry import LEVELS, SAMPLERS, find
from ddpm_jax.samplers.spacing import SPACINGS
from ddpm_jax.settings import Settings, setting
from ddpm_jax.tasks.sampler_options import (
    options_from,
    options_in_words,
    spacing_from,
    typed_options,
)

DEFAULT_SAMPLER = "ancestral"
DEFAULT_STEPS = 50  # of every sampler except the ancestral one, which by default takes all T
MAX_SCALE = 1_000_000  # of guidance
MAX_SIDE = 8192  # of an image
_SHARE = {"valid": lambda value: 0 <= value <= 1, "wanted": "in 0..1"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance(Settings, prefix="guidance_"):
    """How far images are guided towards their class; without a scale they are not.

    With `classifier` or `weaker` the scale is that of this guidance, otherwise of classifier-free
    guidance.
    """

    scale: float | None = setting(
        None,
        "How far to push towards the class (or away from a weaker model): 1 is not at all, 0 is "
        "without the class. By default images are not guided, and by 7.5 towards a text, or as the "
        "run's text.guidance says.",
        lower=0,
        upper=MAX_SCALE,
    )
    interval: tuple[float, float] | None = setting(
        None,
        "Guide only at these noise levels, as fractions of the chain from least to most noise: "
        "0.2,0.8.",
        metavar="LO,HI",
        **_SHARE,
    )
    rescale: float | None = setting(
        None, "Bring the guided images' contrast back by this share, 0 to 1.", **_SHARE
    )
    classifier: str | None = setting(
        None,
        "Guide by this classifier, a run of configs/digits_classifier.py or its like.",
        flag="classifier",
        path=True,
        metavar="DIR",
    )
    weaker: str | None = setting(
        None,
        "Guide away from this run's model: less trained, or smaller.",
        flag="weaker",
        path=True,
        metavar="DIR",
    )
    weaker_step: int | None = setting(
        None,
        "Which checkpoint of the weaker model; the newest by default.",
        flag="weaker_step",
        lower=0,
        upper=MAX_STEP,
    )

    def __post_init__(self) -> None:
        """Check every field, and that they go together."""
        super().__post_init__()
        if self.classifier and self.weaker:
            raise UsageError("classifier and weaker are two kinds of guidance: give one of them.")
        if self.weaker_step is not None and not self.weaker:
            raise UsageError(
                "weaker_step says which checkpoint of weaker: give that too, or leave it out."
            )
        given = {
            "classifier": self.classifier,
            "weaker": self.weaker,
            "guidance_interval": self.interval,
            "guidance_rescale": self.rescale,
        }
        for name, value in given.items():
            if self.scale is None and value is not None:
                raise UsageError(
                    f"{name} needs guidance_scale, which says how strong the guidance is, as in 2."
                )
        if self.rescale is not None and (self.classifier or self.weaker):
            raise UsageError(
                "guidance_rescale belongs to classifier-free guidance: leave it out here."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditions(Settings):
    """What images a model makes, however its chain is walked."""

    labels: tuple[int | str, ...] | None = setting(
        None,
        "Classes by number or name, as in 3,5 or cat,dog: image i is of the i-th, over and over; "
        "by default all in turn.",
        metavar="K",
        lower=0,
    )
    prompt: tuple[str, ...] | None = setting(
        None,
        "What the images show, for a model that reads texts; given several times, image i shows "
        "the i-th, over and over.",
        metavar="TEXT",
        prose=True,
    )
    negative_prompt: tuple[str, ...] | None = setting(
        None,
        "With guidance: what they are to be unlike, in place of any image; several go with the "
        "prompts in turn.",
        metavar="TEXT",
        prose=True,
    )
    low_res: str | np.ndarray | None = setting(
        None,
        "Picture to enlarge, by a model that enlarges; read at the low resolution, resized and "
        "cropped.",
        path=True,
    )
    clip: str | None = setting(
        None,
        "What is done to a predicted x_0 outside [-1, 1]: static (clipped, the noise follows), "
        "dynamic (scaled by a percentile), keep_eps (clipped, the noise stays), none; by default "
        "static for pixels, none for latents.",
    )
    guidance: Guidance = Guidance()

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        if self.clip is not None:
            choose("clipping", self.clip, CLIPPINGS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling(Conditions):
    """How images are made from a model."""

    height: int | None = setting(
        None,
        "Of the images in pixels, for a U-Net; by default what it was trained on.",
        lower=1,
        upper=MAX_SIDE,
    )
    width: int | None = setting(None, "Likewise.", lower=1, upper=MAX_SIDE)
    tile: int | None = setting(
        None,
        "Decode latents in tiles of so many pixels a side, for images larger than memory allows.",
        lower=1,
        upper=MAX_SIDE,
    )
    sampler: str | None = setting(
        None,
        f"How the chain is walked: {', '.join(SAMPLERS)} (default: {DEFAULT_SAMPLER}; lms for a "
        "model that reads texts; the method of its own for one in continuous time or of few "
        "steps).",
    )
    steps: int | None = setting(
        None,
        f"Steps of the chain, 1 to T; by default T for ancestral, {DEFAULT_STEPS} for "
        "others, and the number of a model's own method.",
        lower=1,
        upper=MAX_TIMESTEPS,
    )
    spacing: tuple[int | float, ...] | str | None = setting(
        None,
        f"Which of the T noise levels: {', '.join(SPACINGS)}, some in a range of sigma, as in "
        "karras:0.002,80, or the timesteps themselves, as in 999,500,0, or the number of steps in "
        "equal sections of the chain, least noise first, as in sections:10,10,20; by default "
        "linspace for ancestral, and for a model that reads texts where no sampler is named; that "
        "of a model's own method; and trailing for others.",
        metavar="NAME",
        read=spacing_from,
    )
    levels: str | None = setting(
        None,
        "Noise levels of the steps: exact (those of the chain) or diffusers (times, sigmas, first "
        "and last level as its scheduler of this sampler has them) (default: exact).",
        choices=LEVELS,
    )
    options: dict[str, Any] | None = setting(
        None,
        f"Options of the sampler: {options_in_words()}.",
        flag="sampler_options",
        metavar="NAME=X,...",
        read=options_from,
    )

    def __post_init__(self) -> None:
        """Check every field; of the options, their types."""
        super().__post_init__()
        find(self.sampler_name)
        if self.options:
            object.__setattr__(self, "options", typed_options(self.sampler_name, self.options))

    @property
    def sampler_name(self) -> str:
        """Return the name of the sampler, or the default."""
        return DEFAULT_SAMPLER if self.sampler is None else self.sampler

    @property
    def has_diffusers_levels(self) -> bool:
        """Return whether the levels are those of a scheduler of diffusers."""
        return self.levels == "diffusers"

    @property
    def default_spacing(self) -> str:
        """Return the default spacing of the sampler."""
        return "linspace" if self.sampler_name == "ancestral" else "trailing"
