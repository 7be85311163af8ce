"""Checkpoints of the original DDPM code, against an output of that code."""

import json
import pathlib

import jax
import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.families.ddpm_tensorflow import recognise
from ddpm_jax.families.foreign import Request
from ddpm_jax.interop.containers import Container
from ddpm_jax.interop.original import unet_params_from_original

SIZE = Request(fields={"data.image_size": 8})


@pytest.fixture(scope="module")
def raw(unet_goldens):
    return {
        name.removeprefix("params/"): value
        for name, value in unet_goldens.items()
        if name.startswith("params/")
    }


@pytest.fixture(scope="module")
def variables(raw):
    """Return what a checkpoint holds: weights, averages, slots of Adam and scalars."""
    found = {
        "global_step": np.int64(790_000),
        "beta1_power": np.float32(0.0),
        "beta2_power": np.float32(0.4),
    }
    for name, value in raw.items():
        found[name] = value
        found[f"{name}/ExponentialMovingAverage"] = 0.5 * value
        found |= {f"{name}/{slot}": np.ones_like(value) for slot in ("Adam", "Adam_1")}
    return found


def of(variables):
    return Container(pathlib.Path("model.ckpt-790000"), "a bundle", {"": variables}, {})


def test_outputs_are_those_of_the_original(variables, raw, unet_goldens, imported):
    foreign = recognise(of(variables), SIZE)
    config = json.loads(str(unet_goldens["config"]))
    assert foreign.fields["model.ch"] == config["ch"]
    assert foreign.fields["model.ch_mult"] == tuple(config["ch_mult"])
    assert foreign.fields["model.attn_resolutions"] == tuple(config["attn_resolutions"])
    model, params = imported(foreign, SIZE)
    x, t = unet_goldens["x"], unet_goldens["t"]
    actual = jax.jit(lambda params: model.network.apply({"params": params}, x, t))(params["raw"])
    np.testing.assert_allclose(actual, unet_goldens["y"], rtol=0, atol=1e-5)
    averages = unet_params_from_original({n: 0.5 * v for n, v in raw.items()}, model.network)
    jax.tree.map(np.testing.assert_array_equal, params["ema"], averages)


def test_weights_averages_and_the_rest_are_told_apart_by_name(variables, raw):
    foreign = recognise(of(variables), SIZE)
    assert foreign.weights["raw"].keys() == foreign.weights["ema"].keys() == raw.keys()
    assert foreign.unread == ("the state of Adam", "beta1_power, beta2_power, global_step")
    averages = {name: value for name, value in variables.items() if name.endswith("Average")}
    alone = recognise(of(averages), SIZE)
    assert (list(alone.weights), alone.unread) == (["ema"], ())
    assert alone.fields == foreign.fields


def test_written_back_every_variable_is_the_same_in_any_scope(variables, imported):
    scoped = {f"replica/{name}": value for name, value in variables.items() if "/" in name}
    foreign = recognise(of(scoped), SIZE)
    model, params = imported(foreign, SIZE)
    for kind, tensors in foreign.weights.items():
        back = foreign.write(params[kind], model.network)
        assert back.keys() == tensors.keys()
        for name, value in tensors.items():
            np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_an_unknown_variable_of_the_network_is_refused_by_name(variables, imported):
    more = {**variables, "model/conv_in/W/Momentum": np.zeros(3, np.float32)}
    with pytest.raises(UsageError, match="has, beyond the network's, model/conv_in/W/Momentum"):
        imported(recognise(of(more), SIZE), SIZE)


def test_other_variables_are_not_of_this_family(raw):
    without = {name: value for name, value in raw.items() if name != "model/temb/dense0/W"}
    for tensors in ({}, without, {"conv_in.weight": np.zeros((1, 1, 3, 3))}):
        assert recognise(of(tensors), Request()) is None
    assert recognise(Container(pathlib.Path("a"), "", {}, {}), Request()) is None
