"""How settings walk a chain: the visited noise levels, and the sampler over them."""

from typing import Any

import numpy as np

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.models import DiffusionModel
from ddpm_jax.experiments.scheduler_fields import sampler_options_in
from ddpm_jax.samplers.diffusers_levels import SchedulerOptions, scheduler_options
from ddpm_jax.samplers.loop import Sampler
from ddpm_jax.samplers.registry import make_sampler, walked
from ddpm_jax.samplers.spacing import space, steps_in
from ddpm_jax.tasks.sampling_settings import DEFAULT_STEPS, Sampling


def walked_in(model: DiffusionModel, sampling: Sampling) -> tuple[Chain, np.ndarray]:
    """Return the chain that the sampler walks and the times of the levels, [N], increasing.

    Raises:
      UsageError: as `times_in`; with diffusers' levels a sampler or spacing that it does not have.
    """
    if not sampling.has_diffusers_levels:
        return model.chain, times_in(model, sampling)
    return walked(
        sampling.sampler_name,
        model.chain,
        steps=sampling.steps or _default_steps(model, sampling, None),
        spacing=sampling.spacing,
        levels=_scheduler(model),
    )


def times_in(model: DiffusionModel, sampling: Sampling, *, most: int | None = None) -> np.ndarray:
    """Return the times of the visited noise levels of the model's chain, [N], increasing.

    The default number of steps is `most`, but at most T; without `most` it depends on the sampler.

    Raises:
      UsageError: an unknown spacing, a list of another number of timesteps, a number of steps that
        the chain does not have, or levels that are not those of the chain.
    """
    if sampling.has_diffusers_levels:
        raise UsageError(
            "levels diffusers belongs to sampling and init_image: RePaint and reconstruct walk the "
            "chain's own levels, so leave it out."
        )
    spacing = sampling.default_spacing if sampling.spacing is None else sampling.spacing
    steps = sampling.steps or steps_in(spacing) or _default_steps(model, sampling, most)
    return space(model.chain, spacing, steps)


def sampler_over(
    model: DiffusionModel, sampling: Sampling, chain: Chain, times: np.ndarray
) -> tuple[Sampler, dict[str, Any]]:
    """Return (the sampler over these times of a chain, its record).

    Raises:
      UsageError: an option that the sampler does not have, or a value that it cannot take; one that
        adds noise, of a model whose noise was paired with images in training.
    """
    name, options = sampling.sampler_name, sampling.options or {}
    if sampling.has_diffusers_levels:
        options = scheduler_options(name, model.process.parameterization.name) | options
    sampler = make_sampler(name, chain, steps=len(times), spacing=times, options=options)
    config = getattr(model, "config", None)
    if sampler.draws and config is not None and config.diffusion.coupling != "independent":
        raise UsageError(
            f"The sampler {name} adds noise, which needs a score, and this model learned a flow "
            f"alone (diffusion.coupling is {config.diffusion.coupling}): choose one without, such "
            "as euler."
        )
    record: dict[str, Any] = {"sampler": name, "steps": len(times)}
    if sampling.has_diffusers_levels:
        record["levels"] = sampling.levels
    default = None if sampling.has_diffusers_levels else sampling.default_spacing
    if sampling.spacing not in (None, default):
        spacing = sampling.spacing
        record["spacing"] = list(spacing) if isinstance(spacing, tuple) else spacing
    # Infinity can only be a default, and JSON does not have it.
    if finite := {name: value for name, value in options.items() if value != np.inf}:
        record["sampler_options"] = finite
    return sampler, record


def _scheduler(model: DiffusionModel) -> SchedulerOptions:
    """Return the options of diffusers' scheduler: the model's, or those of the class."""
    config = getattr(model, "config", None)
    return SchedulerOptions() if config is None else sampler_options_in(config)


def _default_steps(model: DiffusionModel, sampling: Sampling, most: int | None) -> int:
    num_timesteps = model.chain.num_timesteps
    if most is None and sampling.sampler_name == "ancestral":
        return num_timesteps
    return min(most or DEFAULT_STEPS, num_timesteps)
