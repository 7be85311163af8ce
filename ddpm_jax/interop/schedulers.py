"""`scheduler_config.json` of diffusers: what it says of a chain and its sampler, and back.

An option that a file leaves out has the default of the class that samples in the end, and not that
of the class it was written by: SD 1.x names no `timestep_spacing`, so that its LMS takes linspace
while the PNDM of the file takes leading. Such options are None here. `samplers.diffusers_levels`
knows what the classes do with them.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.errors import UsageError, choose
from ddpm_jax.interop.json_config import known_fields
from ddpm_jax.limits import MAX_TIMESTEPS
from ddpm_jax.samplers.diffusers_levels import SIGMAS, TIMES, SchedulerOptions
from ddpm_jax.schema import Malformed, Number, Whole, check, format_value

SAMPLERS = {  # class -> ours; PNDM and DPM-Solver have several
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ancestral",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "EulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "LMSDiscreteScheduler": "lms",
    "PNDMScheduler": "plms",
    "UniPCMultistepScheduler": "unipc",
}
BETA_SCHEDULES = {  # theirs -> ours
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}
# theirs -> ours; fixed_small_log is the same variance, computed from its logarithm
VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "learned_range": "learned_range",
}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x_0"}
CLIPS = ("DDIMScheduler", "DDPMScheduler")  # classes that clip x_0 where nothing is said
_OF_SD = SchedulerOptions(steps_offset=1, set_alpha_to_one=False)
_WHAT = "The config of the scheduler"
_USED: dict[str, Any] = {  # None: the class's default
    "algorithm_type": "dpmsolver++",
    "beta_end": None,
    "beta_schedule": "linear",
    "beta_start": None,
    "clip_sample": None,
    "dynamic_thresholding_ratio": None,  # of thresholding, as is sample_max_value
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": None,
    "set_alpha_to_one": None,
    "skip_prk_steps": False,
    "solver_order": 2,
    "solver_type": None,
    "steps_offset": 0,
    "timestep_spacing": None,
    "trained_betas": None,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
    "variance_type": None,
}
_UNUSED: dict[str, tuple[Any, ...]] = {
    "clip_sample_range": (1.0, 1),
    "disable_corrector": ([],),
    "final_sigmas_type": ("zero",),
    "flow_shift": (1.0, 1),
    "interpolation_type": ("linear",),
    "lambda_min_clipped": (None, -math.inf),
    "lower_order_final": (True,),
    "predict_x0": (True,),
    "time_shift_type": ("exponential",),
    "timestep_type": ("discrete",),
}
_WHOLE = {"num_train_timesteps": MAX_TIMESTEPS, "steps_offset": MAX_TIMESTEPS, "solver_order": 3}
_FLAGS = (
    "clip_sample",
    "set_alpha_to_one",
    "skip_prk_steps",
    "use_exponential_sigmas",
    "use_karras_sigmas",
)
_CHOICES: dict[str, tuple[Any, ...]] = {
    "beta_schedule": tuple(BETA_SCHEDULES),
    "prediction_type": tuple(PREDICTIONS),
    "timestep_spacing": (None, *TIMES),
    "variance_type": (None, "fixed_small"),
}
_CHOICES_OF_CLASS: dict[str, dict[str, tuple[Any, ...]]] = {
    "DDPMScheduler": {"variance_type": (None, *VARIANCES)},
    "DPMSolverMultistepScheduler": {
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
        "solver_order": (2, 3),
        "solver_type": (None, "midpoint"),
    },
    "UniPCMultistepScheduler": {
        "solver_order": (1, 2, 3),
        "solver_type": (None, "bh1", "bh2"),
    },
}
_BETA_ENDS = (1e-4, 0.02)
_BETA_ENDS_OF_HEUN = (0.00085, 0.012)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchedulerFacts:
    """What a scheduler's config says; the defaults are those of Stable Diffusion 1.x."""

    class_name: str = "PNDMScheduler"  # a key of `SAMPLERS`
    num_timesteps: int = 1000
    beta_schedule: str = "scaled_linear"  # a key of `diffusion.schedules.BETA_SCHEDULES`
    beta_start: float | None = 0.00085  # None for a schedule without end points
    beta_end: float | None = 0.012
    trained_betas: tuple[float, ...] | None = None  # in place of a named schedule
    prediction: str = "eps"  # a key of `diffusion.parameterization.PARAMETERIZATIONS`
    variance: str | None = None  # of DDPM, a key of `diffusion.variance.VARIANCES`
    options: SchedulerOptions = _OF_SD
    clip_sample: bool | None = False  # None: DDIM and DDPM clip, the others do not
    skip_prk_steps: bool = True  # PNDM starts without Runge-Kutta steps
    algorithm_type: str = "dpmsolver++"  # of DPM-Solver, with `solver_order`
    solver_order: int = 2  # of DPM-Solver and UniPC
    solver_type: str | None = None  # of UniPC: bh1 or bh2

    @property
    def betas(self) -> np.ndarray:
        """Return the betas, float64 [T]."""
        if self.trained_betas is not None:
            return np.asarray(self.trained_betas, np.float64)
        ends = {"beta_start": self.beta_start, "beta_end": self.beta_end}
        return make_betas(self.beta_schedule, self.num_timesteps, **ends)

    @property
    def sampler(self) -> str:
        """Return our sampler of the same method."""
        if self.class_name == "PNDMScheduler" and not self.skip_prk_steps:
            return "pndm"
        if self.class_name == "DPMSolverMultistepScheduler":
            sde = "_sde" if self.algorithm_type == "sde-dpmsolver++" else ""
            return f"dpmpp_{self.solver_order}m{sde}"
        return SAMPLERS[self.class_name]

    @property
    def sampler_options(self) -> dict[str, Any]:
        """Return the options of `sampler` that are not its defaults."""
        if self.class_name != "UniPCMultistepScheduler":
            return {}
        order = {"order": self.solver_order} if self.solver_order != 2 else {}
        return order | ({"variant": "bh1"} if self.solver_type == "bh1" else {})

    def clips(self, sampler: str) -> bool:
        """Return whether the scheduler of one of our samplers clips x_0, and keeps ε as it is."""
        clipping = {SAMPLERS[name] for name in CLIPS}
        return sampler in clipping and self.clip_sample is not False


