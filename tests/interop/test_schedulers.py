"""Scheduler configs of diffusers: what the files say, what is refused by name, and back."""

import json
import pathlib

import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.schedulers import SAMPLERS, SchedulerFacts, read_scheduler, scheduler_config
from ddpm_jax.samplers.diffusers_levels import SchedulerOptions

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "sd"
OF_SD_1 = json.loads((GOLDENS / "sd1/scheduler/scheduler_config.json").read_text())
OF_SD_2 = json.loads((GOLDENS / "sd2/scheduler/scheduler_config.json").read_text())
DEFAULTS = json.loads((GOLDENS / "schedules.json").read_text())["class_defaults"]
CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}


def test_the_config_of_sd_1():
    facts = read_scheduler(OF_SD_1)
    assert facts == SchedulerFacts()
    assert (facts.sampler, facts.prediction) == ("plms", "eps")
    # what the file leaves out is left to the class that samples
    assert facts.options == SchedulerOptions(steps_offset=1, set_alpha_to_one=False)
    betas = np.load(GOLDENS / "schedules.npz")["betas"]
    np.testing.assert_allclose(facts.betas, betas, rtol=3e-7)
    alphas_bar = np.load(GOLDENS / "schedules.npz")["alphas_cumprod_f64"]
    np.testing.assert_allclose(np.cumprod(1 - facts.betas), alphas_bar, rtol=1e-6)


def test_the_config_of_sd_2():
    facts = read_scheduler(OF_SD_2)
    assert (facts.sampler, facts.prediction) == ("ddim", "v")
    assert not facts.clips("ddim")


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_defaults_of_every_class(name):
    """Written out, as today's diffusers saves them, and left out."""
    scheduler = CLASSES[name]
    written = read_scheduler(DEFAULTS[name] | {"_class_name": scheduler})
    left_out = read_scheduler({"_class_name": scheduler})
    assert written.sampler == ("pndm" if name == "pndm" else SAMPLERS[scheduler])
    np.testing.assert_array_equal(written.betas, left_out.betas)
    own = left_out.sampler
    assert written.clips(own) == left_out.clips(own) == DEFAULTS[name].get("clip_sample", False)


@pytest.mark.parametrize("config", [OF_SD_1, OF_SD_2])
def test_what_is_written_is_what_was_read(config):
    facts = read_scheduler(config)
    written = scheduler_config(facts)
    assert read_scheduler(written) == facts
    said = {k: v for k, v in config.items() if k != "_diffusers_version" and v is not None}
    assert said.items() <= written.items()


@pytest.mark.parametrize(
    "facts",
    [
        SchedulerFacts(
            class_name="DPMSolverMultistepScheduler",
            options=SchedulerOptions(spacing="trailing", sigmas="karras"),
            clip_sample=None,
            algorithm_type="sde-dpmsolver++",
        ),
        SchedulerFacts(
            class_name="UniPCMultistepScheduler", solver_order=3, solver_type="bh1", prediction="v"
        ),
        SchedulerFacts(num_timesteps=3, trained_betas=(0.1, 0.2, 0.5), prediction="x_0"),
        SchedulerFacts(beta_schedule="cosine", beta_start=None, beta_end=None),
    ],
)
def test_other_facts_come_back(facts):
    assert read_scheduler(json.loads(json.dumps(scheduler_config(facts)))) == facts


def test_options_of_unipc():
    facts = SchedulerFacts(class_name="UniPCMultistepScheduler", solver_order=3, solver_type="bh1")
    assert facts.sampler_options == {"order": 3, "variant": "bh1"}


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("_class_name", "LCMScheduler", "Unknown scheduler 'LCMScheduler'"),
        ("rescale_betas_zero_snr", True, "rescale_betas_zero_snr = true, which is not supported"),
        ("final_sigmas_type", "sigma_min", "final_sigmas_type"),
        ("thresholding", True, "thresholding = true"),
        ("clip_sample_range", 2.0, "clip_sample_range"),
        ("timestep_scaling", 10.0, "timestep_scaling"),
        ("beta_schedule", "laplace", "beta_schedule = 'laplace'|beta_schedule = \"laplace\""),
        ("prediction_type", "flow", "known here are epsilon, v_prediction, sample"),
        ("timestep_spacing", "karras", "known here are linspace, leading, trailing"),
        ("num_train_timesteps", "1000", "is damaged: its num_train_timesteps"),
        ("clip_sample", "no", "clip_sample is neither true nor false"),
        ("trained_betas", [0.1], "no list of 1000 numbers"),
    ],
)
def test_what_is_refused_is_named(option, value, words):
    with pytest.raises(UsageError, match=words):
        read_scheduler(OF_SD_1 | {option: value})


def test_another_solver_is_refused():
    solver = {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}
    with pytest.raises(UsageError, match=r"known here are dpmsolver\+\+, sde-dpmsolver\+\+"):
        read_scheduler(OF_SD_1 | solver)


def test_karras_and_exponential_sigmas_exclude_each_other():
    both = {"use_karras_sigmas": True, "use_exponential_sigmas": True}
    with pytest.raises(UsageError, match="one excludes the other"):
        read_scheduler(OF_SD_1 | both)


def test_a_schedule_that_diffusers_does_not_have_needs_its_betas():
    with pytest.raises(UsageError, match="beta schedule of diffusers 'quad'"):
        scheduler_config(SchedulerFacts(beta_schedule="quad"))
