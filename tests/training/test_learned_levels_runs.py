"""Runs that learn their levels: the same on one device and on two, stopped or not."""

import pathlib

import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.diffusion.learned_levels import FIRST, gamma_ends

pytestmark = pytest.mark.slow

PROGRAM = pathlib.Path(__file__).parent / "learned_levels_on_devices.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, run_python):
    """The parameters of 4 steps on one device, and of 2 on two and 2 on one."""
    out = tmp_path_factory.mktemp("levels")
    run_python(PROGRAM, out / "one", 4, out / "one.npz", devices=1)
    run_python(PROGRAM, out / "two", 2, out / "half.npz", devices=2)
    run_python(PROGRAM, out / "two", 4, out / "two.npz", devices=1)
    return out, *(dict(np.load(out / f"{name}.npz")) for name in ("one", "two"))


def test_devices_and_stops_change_nothing(runs):
    _, one, two = runs
    assert one.keys() == two.keys()
    for name, leaf in one.items():
        # sums of float32 in another order; Adam's first steps are the signs of gradients
        np.testing.assert_allclose(two[name], leaf, atol=1e-4, err_msg=name)


def test_a_loaded_model_has_the_levels_that_were_learned(runs):
    model = ddpm_jax.load(runs[0] / "one")
    first, last = gamma_ends(model.trained.params["gamma"])
    assert abs(first - FIRST) > 1e-5
    np.testing.assert_allclose(model.chain.log_sigmas[[0, -1]], [first / 2, last / 2], atol=1e-6)
