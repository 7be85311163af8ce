"""The image of a certificate."""

import pytest

from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.config import default_config
from ddpm_jax.experiments.denoising import Weights
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.tasks.certificates import image_size


@pytest.mark.parametrize(
    ("size", "ch_mult", "wanted"),
    [
        (256, (1, 1, 2, 2, 4, 4), {"height": 64, "width": 64}),
        (64, (1, 2), {}),
        (32, (1, 2), {}),
        (256, (1,) * 8, {}),  # which halves 256 pixels seven times
    ],
)
def test_a_u_net_makes_a_small_one_that_it_can_halve_as_often(size, ch_mult, wanted):
    config = default_config()
    config.data.image_size, config.model.ch_mult, config.model.ch = size, ch_mult, 32
    config.model.attn_resolutions = ()
    trained = TrainedModel(build(config), Weights(()), step=0, average="raw")
    assert image_size(trained) == wanted
