"""The state before the first step."""

import pathlib
from unittest import mock

from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.models import DiffusionModel
from ddpm_jax.experiments.trainer import build_training, init_state, state_shapes

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def test_a_new_state_is_traced_once_for_its_shapes_and_its_program():
    config = configs.override(
        configs.load_config(str(CONFIGS / "digits.py")),
        {
            "model.ch": "32",
            "model.ch_mult": "(1,)",
            "model.attn_resolutions": "(8,)",
            "model.num_res_blocks": "1",
        },
    )
    model = build(config)
    training = build_training(model)
    drawn = DiffusionModel.init_params
    with mock.patch.object(DiffusionModel, "init_params", autospec=True, side_effect=drawn) as init:
        shapes = state_shapes(model, training)
        state = init_state(model, training)
    assert init.call_count == 1
    assert shapes.params["conv_in"]["kernel"].shape == state.params["conv_in"]["kernel"].shape