def read_scheduler(config: Mapping[str, Any]) -> SchedulerFacts:
    """Return what a `scheduler_config.json` says.

    Args:
      config: the JSON object, with "_class_name".

    Raises:
      UsageError: an unknown class; an option with a value that our samplers do not have.
    """
    name = config.get("_class_name")
    choose("scheduler", str(name), SAMPLERS)
    said = known_fields(config, _USED, _UNUSED, _WHAT)
    _check(name, said)
    schedule = BETA_SCHEDULES[said["beta_schedule"]]
    start, end = said["beta_start"], said["beta_end"]
    own_start, own_end = _BETA_ENDS_OF_HEUN if name == "HeunDiscreteScheduler" else _BETA_ENDS
    has_ends = schedule != "cosine"
    betas = said["trained_betas"]
    return SchedulerFacts(
        class_name=name,
        num_timesteps=said["num_train_timesteps"],
        beta_schedule=schedule,
        beta_start=(own_start if start is None else start) if has_ends else None,
        beta_end=(own_end if end is None else end) if has_ends else None,
        trained_betas=None if betas is None else tuple(map(float, betas)),
        prediction=PREDICTIONS[said["prediction_type"]],
        variance=_variance(name, said["variance_type"]),
        options=SchedulerOptions(
            spacing=said["timestep_spacing"],
            sigmas=next((kind for kind in SIGMAS if said[f"use_{kind}_sigmas"]), None),
            steps_offset=said["steps_offset"],
            set_alpha_to_one=said["set_alpha_to_one"],
        ),
        clip_sample=said["clip_sample"],
        skip_prk_steps=said["skip_prk_steps"],
        algorithm_type=said["algorithm_type"],
        solver_order=said["solver_order"],
        solver_type=said["solver_type"],
    )


def scheduler_config(facts: SchedulerFacts) -> dict[str, Any]:
    """Return the `scheduler_config.json` of a scheduler, without what its class has by default.

    Raises:
      UsageError: a named schedule that diffusers does not have; give its betas.
    """
    names = {ours: theirs for theirs, ours in BETA_SCHEDULES.items()}
    if facts.trained_betas is None:
        choose("beta schedule of diffusers", facts.beta_schedule, names)
    options = facts.options
    said = {
        "_class_name": facts.class_name,
        "beta_end": facts.beta_end,
        "beta_schedule": names.get(facts.beta_schedule, "linear"),
        "beta_start": facts.beta_start,
        "clip_sample": facts.clip_sample,
        "num_train_timesteps": facts.num_timesteps,
        "prediction_type": {ours: theirs for theirs, ours in PREDICTIONS.items()}[facts.prediction],
        "set_alpha_to_one": options.set_alpha_to_one,
        "skip_prk_steps": facts.skip_prk_steps,
        "steps_offset": options.steps_offset,
        "timestep_spacing": options.spacing,
        "trained_betas": None if facts.trained_betas is None else list(facts.trained_betas),
        "variance_type": facts.variance,
        "use_karras_sigmas": options.sigmas == "karras",
        "use_exponential_sigmas": options.sigmas == "exponential",
        "algorithm_type": facts.algorithm_type,
        "solver_order": facts.solver_order,
        "solver_type": facts.solver_type,
    }
    always = ("_class_name", "beta_schedule", "num_train_timesteps", "prediction_type")
    return {
        name: value
        for name, value in said.items()
        if name in always or (value is not None and value != _USED[name])
    }


def _variance(name: str, variance_type: str | None) -> str | None:
    """Return the variance of DDPM, a name of ours; None for a class that has none."""
    return VARIANCES[variance_type or "fixed_small"] if name == "DDPMScheduler" else None


def _check(name: str, said: Mapping[str, Any]) -> None:
    """Refuse options that are damaged or have a value that is not among our samplers."""
    for field, known in (_CHOICES | _CHOICES_OF_CLASS.get(name, {})).items():
        if said[field] not in known:
            listed = ", ".join(str(value) for value in known if value is not None)
            raise UsageError(
                f"{_WHAT} has {field} = {format_value(said[field])}: known here are {listed}."
            )
    if said["use_karras_sigmas"] and said["use_exponential_sigmas"]:
        raise UsageError(f"{_WHAT} has both Karras and exponential sigmas: one excludes the other.")
    try:
        for field, largest in _WHOLE.items():
            check(said[field], Whole(0, largest), field)
        for field in ("beta_start", "beta_end"):
            if said[field] is not None:
                check(said[field], Number(), field)
        for field in _FLAGS:
            if said[field] not in (None, True, False):
                raise Malformed(f"{field} is neither true nor false")
        _check_betas(said["trained_betas"], said["num_train_timesteps"])
    except Malformed as error:
        raise UsageError(f"{_WHAT} is damaged: {error}.") from error


def _check_betas(betas: Any, num_timesteps: int) -> None:
    if betas is None:
        return
    if not isinstance(betas, list) or len(betas) != num_timesteps:
        raise Malformed(f"trained_betas is no list of {num_timesteps} numbers")
    for beta in betas:
        check(beta, Number(), "trained_betas")
