"""Which samplers walk which models."""

import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.config import default_config
from ddpm_jax.samplers.consistency import few_levels
from ddpm_jax.samplers.spacing import trailing
from ddpm_jax.tasks.sampling import with_defaults
from ddpm_jax.tasks.sampling_settings import Sampling
from ddpm_jax.tasks.walks import sampler_over, walked_in


@pytest.mark.parametrize(
    ("sampler", "options"), [("ancestral", {}), ("ddim", {"eta": 1.0}), ("interpolant_sde", {})]
)
def test_a_flow_of_paired_noise_has_no_score_for_samplers_that_add_noise(sampler, options):
    config = default_config()
    config.diffusion.update(process="flow", parameterization="velocity", coupling="ot", clip="none")
    noisy = Sampling(sampler=sampler, options=options, steps=3)
    with pytest.raises(UsageError, match=f"The sampler {sampler} adds noise, which needs a score"):
        sampler_over(build(config), noisy, *walked_in(build(config), noisy))
    for of, how in (("ot", Sampling(sampler="ddim", steps=3)), ("independent", noisy)):
        config.diffusion.coupling = of
        assert sampler_over(build(config), how, *walked_in(build(config), how))


def _levels(model, **asked):
    """Return the name of the sampler and the times that it visits."""
    sampling = with_defaults(model, Sampling(**asked))
    return sampling.sampler_name, walked_in(model, sampling)[1].tolist()


def _few_steps(**fields):
    config = default_config()
    config.update_from_flattened_dict({"init_from": "other", **fields})
    return build(config)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_model_of_consistency_tuning_takes_any_number_of_its_own_steps(steps):
    model = _few_steps(**{"distill.evaluations": 2})
    c = model.config.distill
    times = few_levels(model.chain, steps, first=c.sigma_max, last=c.sigma_last).tolist()
    assert _levels(model, steps=steps) == ("consistency", times)
    assert _levels(model, sampler="consistency", steps=steps) == ("consistency", times)
    # by another sampler, as any model of its process
    usual = trailing(model.chain, 20).tolist()
    assert _levels(model, sampler="dpmpp_2m", steps=20) == ("dpmpp_2m", usual)
    assert len(_levels(model, sampler="dpmpp_2m")[1]) == 50


def test_a_mean_flow_takes_any_number_of_steps():
    process = {"diffusion.process": "flow", "diffusion.parameterization": "velocity"}
    model = _few_steps(**process, **{"mean_flow.evaluations": 2, "init_from": ""})
    for steps in (1, 2, 5):
        times = trailing(model.chain, steps).tolist()
        assert _levels(model, steps=steps) == ("mean_flow", times)
        assert _levels(model, sampler="euler", steps=steps) == ("euler", times)
    assert _levels(model) == ("mean_flow", trailing(model.chain, 2).tolist())


def test_a_model_of_progressive_distillation_has_its_own_steps_alone():
    model = _few_steps(**{"distill.evaluations": 2, "distill.method": "progressive"})
    own = list(model.method.spacing)
    for asked in ({}, {"steps": 2}, {"sampler": "dpmpp_2m"}, {"sampler": "ddim", "steps": 2}):
        assert _levels(model, **asked) == (asked.get("sampler", "ddim"), own)
    says = rf"steps is 20, but .* the 2 timesteps {own[0]:g},{own[1]:g} alone"
    for sampler in (None, "dpmpp_2m"):
        with pytest.raises(UsageError, match=says):
            _levels(model, sampler=sampler, steps=20)
    # who names levels has them
    given = _levels(model, sampler="ddim", steps=4, spacing="trailing")
    assert given == ("ddim", trailing(model.chain, 4).tolist())
