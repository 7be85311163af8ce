"""Denoising diffusion in JAX: pure functions over pytrees, from the schedule to the sampler.

    import ddpm_jax
    ddpm_jax.make_sampler(...)      # and every name of `__all__`; see `docs/architecture.md`

A name is imported when it is first used, so that `import ddpm_jax` is fast and does not import JAX.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# name -> module of this package that defines it
_DEFINED_IN = {
    "Classifier": "api",
    "FirstStage": "api",
    "Model": "api",
    "from_network": "api",
    "load": "api",
    "compare_images": "measuring.image_comparison",
    "Callback": "training.callbacks",
    "Chain": "diffusion.chain",
    "Denoiser": "diffusion.denoiser",
    "Guidance": "tasks.sampling_settings",
    "Prediction": "diffusion.parameterization",
    "Process": "diffusion.process",
    "Sampling": "tasks.sampling_settings",
    "Schedule": "diffusion.schedules",
    "StopTraining": "training.callbacks",
    "distill": "training_runs.distilling",
    "import_model": "tasks.model_importing",
    "make_betas": "diffusion.schedules",
    "make_process": "diffusion.process",
    "make_sampler": "samplers.registry",
    "make_schedule": "diffusion.schedules",
    "sample": "samplers.loop",
    "train": "training_runs.training_run",
    "verify": "tasks.verification",
}
__all__ = ["__version__", *_DEFINED_IN]


def __getattr__(name: str) -> Any:
    if name == "text":  # a package of its own
        return importlib.import_module(f"{__name__}.text")
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_DEFINED_IN[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "text"})
