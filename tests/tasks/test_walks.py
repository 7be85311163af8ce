"""Which samplers walk which models."""

import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.config import default_config
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
