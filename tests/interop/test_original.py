"""Weights under the original code's names."""

import json

import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.original import unet_params_from_original, unet_params_to_original
from ddpm_jax.models.unet import UNet


@pytest.fixture(scope="module")
def unet(unet_goldens):
    config = json.loads(str(unet_goldens["config"]))
    fields = ("resolution", "ch", "ch_mult", "num_res_blocks", "attn_resolutions")
    return UNet(
        **{
            name: tuple(config[name]) if isinstance(config[name], list) else config[name]
            for name in fields
        }
    )


@pytest.fixture(scope="module")
def variables(unet_goldens):
    return {
        name.removeprefix("params/"): v
        for name, v in unet_goldens.items()
        if name.startswith("params/")
    }


def test_there_and_back_is_the_identity(unet, variables):
    back = unet_params_to_original(unet_params_from_original(variables, unet))
    assert set(back) == set(variables)
    for name, value in variables.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_another_scope_is_read(unet, variables):
    renamed = {"ema/" + name: value for name, value in variables.items()}
    params = unet_params_from_original(renamed, unet, scope="ema/model")
    np.testing.assert_array_equal(params["conv_in"]["kernel"], variables["model/conv_in/W"])


def test_missing_left_over_and_misshapen_variables_are_named(unet, variables):
    with pytest.raises(UsageError, match="lacks model/mid/attn_1/q/W"):
        unet_params_from_original(
            {k: v for k, v in variables.items() if k != "model/mid/attn_1/q/W"}, unet
        )
    with pytest.raises(UsageError, match="has, beyond the network's, global_step"):
        unet_params_from_original({**variables, "global_step": np.zeros(())}, unet)
    with pytest.raises(
        UsageError, match=r"model/conv_out/b .* has shape \(3,\), .* where the U-Net has \(6,\)"
    ):
        unet_params_from_original(
            {**variables, "model/conv_out/W": np.zeros((3, 3, 32, 6))}, unet.clone(out_channels=6)
        )


def test_the_checkpoint_of_another_architecture_is_refused_in_one_sentence(unet, variables):
    with pytest.raises(
        UsageError, match=r"lacks model/down_0/block_1/.* and \d+ more: give the U-Net"
    ):
        unet_params_from_original(variables, unet.clone(num_res_blocks=2))
    with pytest.raises(UsageError, match="lacks model/conv_in"):
        unet_params_from_original({}, unet)
