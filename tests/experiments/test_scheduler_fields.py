"""Schedulers of diffusers as fields of a config, and back."""

import json
import pathlib

import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.config import default_config
from ddpm_jax.experiments.scheduler_fields import facts_in, set_scheduler
from ddpm_jax.interop.schedulers import SchedulerFacts, read_scheduler, scheduler_config

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "sd"


@pytest.mark.parametrize("model", ["sd1", "sd2"])
def test_a_config_holds_what_a_file_says(model):
    path = GOLDENS / model / "scheduler" / "scheduler_config.json"
    facts, config = read_scheduler(json.loads(path.read_text())), default_config()
    set_scheduler(config, facts)
    found = facts_in(config)
    assert (found.prediction, found.options) == (facts.prediction, facts.options)
    np.testing.assert_array_equal(found.betas, facts.betas)
    assert found.trained_betas is None


def test_the_pipelines_change_the_offset_and_the_class_decides_where_ddim_ends():
    config = default_config()
    set_scheduler(config, read_scheduler({"_class_name": "DDIMScheduler"}))
    assert config.scheduler.to_dict() == {
        "given": False,
        "spacing": "",
        "sigmas": "",
        "steps_offset": 1,
        "set_alpha_to_one": True,
    }


def test_published_end_points_are_written_out():
    config = default_config()
    config.diffusion.schedule = "scaled_linear"
    assert facts_in(config) == SchedulerFacts()


def test_a_schedule_without_a_name_there_is_written_by_its_betas():
    config = default_config()
    config.diffusion.update(schedule="quad", num_timesteps=20)
    facts = facts_in(config)
    assert read_scheduler(scheduler_config(facts)).trained_betas == facts.trained_betas
    assert len(facts.trained_betas) == 20
    with pytest.raises(UsageError, match="lists its betas"):
        set_scheduler(config, facts)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"parameterization": "mu"}, "no network that predicts mu"),
        ({"rescale_timesteps": True, "num_timesteps": 50}, "gives its networks t"),
    ],
)
def test_what_diffusers_does_not_have_is_refused(fields, says):
    config = default_config()
    config.diffusion.update(fields)
    with pytest.raises(UsageError, match=says):
        facts_in(config)
