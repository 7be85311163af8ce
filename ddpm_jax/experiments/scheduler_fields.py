"""Schedulers of diffusers in our config: groups `diffusion` and `scheduler`, and back."""

import inspect
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.diffusion.schedules import BETA_SCHEDULES, make_betas
from ddpm_jax.errors import UsageError
from ddpm_jax.interop.schedulers import BETA_SCHEDULES as THEIRS
from ddpm_jax.interop.schedulers import PREDICTIONS, SchedulerFacts
from ddpm_jax.samplers.diffusers_levels import SchedulerOptions

OFFSET_OF_PIPELINES = 1


def set_scheduler(config: ConfigDict, facts: SchedulerFacts) -> None:
    """Set the fields of a text model's config that a scheduler decides.

    diffusers' pipelines of Stable Diffusion set `steps_offset` to 1 and clip nothing, whatever the
    file says, and so does this. An unsaid `set_alpha_to_one` is that of the file's class.

    Raises:
      UsageError: betas without a name, which a config cannot hold.
    """
    if facts.trained_betas is not None:
        raise UsageError(
            "The config of the scheduler lists its betas (trained_betas), and is read with a "
            "beta_schedule by name only."
        )
    if facts.variance is not None:
        config.diffusion.variance = facts.variance
    config.diffusion.update(
        num_timesteps=facts.num_timesteps,
        schedule=facts.beta_schedule,
        beta_start=facts.beta_start,
        beta_end=facts.beta_end,
        scale_betas=False,
        parameterization=facts.prediction,
    )
    options, to_one = facts.options, facts.options.set_alpha_to_one
    config.scheduler.update(
        spacing=options.spacing or "",
        sigmas=options.sigmas or "",
        steps_offset=OFFSET_OF_PIPELINES,
        set_alpha_to_one=facts.class_name == "DDIMScheduler" if to_one is None else to_one,
    )


def options_in(config: ConfigDict) -> SchedulerOptions:
    """Return the options of diffusers' scheduler that a config has."""
    own = config.scheduler
    return SchedulerOptions(
        spacing=own.spacing or None,
        sigmas=own.sigmas or None,
        steps_offset=own.steps_offset,
        set_alpha_to_one=own.set_alpha_to_one,
    )


def sampler_options_in(config: ConfigDict) -> SchedulerOptions:
    """Return the options with which diffusers samples a model.

    They are those in its config, or of the class that samples where no scheduler has said any.
    """
    is_said = config.model.name == "text_unet" or config.scheduler.given
    return options_in(config) if is_said else SchedulerOptions()


def facts_in(config: ConfigDict) -> SchedulerFacts:
    """Return the scheduler with which diffusers samples a text model; PNDM, as SD 1.x has it.

    Raises:
      UsageError: diffusers does not give its networks such times, or has no such prediction.
    """
    return SchedulerFacts(**_process(config), options=options_in(config))


def facts_over_pixels(config: ConfigDict, class_name: str) -> SchedulerFacts:
    """Return the scheduler with which diffusers samples a model of pixels.

    Args:
      config: of the model.
      class_name: DDPMScheduler or DDIMScheduler.

    Raises:
      UsageError: as `facts_in`; it has no such variance or clipping.
    """
    variance, clip = config.diffusion.variance, config.diffusion.clip
    is_learned = variance.startswith("learned")
    if variance == "learned" or (is_learned and class_name != "DDPMScheduler"):
        raise UsageError(
            f"diffusion.variance is {variance!r}, which {class_name} of diffusers does not have."
        )
    if clip == "dynamic":
        raise UsageError(
            f"diffusion.clip is {clip!r}, which {class_name} of diffusers does not have: it bounds "
            "the threshold."
        )
    return SchedulerFacts(
        **_process(config),
        class_name=class_name,
        variance=variance if class_name == "DDPMScheduler" else None,
        options=sampler_options_in(config),
        clip_sample=clip != "none",
        skip_prk_steps=False,
    )


def _process(config: ConfigDict) -> dict[str, Any]:
    """Return the fields of `SchedulerFacts` that say how noise is added and what is predicted.

    Raises:
      UsageError: as `facts_in`.
    """
    c = config.diffusion
    if c.rescale_timesteps and c.num_timesteps != 1000:
        raise UsageError("rescale_timesteps: diffusers gives its networks t, not t times 1000 / T.")
    if c.parameterization not in PREDICTIONS.values():
        raise UsageError(f"diffusers has no network that predicts {c.parameterization}.")
    ends = {"beta_start": c.beta_start, "beta_end": c.beta_end}
    if c.process != "chain":
        raise UsageError(
            f"diffusion.process is {c.process!r}, in continuous time, for which diffusers' "
            "schedulers of chains have no name."
        )
    named = c.schedule in THEIRS.values() and not (c.scale_betas or c.zero_terminal_snr)
    published = inspect.signature(BETA_SCHEDULES[c.schedule]).parameters
    betas = make_betas(
        c.schedule,
        c.num_timesteps,
        **ends,
        scale_betas=c.scale_betas,
        zero_terminal_snr=c.zero_terminal_snr,
    )
    start, end = (
        published[name].default if named and value is None and name in published else value
        for name, value in ends.items()
    )
    return {
        "num_timesteps": c.num_timesteps,
        "beta_schedule": c.schedule,
        "beta_start": start,
        "beta_end": end,
        "trained_betas": None if named else tuple(betas.tolist()),
        "prediction": c.parameterization,
    }
